"""Configs merged in the order of the command line: knowledge adds up, and digits are the default data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from kdlab.errors import InputError

DATA = "--data=kdlab.data.Digits"
KNOWLEDGE = "--model.knowledge"


class _Config(NamedTuple):
    """A config file among the arguments; ``content`` is empty where LightningCLI will report an error."""

    place: int
    path: str
    content: dict[str, Any]

    def names(self, key: str) -> bool:
        """Return whether the file names the class of ``model`` or ``data``."""
        value = self.content.get(key)
        return isinstance(value, str) or (isinstance(value, dict) and "class_path" in value)

    @property
    def options(self) -> dict[str, Any] | None:
        """Return the model's ``init_args``, if there are any."""
        model = self.content.get("model")
        options = model.get("init_args") if isinstance(model, dict) else None
        return options if isinstance(options, dict) else None


def merge_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` for LightningCLI, which knows neither rule.

    The knowledge of a config is added to that of the configs before it; a knowledge of the same name replaces the
    earlier one. For every other key the last value counts, as in LightningCLI. Where no data is named,
    :data:`DATA` is. Every file is read once.

    Raises:
        InputError: a config that names no model precedes the first that does.
    """
    configs = _configs(arguments)
    return _with_data(_with_knowledge(arguments, configs), configs)


def _with_knowledge(arguments: Sequence[str], configs: Sequence[_Config]) -> list[str]:
    merged, known, indices = list(arguments), dict[str, Any](), list[int]()
    has_model = _has_option(arguments, "--model")
    for config in configs:
        has_model = has_model or config.names("model")
        if (options := config.options) is None:
            continue
        if not has_model:
            raise InputError(
                f"{config.path!r} is a part of a recipe and names no model: put a whole one before it, as in "
                f"-c configs/cifar100/distil.yaml -c {config.path}."
            )
        if isinstance(knowledge := options.get("knowledge"), dict):
            indices.append(config.place)
            known = {**known, **knowledge}
            if known.keys() != knowledge.keys():
                options["knowledge"] = known
                flag = "" if merged[config.place] == config.path else "--config="
                merged[config.place] = flag + yaml.safe_dump(config.content, sort_keys=False)
    return _with_empty_knowledge(merged, indices)


def _with_empty_knowledge(arguments: list[str], indices: Sequence[int]) -> list[str]:
    """Insert an empty knowledge before the first option that adds to it, such as ``knowledge.mine.loss``.

    The parser adds to a mapping that exists; without one it would read "mine" as an argument of a knowledge.

    Args:
        arguments: of the command line.
        indices: of the configs with a knowledge.
    """
    added = re.compile(re.escape(KNOWLEDGE) + r"\.\w|--model\.init_args\.knowledge\.\w")
    first = next((index for index, argument in enumerate(arguments) if added.match(argument)), None)
    if first is None or any(index < first for index in indices) or _has_option(arguments[:first], KNOWLEDGE):
        return arguments
    return [*arguments[:first], f"{KNOWLEDGE}={{}}", *arguments[first:]]


def _with_data(arguments: list[str], configs: Sequence[_Config]) -> list[str]:
    """Insert the digits before all other arguments where no data is named.

    A default of the parser would not do: its own options (no padding, no flip) would stay when a config names another
    class.
    """
    if _has_option(arguments, "--data") or any(config.names("data") for config in configs):
        return arguments
    first = 1 if arguments and not arguments[0].startswith("-") else 0  # after the command
    return [*arguments[:first], DATA, *arguments[first:]]


def _has_option(arguments: Sequence[str], name: str) -> bool:
    return any(argument.split("=")[0] == name for argument in arguments)


def _configs(arguments: Sequence[str]) -> list[_Config]:
    configs = []
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            configs.append((index, argument.removeprefix("--config=")))
        elif argument in ("-c", "--config") and index + 1 < len(arguments):
            configs.append((index + 1, arguments[index + 1]))
    return [_Config(index, path, _read(path)) for index, path in configs]


def _read(path: str) -> dict[str, Any]:
    """Return the content of a config, given as a file or as the text itself."""
    try:
        content = yaml.safe_load(path if "\n" in path else Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
