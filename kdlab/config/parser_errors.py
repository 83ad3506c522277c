"""Messages of jsonargparse as input errors with the key and the value that are wrong.

This is the only module that reads jsonargparse's texts.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import itertools
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import yaml

from kdlab.config.class_paths import is_denied
from kdlab.config.located_yaml import ends_with
from kdlab.errors import InputError

ROOTS = ("model", "data", "trainer", "checkpoint", "seed_everything", "ckpt_path", "class_path", "init_args")
KNOWLEDGE = "model.knowledge.NAME"
KINDS = {
    "float": "a number",
    "int": "a whole number",
    "str": "text",
    "bool": "true or false",
    "Sequence": "a list",
    "dict": "a mapping of names",
}
UNKNOWN = (
    r"does not accept option '([^']+)'|[Oo]ption '([^']+)' is not accepted|Key '([^']+)' is not expected"
    r"|[Uu]nrecognized arguments?: (\S+)"
)
ENUM = (
    r"class_path '([\w.]+)':\s+Parser key \"weights\":[^{]+Expected a member of <enum '\w+'>: {([\w,]+)}"
    r"[\s\S]+?Given value: (\S+)"
)
WRAPPED = " (kdlab.models.with_weights loads a file into any network)"
NOISE = r"Given value type|Given value: {|Subtypes|Errors:|Expected a <class 'NoneType'>|Does not validate"


def parser_error(error: Exception, arguments: Sequence[str] = ()) -> InputError:
    """Return what is wrong, where, and the nearest right names; ``arguments`` are those of the command line."""
    text = str(error)
    text = re.sub(r"Group '([\w.]+)' does not accept option '(?:\1\.)?([\w.]+)'", r"Key '\1.\2' is not expected", text)
    if weights := re.search(ENUM, text):  # first: a mapping of teachers by name would not know the network's arguments
        builder, members, file = weights.groups()
        return _named_weights(text, builder, members, file, arguments)
    if unknown := re.search(UNKNOWN, text):
        name = next(filter(None, unknown.groups())).lstrip("-").split("=")[0]
        options = [argument.lstrip("-").partition("=")[0] for argument in arguments if argument.startswith("--")]
        hint = _hint(name, text, options)
        return InputError(f"the config has the unknown key {name!r}{hint}.", key=name)
    if missing := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        module, name = missing.groups()
        names = dict.fromkeys([*getattr(sys.modules.get(module), "__all__", ()), *vars(sys.modules.get(module, sys))])
        hint = _did_you_mean(name, names)
        return InputError(f"{module} has no {name!r}{hint}.", value=f"{module}.{name}")
    if re.search(r"required: (\w+\.)?model", text):
        hint = "name a config with -c CONFIG (kdlab recipes lists some), or --model CLASS_PATH"
        return InputError(f"there is no model to train: {hint}.")
    if denied := re.search(r"Importing '([\w.]+)' is not allowed, denied by the '([\w.]+)'", text):
        return is_denied(*denied.groups())
    if bare := re.search(r"disabled for Knowledge, thus '([\w.]+)'", text):
        hint = f"A knowledge is no {bare[1]}, but has it as its loss: knowledge.NAME.loss={bare[1]}."
        return InputError(hint, value=bare[1])
    keys = [key for key in re.findall(r'Parser key "([^"]+)"', text) if key != "config"]
    nested = re.findall(r"NestedArg\(key='([^']+)'", text)
    innermost = _innermost(text)
    if innermost and not nested:
        keys = _with_names(keys, text, innermost[1])
    key = f"{keys[0]}.{nested[-1]}" if keys and nested else ".".join(keys)  # as on the command line, if there is one
    exact = key if "." in key else ""  # a root such as model is in every file
    if innermost:
        message, value = innermost
        return InputError(f"{f'{key}: ' if key else ''}{message}.", key=exact, value=value)
    lines = [re.sub(r'^Parser key "config":', "", line.strip(" -")).strip() for line in text.splitlines()]
    message = " ".join(line for line in lines if line and not re.match(NOISE, line))
    message = re.sub(r'^Parser key "([\w.]+)":', r"\1:", message).replace("Given value: ", "but was given ")
    return InputError(message[:600], key=exact)


def _with_names(keys: Sequence[str], text: str, value: str) -> list[str]:
    """Return the keys with the name of the entry, where a key is a mapping by name and one entry holds the value."""
    named = []
    for key in keys:
        named.append(key)
        if head := re.search(rf'^( *)Parser key "{re.escape(key)}":$', text, re.MULTILINE):
            mapping = re.search(rf"^ {{{len(head[1]) + 2}}}Given value: ({{.*}})$", text[head.end() :], re.MULTILINE)
            holders = [name for name, entry in _entries(mapping[1] if mapping else "") if value and value in entry]
            named += holders if len(holders) == 1 else []
    return named


def _entries(mapping: str) -> Iterator[tuple[str, str]]:
    """Yield the names of a mapping, printed as text, with the text of their values."""
    depth, starts = 0, []
    for part in re.finditer(r"[({\[]|[)}\]]|'(\w+)': ", mapping):
        if part[1]:
            starts += [(part[1], part.end())] if depth == 1 else []
        else:
            depth += 1 if part[0] in "({[" else -1
    for (name, start), (_, end) in itertools.pairwise([*starts, ("", len(mapping))]):
        yield name, mapping[start:end]


def _named_weights(text: str, builder: str, members: str, file: str, arguments: Sequence[str]) -> InputError:
    """Return the error of a file where a network takes the name of its weights, with what loads the file, to paste."""
    names = members.replace(",", ", ")
    message = f"{builder} takes the name of weights of its own ({names}), not a file. Write"
    option = next((x.partition(".weights=")[0] for x in arguments if x.endswith(f".weights={file}")), "")
    if option:
        further = [x.replace(option, f"{option}.network", 1) for x in arguments if x.startswith(f"{option}.")]
        further = [x for x in further if x != f"{option}.network.weights={file}"]
        line = [
            f"{option}=kdlab.models.with_weights",
            f"{option}.network={builder}",
            *further,
            f"{option}.weights={file}",
        ]
        return InputError(f"{message} {shlex.join(line)}", value=file)
    network: Any = builder
    for line in re.findall(r"(?:Given|Got) value: ({.*})$", text, re.MULTILINE):
        try:
            value = ast.literal_eval(line)
        except (ValueError, SyntaxError):  # an object among the values
            continue
        options = {key: item for key, item in value.get("init_args", {}).items() if key != "weights"}
        if value.get("class_path") == builder and options:
            network = {"class_path": builder, "init_args": options}
            break
    wrapped = {"class_path": "kdlab.models.with_weights", "init_args": {"network": network, "weights": file}}
    flow = yaml.safe_dump(wrapped, default_flow_style=True, sort_keys=False, width=math.inf).strip()
    keys = re.findall(r'Parser key "([^"]+)"', text.partition("Given value")[0])
    return InputError(f"{message} {''.join(keys[-2:-1])}: {flow}", value=file)


def _hint(key: str, text: str, options: Sequence[str]) -> str:
    """Return where an unknown key belongs, or the nearest right names."""
    full = next((option for option in options if ends_with(option, key)), key)
    *rest, last = [part for part in full.split(".") if part != "init_args"]
    known = list(dict.fromkeys([*ROOTS, *(option for names in _homes().values() for option in names)]))
    if (wrong := _wrong_part(full, known)) != last:
        return _did_you_mean(wrong, known)
    name, here = "NAME", re.sub(r"(knowledge)\.\w+", r"\1.NAME", ".".join(rest))
    if "knowledge" in rest[:-1]:
        name = rest[rest.index("knowledge") + 1]
    elif here != KNOWLEDGE and "'kdlab.Knowledge'" in text:
        here = KNOWLEDGE
    homes = [home for home, names in _homes().items() if last in names]
    if here == KNOWLEDGE and f"{KNOWLEDGE}.loss" in homes:
        homes = [f"{KNOWLEDGE}.loss"]
    if homes == ["model of kdlab.CoTrainer"]:
        return " (an argument of kdlab.CoTrainer)"
    here = here.replace("model.teacher", "model.student")
    if here in homes and (here, homes[0]) != (f"{KNOWLEDGE}.loss", KNOWLEDGE):  # it is right for another class
        return WRAPPED if last == "weights" else ""
    if homes:
        return f" (did you mean {f'{homes[0]}.{last}'.replace('NAME', name)!r}?)"
    return _did_you_mean(last, known)


def _innermost(text: str) -> tuple[str, str] | None:
    """Return the innermost error, of the kinds that users meet, and the wrong value."""
    if lacking := re.search(r"class_path '([\w.]+)':\s*the following arguments are required: ([\w, ]+)", text):
        return f"{lacking[1]} needs {lacking[2]}", lacking[1]
    if module := re.search(r"No module named '([^']+)'", text):
        return f"there is no module {module[1]!r}", module[1]
    if kind := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text):
        return f"{kind[1]} is no {kind[2]}", kind[1]
    expected = re.findall(r"Expected a <class '(?:[\w.]+\.)?(\w+)'>(?:\. Got value: (.*))?", text)
    for name, value in sorted(expected, key=lambda pair: pair[0] == "bool"):  # what may be a number is rather one
        if name != "NoneType":
            values = re.findall(r"val=(.*)\)$|Given value: ([^{N].*)$", text, re.MULTILINE)
            shown = (value or next(filter(None, values[0] if values else ()), "")).split(". Got value:")[0]
            return f"expected {KINDS.get(name, name)}" + (f", not {shown}" if shown else ""), shown
    return None


def _wrong_part(key: str, known: Sequence[str]) -> str:
    """Return the first part of a dotted key that is unknown; the name of a knowledge is the user's and never wrong."""
    parts = key.split(".")
    free = {index + 1 for index, part in enumerate(parts) if part == "knowledge"}
    wrong = [part for index, part in enumerate(parts) if part not in known and index not in free]
    return wrong[0] if wrong else parts[-1]


