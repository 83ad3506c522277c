"""Errors of input, and of imports as input errors with file and line."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path

import pytest

from kdlab.errors import InputError, failed_import


def test_the_innermost_file_and_line_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "outer_of_two.py").write_text("\nimport inner_of_two\n")
    (tmp_path / "inner_of_two.py").write_text("def value():\n    return 1 / 0\n\n\nvalue()\n")
    with pytest.raises(ZeroDivisionError) as raised:
        importlib.import_module("outer_of_two")
    try:
        raise RuntimeError("something went wrong") from raised.value
    except RuntimeError as error:
        said = failed_import(error)
    assert str(said) == f"{tmp_path / 'inner_of_two.py'}, line 5: ZeroDivisionError: division by zero."


def test_an_input_error_has_key_and_value_through_pickle() -> None:
    assert (InputError("text").key, InputError("text").value) == ("", "")
    error = pickle.loads(pickle.dumps(InputError("text", key="a.b", value="c")))
    assert (str(error), error.key, error.value) == ("text", "a.b", "c")


def test_other_errors_are_none() -> None:
    with pytest.raises(SyntaxError) as raised:
        compile("a b", "<text>", "eval")
    for error in (raised.value, ValueError("x"), InputError("y")):
        assert failed_import(error) is None
