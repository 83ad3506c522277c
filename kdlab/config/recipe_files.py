"""Recipes and studies that ship with kdlab, by name, in a clone and in an installed package."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdlab.errors import InputError, nearest

PACKAGE = Path(__file__).resolve().parents[1]
HOMES = (PACKAGE, PACKAGE.parent)
"""Folders that may hold ``configs`` and ``experiments``: an installed package, or a clone around it."""
NO_RECIPES = ("sweeps",)
"""Folders of ``configs`` whose files are for other programs."""
COMMAND = re.compile(r"^#   (kdlab (?:fit|generations)(?: -c configs/\S+)+.*)")
WHOLE = re.compile(r"^ +class_path: kdlab\.(Distiller|CoTrainer)", re.MULTILINE)


class Recipe(NamedTuple):
    """A config that ships with kdlab.

    Attributes:
        name: path below ``configs`` without suffix, such as ``knowledge/kd``.
        path: the file.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """Return the first sentence of the comment at the top."""
        text = " ".join(line.lstrip("# ") for line in self._comment())
        return re.split(r"(?<!et al)\. |[:;] ", text, maxsplit=1)[0].rstrip(".")

    @property
    def is_whole(self) -> bool:
        """Return whether the recipe names a model; else it is a part that is laid over a recipe that does."""
        return bool(WHOLE.search(self.path.read_text()))

    def command(self) -> list[str]:
        """Return the command in the comment; a part without one is laid over the recipe of CIFAR-100 or ImageNet."""
        for line in re.sub(r"\\\n#\s*", "", "\n".join(self._comment())).splitlines():
            if match := COMMAND.search(line):
                return shlex.split(match[1], comments=True)
        base = [] if self.is_whole else ["-c", f"{'imagenet' if 'imagenet' in self.name else 'cifar100'}/distil"]
        return ["kdlab", "fit", *base, "-c", self.name]

    def _comment(self) -> list[str]:
        lines = self.path.read_text().splitlines()
        return lines[: next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))]


def recipes() -> list[Recipe]:
    """Return all recipes: those that name a model first, in the order of their names."""
    root = home("configs")
    found = [Recipe(path.relative_to(root).with_suffix("").as_posix(), path) for path in root.rglob("*.yaml")]
    shipped = [recipe for recipe in found if recipe.name.partition("/")[0] not in NO_RECIPES]
    return sorted(shipped, key=lambda recipe: (not recipe.is_whole, recipe.name.count("/") > 0, recipe.name))


def home(name: str) -> Path:
    """Return the folder ``configs`` or ``experiments``."""
    folder = next((place / name for place in HOMES if (place / name).is_dir()), None)
    if folder is None:
        raise InputError(f"This installation of kdlab has no folder {name!r}: install it again.")
    return folder


def recipe(name: str) -> Recipe:
    """Return the recipe of a name: a path below ``configs``, or its end, where the suffix may be left out.

    Of several the one with the fewest folders is meant: ``kd`` is ``knowledge/kd``, not ``knowledge/imagenet/kd``.

    Raises:
        InputError: there is none, or two are equally near.
    """
    wanted = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml")
    known = {item.name: item for item in recipes()}
    ends = [end for end in known if f"/{end}".endswith(f"/{wanted}")]
    if wanted in known:
        return known[wanted]
    shortest = min((end.count("/") for end in ends), default=0)
    meant = [end for end in ends if end.count("/") == shortest]
    if len(meant) == 1:
        return known[meant[0]]
    if meant:
        raise InputError(f"{name!r} names several recipes: {' or '.join(map(repr, meant))}.")
    last = wanted.rpartition("/")[2]
    names = dict.fromkeys([*known, *(end.rpartition("/")[2] for end in known if "/" not in wanted)])
    close = nearest(wanted, names, 3)
    raise InputError(
        f"There is no file {name!r}, nor a recipe {last!r}; the nearest are {close}. kdlab recipes lists them all."
    )


def resolved(path: str) -> str:
    """Return the path of a config file: ``path`` itself if there is such a file, else that of the recipe."""
    return path if Path(path).is_file() else str(recipe(path).path)


def with_recipes(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` with files for the names of recipes after ``-c`` and ``--config``."""
    changed = list(arguments)
    for index, argument in enumerate(arguments):
        path = argument.removeprefix("--config=")
        if (path != argument or (index and arguments[index - 1] in ("-c", "--config"))) and "\n" not in path:
            changed[index] = argument.removesuffix(path) + resolved(path)
    return changed


def study(name: str) -> Path:
    """Return the folder or file of a study: ``name`` if it exists, else the shipped study of this name.

    Raises:
        InputError: there is none.
    """
    if Path(name).exists():
        return Path(name)
    known = {path.parent.name: path.parent for path in home("experiments").glob("*/study.yaml")}
    folder = known.get(name.rstrip("/").removeprefix("experiments/"))
    if folder is None:
        raise InputError(f"There is no study {name!r}, file or folder; those of kdlab are {', '.join(sorted(known))}.")
    return folder