def _homes() -> dict[str, list[str]]:
    """Return the parts of a config with the names of their options, the likeliest first."""
    from torch import optim

    from kdlab import CoTrainer, Distiller, Knowledge, data, losses, models, teaching

    def every(package: Any) -> list[Any]:
        return [getattr(package, name) for name in package.__all__]

    schedulers = (optim.lr_scheduler.OneCycleLR, optim.lr_scheduler.MultiStepLR, optim.lr_scheduler.CosineAnnealingLR)
    classes: dict[str, Sequence[Any]] = {
        "trainer": [pl.Trainer],
        "data": every(data),
        "model": [Distiller],
        KNOWLEDGE: [Knowledge],
        f"{KNOWLEDGE}.loss": every(losses),
        "model.optimizer": [optim.SGD, optim.AdamW],
        "model.lr_scheduler": schedulers,
        "model.student": every(models),
        "model of kdlab.CoTrainer": [CoTrainer],
        "model.teaching": every(teaching),
    }
    return {
        home: [*dict.fromkeys(option for kind in kinds for option in inspect.signature(kind).parameters)]
        for home, kinds in classes.items()
    }


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    names = [other for other in names if other != name]  # a name that is right elsewhere does not help here
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(None, name, other).ratio() for other in close]
    best = [other for other, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - 0.05]
    return f" (did you mean {' or '.join(map(repr, best))}?)" if best else ""
