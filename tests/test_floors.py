"""Imports go downward only, and ``import kdlab`` loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import kdlab

ROOT = Path(kdlab.__file__).parent
LAYERS = (  # each imports from those before it alone
    ("errors", "compat", "aliases", "deprecation"),
    ("distributed", "files", "schedules", "tokenization"),
    ("outputs",),
    ("models", "data"),
    ("losses", "metrics", "optimizers"),
    ("members",),
    ("teaching",),
    ("knowledge",),
    ("modules",),
    ("probes",),
    ("export",),
    ("config",),
    ("figures",),
    ("studies",),
    ("cli",),
    ("__main__",),
)
FLOORS = {name: floor for floor, names in enumerate(LAYERS) for name in names}
WITHOUT_LIGHTNING = {name for name, floor in FLOORS.items() if floor < FLOORS["knowledge"]} - {"compat", "data"}
LIGHTNING = {"pytorch_lightning", "lightning_fabric", "lightning"}
OPTIONAL = {"timm", "transformers", "tokenizers", "peft", "datasets", "pyarrow", "litdata", "ray", "wandb", "sklearn"}
OPTIONAL |= {"onnx", "onnxscript", "onnxruntime", "executorch", "torchao", "openvino"}
"""Packages that many installations lack, or few runs need."""
HEAVY = ["torch", "torchvision", "pytorch_lightning", "torchmetrics", "numpy", "scipy", "matplotlib", "rich"]

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


def dotted(path: Path) -> str:
    """The name that a file is imported by."""
    return ".".join(("kdlab", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def modules_in(tree: ast.AST, known: set[str]) -> set[str]:
    """The modules that a file imports: of ``from package import name`` the module of that name, else the package."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{each.name}": node.module or "" for each in node.names}
            found |= {name if name in known else package for name, package in names.items()}
    return found & known


def test_a_file_imports_only_from_below() -> None:
    for path in FILES:
        here = room(path)
        names = imported(ast.parse(path.read_text()))
        rooms = {name.split(".")[1] for name in names if name.startswith("kdlab.")}
        for other in (rooms & FLOORS.keys()) - {here}:
            assert FLOORS[other] < FLOORS[here], f"{path} imports {other}"
        if here in WITHOUT_LIGHTNING:
            assert not LIGHTNING & {name.split(".")[0] for name in names}, path


def test_no_file_imports_itself_through_others() -> None:
    paths = {dotted(path): path for path in [*FILES, ROOT / "__init__.py"]}
    graph = {name: modules_in(ast.parse(path.read_text()), {*paths}) - {name} for name, path in paths.items()}
    assert graph["kdlab.modules.base"] > {"kdlab.knowledge", "kdlab.modules.optimization"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.parent.name if path.stem == "__init__" else path.stem for path in FILES)
    assert [name for name, count in names.items() if count > 1] == []


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} <= FLOORS.keys()


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
        assert not OPTIONAL & {name.split(".")[0] for name in imported(top)}, path


def test_files_are_short_and_open_with_one_sentence() -> None:
    for path in [*FILES, ROOT / "__init__.py"]:
        text = path.read_text()
        assert len(text.splitlines()) < 300, path
        assert (ast.get_docstring(ast.parse(text)) or "").split("\n")[0].endswith("."), path


def test_import_kdlab_and_reading_configs_load_nothing_heavy() -> None:
    """Further imports are Lightning's and torchmetrics' own, see the test of optional packages."""
    code = f"""
import sys
import kdlab
from kdlab.config.config_merge import read_configs
assert kdlab.__version__ and read_configs(["-c", "kd_digits"])
print([name for name in {[*HEAVY, *sorted(OPTIONAL)]} if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_public_names_are_there() -> None:
    for name in kdlab.__all__:
        assert getattr(kdlab, name) is not None


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Distilled'"):
        kdlab.Distilled  # noqa: B018
