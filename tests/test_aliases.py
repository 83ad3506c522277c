"""Old module names resolve to the new modules, with one warning."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from importlib.util import find_spec

import pytest

from kdlab.config.class_paths import named
from kdlab.deprecation import ALIASES


@pytest.mark.parametrize("old", ALIASES)
def test_every_old_name_is_the_new_module(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, old, raising=False)
    module = importlib.import_module(old)
    assert module is importlib.import_module(ALIASES[old])
    assert module.__name__ == ALIASES[old]
    assert module.__spec__ is not None
    assert module.__spec__.name == ALIASES[old]


def test_an_old_name_warns_once_and_names_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "kdlab.reproduce.record", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert named("kdlab.reproduce.record.Record").__module__ == "kdlab.studies.run_callback"
    texts = [(warning.category, str(warning.message)) for warning in caught if "record" in str(warning.message)]
    assert texts == [(DeprecationWarning, "kdlab.reproduce.record is now kdlab.studies.run_callback.")]


def test_other_names_are_not_touched() -> None:
    assert find_spec("kdlab.no_such_module") is None
    with pytest.raises(ModuleNotFoundError, match=r"kdlab\.reproduce\.no_such_module"):
        importlib.import_module("kdlab.reproduce.no_such_module")


def test_importing_kdlab_stays_cheap() -> None:
    code = "import sys, kdlab; print(sorted({'torch', 'pytorch_lightning', 'yaml'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
