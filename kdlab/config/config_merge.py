"""Recipes laid over each other: what they teach adds up, and digits where no data is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kdlab.errors import InputError

KEYS = ("-c", "--config")
DATA = "--data=kdlab.data.Digits"
KNOWLEDGE = "--model.knowledge"


def laid_over(arguments: Sequence[str]) -> list[str]:
    """The arguments with every recipe's knowledge added to that of the recipes before it.

    Of everything else the last word counts, as LightningCLI has it; it would let a recipe's whole ``knowledge`` take
    the place of an earlier one's. A knowledge of the same name replaces the earlier.

    Raises:
        InputError: a part of a recipe, which names no model, comes before any that does.
    """
    changed, known, parts, taught = list(arguments), dict[str, Any](), list[str](), list[int]()
    named = any(each == "--model" or each.startswith("--model=") for each in arguments)
    for place, path in _recipes(arguments):
        recipe = _read(path)
        model = recipe.get("model") if isinstance(recipe, dict) else None
        named = named or isinstance(model, str) or (isinstance(model, dict) and "class_path" in model)
        if not isinstance(model, dict) or not isinstance(options := model.get("init_args"), dict):
            continue
        parts += [] if named else [path]
        own = options.get("knowledge")
        if isinstance(own, dict):
            taught.append(place)
            both = {**known, **own}
            if both.keys() != own.keys():
                options["knowledge"] = both
                flag = "" if changed[place] == path else "--config="
                changed[place] = flag + yaml.safe_dump(recipe, sort_keys=False)
            known = both
    if parts:
        raise InputError(
            f"{parts[0]!r} is a part of a recipe and names no model: put a whole one before it, as in "
            f"-c configs/cifar100/distil.yaml -c {parts[0]}."
        )
    return _with_room(changed, taught)


def _with_room(arguments: list[str], taught: Sequence[int]) -> list[str]:
    """The arguments, with no knowledge at all before the first option that adds to it, such as knowledge.mine.loss.

    Else the parser would read "mine" as an argument of a knowledge: it adds to a mapping that is there. ``taught``: the
    places of recipes that have one.
    """
    added = re.compile(re.escape(KNOWLEDGE) + r"\.\w|--model\.init_args\.knowledge\.\w")
    place = next((place for place, each in enumerate(arguments) if added.match(each)), None)
    if place is None or any(each < place for each in taught):
        return arguments
    if any(each.split("=")[0] == KNOWLEDGE for each in arguments[:place]):
        return arguments
    return [*arguments[:place], f"{KNOWLEDGE}={{}}", *arguments[place:]]


def with_data(arguments: Sequence[str]) -> list[str]:
    """The arguments, with kdlab's digits before all others where no data is named.

    A default of the parser would not do: it is filled with the digits' own options (no padding, no flip), which then
    stay when a recipe names another class, instead of that class's.
    """
    for each in arguments:
        if each == "--data" or each.startswith("--data="):
            return list(arguments)
    for _, path in _recipes(arguments):
        recipe = _read(path)
        data = recipe.get("data") if isinstance(recipe, dict) else None
        if isinstance(data, str) or (isinstance(data, dict) and "class_path" in data):
            return list(arguments)
    first = 1 if arguments and not arguments[0].startswith("-") else 0  # after the command
    return [*arguments[:first], DATA, *arguments[first:]]


def _recipes(arguments: Sequence[str]) -> list[tuple[int, str]]:
    """Where among the arguments each recipe is named, and its path."""
    found = []
    for place, each in enumerate(arguments):
        if each.startswith("--config="):
            found.append((place, each.removeprefix("--config=")))
        elif each in KEYS and place + 1 < len(arguments):
            found.append((place + 1, arguments[place + 1]))
    return found


def _read(path: str) -> Any:
    """The content of a recipe, a file or the text itself; nothing where LightningCLI will say what is wrong with it."""
    try:
        return yaml.safe_load(path if "\n" in path else Path(path).read_text())
    except (OSError, yaml.YAMLError, UnicodeDecodeError, ValueError):
        return None
