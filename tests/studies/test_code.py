"""The code that a config names: a user's own counts for the identity, whatever way the config names it."""

from __future__ import annotations

import importlib
import itertools
import linecache
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from kdlab.studies import preflight as trial
from kdlab.studies.run_id import code_of, of_config
from tests.studies.test_run_id import GIVEN, changed

NUMBER = itertools.count()
LOSS = '''
"""A file."""
from torch import nn


class Mine(nn.Module):
    """A loss."""

    def __init__(self, temperature: float = 4.0) -> None:
        """Build."""
        super().__init__()
        self.temperature = temperature

    def forward(self, student, teacher, target):
        # the square
        return ((student.logits - teacher.logits) / self.temperature).square().mean()
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The key of a config that names something in a user's file with this text."""
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_losses_{next(NUMBER)}"

    def key(text: str, what: str = "Mine", other: str = "") -> str:
        for module, content in ((f"{name}_base", other), (name, text.replace("BASE", f"{name}_base"))):
            sys.modules.pop(module, None)
            (tmp_path / f"{module}.py").write_text(textwrap.dedent(content))
        linecache.clearcache()
        importlib.invalidate_caches()
        # Python's own cache of a module goes by size and second: these files change within one
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        loss = {"mine": {"loss": {"class_path": f"{name}.{what}", "init_args": {}}, "weight": 1.0}}
        return of_config(changed(("model.init_args.knowledge", loss)))

    return key


def test_a_users_own_loss_counts_and_its_comments_do_not(own: Callable[..., str]) -> None:
    before = own(LOSS)
    assert own(LOSS) == before
    assert (
        own(LOSS.replace("A loss.", "Another text.").replace("A file.", "More.").replace('"""Build."""', "")) == before
    )
    assert own(LOSS.replace("# the square\n        ", "").replace("\n\n\n", "\n")) == before
    assert own(LOSS.replace(".square()", ".abs()")) != before
    assert own(LOSS.replace("= 4.0", "= 2.0")) != before
    assert own(LOSS + "\nSCALE = 2\n") != before


def test_the_file_of_a_base_class_counts(own: Callable[..., str]) -> None:
    text = "from BASE import Base\n\n\nclass Mine(Base):\n    pass\n"
    base_class = "class Base:\n    scale = {}\n"
    assert own(text, other=base_class.format(1)) != own(text, other=base_class.format(2))


def test_wrapped_user_function_counts_by_its_file(own: Callable[..., str]) -> None:
    text = """
    import functools
    from BASE import told

    @told
    def net():
        return {}
    """
    wrapper = """
    import functools

    def told(function):
        @functools.wraps(function)
        def called():
            return function()
        return called
    """
    assert own(text.format(1), "net", wrapper) != own(text.format(2), "net", wrapper)


def test_a_users_own_function_counts_where_it_is_named_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"own_functions_{next(NUMBER)}"
    (tmp_path / name).mkdir()  # a package without __init__.py is one too
    (tmp_path / name / "shapes.py").write_text("def ramp(step):\n    return step\n")
    config = {"schedule": {"init_args": {"shape": [f"{name}.shapes.ramp"]}}}
    ((module, _),) = code_of(config)
    assert module == f"{name}.shapes"
    (tmp_path / "never_imported.py").write_text("raise RuntimeError\n")
    monkeypatch.setitem(sys.modules, "without_a_spec", ModuleType("without_a_spec"))
    texts = [
        "without_a_spec.x",
        "this.s",
        "hidden.0",
        "layer1.block.conv",
        f"{name}.other",
        "torch.nn.ReLU",
        "kdlab.models.resnet20",
        "__main__.x",
    ]
    assert list(code_of({"layers": [*texts, "never_imported", "never_imported: text", f"{name}.shapes.ramp2"]})) == []
    assert "this" not in sys.modules, "a text alone imports nothing of a library"


def test_code_is_the_users_own_and_no_library_nor_kdlabs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    # kdlab's own code is known by its version: a tidied file costs nobody weeks of training
    assert list(code_of(changed(("model.init_args.student", {"class_path": "torchvision.models.resnet18"})))) == []
    text = "from kdlab.losses import SoftTargets\n\n\nclass Mine(SoftTargets):\n    pass\n"
    (tmp_path / "kdlab_nets.py").write_text(text)
    config = changed(("model.init_args.knowledge", {"a": [{"loss": {"class_path": "kdlab_nets.Mine"}}]}))
    ((name, hashed),) = code_of(config)
    assert (name, len(hashed)) == ("kdlab_nets", 12)


def test_a_users_own_default_that_changed_is_resolved_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = f"own_default_{next(NUMBER)}"
    given = [*GIVEN, f'--model.knowledge={{"mine": {{"loss": "{name}.Mine", "weight": 1.0}}}}']
    found = []
    for temperature in ("4.0", "2.0"):
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(LOSS.replace("4.0", temperature))
        importlib.invalidate_caches()
        linecache.clearcache()
        resolved = trial.Resolved(tmp_path / "configs.json")
        found.append(resolved(given)["model"]["init_args"]["knowledge"]["mine"]["loss"]["init_args"]["temperature"])
        resolved.close()
    assert found == [4.0, 2.0]
