"""Imports go downward only, and ``import kdlab`` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kdlab

ROOT = Path(kdlab.__file__).parent
FLOORS = {
    "cli": 5,
    "__main__": 5,
    "reproduce": 4,
    "modules": 3,
    "knowledge": 2,
    "teaching": 2,
    "losses": 1,
    "metrics": 1,
    "schedules": 1,
    "optimizers": 1,
    "outputs": 0,
    "batch": 0,
    "views": 0,
    "returned": 0,
    "errors": 0,
    "models": 0,
    "data": 0,
}
# On the ground floor ``errors`` lies under ``outputs``, and both lie under all the rest.
BENEATH = {
    "returned": {"errors"},
    "batch": {"errors", "returned"},
    "outputs": {"batch", "errors", "returned"},
    "views": {"batch", "errors", "outputs"},
    "models": {"errors", "outputs"},
    "data": {"batch", "errors", "outputs"},
    "__main__": {"cli"},
}
LIGHTNING = {"pytorch_lightning", "lightning_fabric", "lightning"}
OPTIONAL = {"timm", "transformers", "ray"}
HEAVY = ["torch", "torchvision", "pytorch_lightning", "torchmetrics", "numpy", "wandb", "sklearn", "matplotlib", "rich"]

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module or ""} | {f"{node.module}.{each.name}" for each in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_below(path: Path) -> None:
    here = room(path)
    names = imported(ast.parse(path.read_text()))
    rooms = {name.split(".")[1] for name in names if name.startswith("kdlab.")}
    for other in (rooms & FLOORS.keys()) - {here}:
        assert FLOORS[other] < FLOORS[here] or other in BENEATH.get(here, set()), f"{here} imports {other}"
    if FLOORS[here] <= 1 and here != "data":
        assert not LIGHTNING & {name.split(".")[0] for name in names}


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} <= FLOORS.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text())
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert not OPTIONAL & {name.split(".")[0] for name in imported(top)}


def test_files_are_short_and_open_with_one_sentence() -> None:
    for path in [*FILES, ROOT / "__init__.py"]:
        text = path.read_text()
        assert len(text.splitlines()) < 300, path
        assert (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].endswith("."), path


def test_import_kdlab_loads_nothing_heavy() -> None:
    code = f"""
import sys
import kdlab
assert kdlab.__version__
print([name for name in {[*HEAVY, *sorted(OPTIONAL)]} if name in sys.modules])
import kdlab.knowledge, kdlab.losses, kdlab.metrics, kdlab.models, kdlab.modules, kdlab.outputs, kdlab.teaching
print([name for name in {["wandb", "sklearn", *sorted(OPTIONAL)]} if name in sys.modules])
for name in kdlab.__all__:
    assert getattr(kdlab, name) is not None
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "[]"]


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Distilled'"):
        kdlab.Distilled  # noqa: B018
