"""``kdlab recipes`` and ``kdlab init``: the recipes that ship with kdlab, and copies of them."""

from __future__ import annotations

import shlex
from pathlib import Path

from kdlab.config.recipe_files import recipe
from kdlab.config.recipe_files import recipes as shipped
from kdlab.errors import InputError
from kdlab.files import write_text


def recipes() -> None:
    """List the recipes that ship with kdlab: whole ones first, then parts that are laid over them.

    Each goes by its name or the end of it: kdlab fit -c kd_digits, kdlab fit -c cifar100/distil -c kd.
    """
    known = shipped()
    width = max(len(item.name) for item in known)
    parts = [item for item in known if not item.is_whole]
    for item in known:
        if item is parts[0]:
            print("\nParts, for a second -c:")
        print(f"{item.name:<{width}}  {item.summary}")


def init(recipe_name: str, out: Path = Path()) -> None:
    """Copy a recipe, with those that it is laid over, and print the command that runs the copy.

    Args:
        recipe_name: name of a recipe, see kdlab recipes
        out: folder to copy to, or the file, NAME.yaml, where the recipe is one file
    """
    words = recipe(recipe_name).command()
    files = words.count("-c")
    is_file = out.suffix in (".yaml", ".yml")
    if is_file and files > 1:
        raise InputError(f"{recipe_name!r} is {files} files, laid over each other: give a folder as --out.")
    copies = dict[Path, str]()
    for index, word in enumerate(words):
        if words[index - 1] == "-c":
            source = recipe(word).path
            target = out if is_file else out / source.name
            copies[target], words[index] = source.read_text(), str(target)
    for target, text in copies.items():
        if target.exists() and target.read_text() != text:
            raise InputError(f"{str(target)!r} exists and is not this recipe: choose another folder with --out.")
    for target, text in copies.items():
        write_text(target, text)
        print(target)
    print(f"\nRun it:\n  {shlex.join(words)}")
