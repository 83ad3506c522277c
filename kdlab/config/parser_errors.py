"""What jsonargparse says of a config that does not fit, as one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence

import pytorch_lightning as pl

ROOTS = ("model", "data", "trainer", "checkpoint", "seed_everything", "ckpt_path", "class_path", "init_args")
KINDS = {"float": "a number", "int": "a whole number", "str": "text", "bool": "true or false", "Sequence": "a list"}


def sentence(error: Exception) -> str:
    """The heart of a parser's message: what is wrong, where, and the nearest right names."""
    text = str(error)
    text = re.sub(r"Group '([\w.]+)' does not accept option '(?:\1\.)?([\w.]+)'", r"Key '\1.\2' is not expected", text)
    key = r"[Oo]ption '([^']+)' is not accepted|Key '([^']+)' is not expected|[Uu]nrecognized arguments?: (\S+)"
    if unknown := re.search(key, text):
        name = next(group for group in unknown.groups() if group).lstrip("-").split("=")[0]
        known = _known_keys()
        return f"the config has the unknown key {name!r}{_did_you_mean(_wrong_part(name, known), known)}."
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        module, name = missing.groups()
        return f"{module} has no {name!r}{_did_you_mean(name, _names_in(module))}."
    if re.search(r"required: (\w+\.)?model", text):
        return "there is no model to train: name a config with -c CONFIG (configs/ has some), or --model CLASS_PATH."
    if heart := _heart(text):
        return f"{_place(text)}{heart}."
    lines = [re.sub(r'^Parser key "config":', "", line.strip(" -")).strip() for line in text.splitlines()]
    noise = r"Given value type|Given value: {|Subtypes|Errors:|Expected a <class 'NoneType'>|Does not validate"
    said = " ".join(line for line in lines if line and not re.match(noise, line))
    return re.sub(r'^Parser key "([\w.]+)":', r"\1:", said).replace("Given value: ", "but was given ")[:600]


def _heart(text: str) -> str | None:
    """The innermost complaint of the kinds that users meet."""
    if lacking := re.search(r"class_path '([\w.]+)':\s*the following arguments are required: ([\w, ]+)", text):
        return f"{lacking[1]} needs {lacking[2]}"
    if module := re.search(r"No module named '([^']+)'", text):
        return f"there is no module {module[1]!r}"
    if kind := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"{kind[1]} is no {kind[2]}"
    for name, value in re.findall(r"Expected a <class '(?:[\w.]+\.)?(\w+)'>(?:\. Got value: (.*))?", text):
        if name != "NoneType":
            given = value or next(iter(re.findall(r"val=(.*)\)$|Given value: ([^{N].*)$", text, re.MULTILINE)), ("",))
            shown = (value or next((each for each in given if each), "")).split(". Got value:")[0]
            return f"expected {KINDS.get(name, name)}" + (f", not {shown}" if shown else "")
    return None


def _place(text: str) -> str:
    """Where it is, with a colon; the whole key of the command line where the message has it."""
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', text) if key != "config"]
    nested = re.findall(r"NestedArg\(key='([^']+)'", text)
    if keys and nested:
        return f"{keys[0]}.{nested[-1]}: "
    return ".".join(keys) + ": " if keys else ""


def _wrong_part(name: str, known: Sequence[str]) -> str:
    """The part of a dotted key to find a right name for: the first that is none, but for a name of the user's."""
    parts = name.split(".")
    free = {place + 1 for place, each in enumerate(parts) if each == "knowledge"}
    wrong = [each for place, each in enumerate(parts) if each not in known and place not in free]
    return wrong[0] if wrong else parts[-1]


def _names_in(module: str) -> list[str]:
    found = sys.modules.get(module, sys)
    return list(dict.fromkeys([*getattr(found, "__all__", ()), *vars(found)]))


def _known_keys() -> list[str]:
    from kdlab import CoTrainer, Distiller, Knowledge, data, losses, models, teaching

    kinds = [CoTrainer, Distiller, Knowledge, pl.Trainer]
    kinds += [getattr(room, name) for room in (losses, teaching, data, models) for name in room.__all__]
    names = [name for each in kinds for name in inspect.signature(each).parameters]
    return list(dict.fromkeys([*ROOTS, *names]))


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    names = [each for each in names if each != name]  # it is right elsewhere, and does not help here
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close = [difflib.SequenceMatcher(None, name, each).ratio() for each in found]
    found = [each for each, ratio in zip(found, close, strict=True) if ratio > close[0] - 0.05]
    return f" (did you mean {' or '.join(map(repr, found))}?)" if found else ""
