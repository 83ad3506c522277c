"""Configs merged in the order of the command line: knowledge adds up, and digits are the default data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from kdlab.config.located_yaml import Source
from kdlab.config.recipe_files import with_recipes
from kdlab.config.run_arguments import with_run_folders
from kdlab.config.shorthands import expanded_options
from kdlab.errors import InputError, form_of

DATA = "--data=kdlab.data.Digits"
KNOWLEDGE = "--model.knowledge"
ADDED = re.compile(r"--model(\.init_args)?\.knowledge\.\w")
"""Option that adds to a knowledge."""
GROUP = re.compile(r"(--model(?:\.init_args)?\.parameter_groups\..+)\.(\w+)=([^{].*)")
"""Option of a parameter group, with the group's name and the optimizer's option."""

LOSS = re.compile(r"(--model(?:\.init_args)?\.knowledge\.\w+)=(kdlab\.losses\.[\w.]+)")
"""Knowledge that is written as its loss alone."""


def merge_configs(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` with eight changes, which LightningCLI does not make; files are read once.

    - A run's folder as ``--ckpt_path`` becomes its last checkpoint, and brings its config if no other is named.
    - The name of a recipe that ships with kdlab, where there is no such file, becomes its path.
    - ``knowledge.NAME=kdlab.losses.DKD`` becomes ``knowledge.NAME.loss=kdlab.losses.DKD``.
    - ``model.teacher=timm:NAME`` becomes the class path and its arguments, see :mod:`kdlab.config.shorthands`.
    - The knowledge of a config is added to that of the configs before it, where a knowledge of the same name is
      replaced. For every other key the last value counts, as in LightningCLI.
    - An empty knowledge precedes the first option that adds to it, such as ``knowledge.mine.loss``, if no config has
      any: the parser adds to a mapping that exists, and would read "mine" as an argument of a knowledge.
    - Options of one parameter group, as ``parameter_groups.student.fc.lr``, become one mapping, whose key has dots.
    - :data:`DATA` precedes all others where no data is named. As a default of the parser, its own options (no padding,
      no flip) would stay when a config names another class.
    """
    arguments = _with_groups(expanded_options(with_recipes(with_run_folders(arguments))))
    arguments = [LOSS.sub(r"\1.loss=\2", argument) for argument in arguments]
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
                f"-c cifar100/distil -c {path}."
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


def read_configs(arguments: Sequence[str]) -> list[str]:
    """Return the config files that arguments of ``kdlab fit`` name, after :func:`merge_configs` has read them.

    This imports neither PyTorch nor Lightning, so that a mistake is reported at once.
    """
    merge_configs(arguments)
    return [path for _, path, _ in _configs(with_recipes(with_run_folders(arguments))) if "\n" not in path]


def named_first(arguments: Sequence[str]) -> list[str]:
    """Return arguments of ``kdlab check CONFIG ...`` as those of ``kdlab fit -c CONFIG ...``."""
    return [*(["-c"] if arguments and not arguments[0].startswith("-") else []), *arguments]


def _with_groups(arguments: Sequence[str]) -> list[str]:
    groups: dict[str, dict[str, Any]] = {}
    others = []
    for argument in arguments:
        if match := GROUP.fullmatch(argument):
            group, option, value = match.groups()
            groups.setdefault(group, {})[option] = get_loader("yaml")(value)
        else:
            others.append(argument)
    return [*others, *(f"{group}={json.dumps(options)}" for group, options in groups.items())]


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
    is_text = "\n" in path
    if not is_text and not Path(path).is_file():
        return {}
    content = (Source(Path("the config"), path) if is_text else Source(Path(path))).content
    if not content or not isinstance(content, dict):
        what = "is empty" if not content else f"is {form_of(content)}"
        raise InputError(
            f"{path!r} {what}, no config: a config is a mapping with keys such as model, data and trainer."
        )
    return content
