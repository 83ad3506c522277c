"""Configs merged in the order of the command line: knowledge adds up, and digits are the default data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from kdlab.errors import InputError

DATA = "--data=kdlab.data.Digits"
KNOWLEDGE = "--model.knowledge"
ADDED = re.compile(r"--model(\.init_args)?\.knowledge\.\w")
"""Option that adds to a knowledge."""


def merge_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` with three changes, which LightningCLI does not make; files are read once.

    - The knowledge of a config is added to that of the configs before it, where a knowledge of the same name is
      replaced. For every other key the last value counts, as in LightningCLI.
    - An empty knowledge precedes the first option that adds to it, such as ``knowledge.mine.loss``, if no config has
      any: the parser adds to a mapping that exists, and would read "mine" as an argument of a knowledge.
    - :data:`DATA` precedes all others where no data is named. As a default of the parser, its own options (no padding,
      no flip) would stay when a config names another class.
    """
    merged, known, indices = list(arguments), dict[str, Any](), list[int]()
    has_model, has_data = _has_option(arguments, "--model"), _has_option(arguments, "--data")
    for index, path, content in _configs(arguments):
        model = content.get("model")
        has_model, has_data = has_model or _names_class(model), has_data or _names_class(content.get("data"))
        options = model.get("init_args") if isinstance(model, dict) else None
        if not isinstance(options, dict):
            continue
        if not has_model:
            raise InputError(
                f"{path!r} is a part of a recipe and names no model: put a whole one before it, as in "
                f"-c configs/cifar100/distil.yaml -c {path}."
            )
        if isinstance(knowledge := options.get("knowledge"), dict):
            indices.append(index)
            known = {**known, **knowledge}
            if known.keys() != knowledge.keys():
                options["knowledge"] = known
                flag = "" if merged[index] == path else "--config="
                merged[index] = flag + yaml.safe_dump(content, sort_keys=False)
    first = next((index for index, argument in enumerate(merged) if ADDED.match(argument)), None)
    if first is not None and min(indices, default=first) >= first and not _has_option(merged[:first], KNOWLEDGE):
        merged.insert(first, f"{KNOWLEDGE}={{}}")
    if not has_data:
        merged.insert(1 if merged and not merged[0].startswith("-") else 0, DATA)  # after the command
    return merged


def _has_option(arguments: Sequence[str], name: str) -> bool:
    return any(argument.split("=")[0] == name for argument in arguments)


def _names_class(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and "class_path" in value)


def _configs(arguments: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield index, path and content of each config among the arguments."""
    for index, argument in enumerate(arguments):
        path = argument.removeprefix("--config=")
        if path != argument or (index and arguments[index - 1] in ("-c", "--config")):
            yield index, path, _read(path)


def _read(path: str) -> dict[str, Any]:
    """Return the content of a config, a file or the text itself; none where LightningCLI will report an error."""
    try:
        content = yaml.safe_load(path if "\n" in path else Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
