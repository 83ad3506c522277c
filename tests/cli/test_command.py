"""command: one parser for all commands, from signatures and docstrings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from kdlab.cli import COMMANDS, main
from kdlab.cli.command import call
from kdlab.errors import InputError

CALLS: list[dict[str, Any]] = []


def study(
    folder: Path,
    overrides: list[str],
    teacher: list[str] = [],  # noqa: B006
    dry_run: bool = False,
    launcher: Literal["local", "ray"] = "local",
    count: int = 3,
    out: Path | None = None,
) -> None:
    """Train a study.

    Whatever it lacks.

    Args:
        folder: where it is
        overrides: options of the recipe
        count: how many, with a long explanation that goes
            over two lines
    """
    CALLS.append(dict(locals()))


def plain(name: str, max_size: int = 3) -> None:
    """Do something."""
    CALLS.append({"name": name, "max_size": max_size})


DEFAULTS = {"overrides": [], "teacher": [], "dry_run": False, "launcher": "local", "count": 3, "out": None}


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["x"], {}),
        (["x", "--dry-run"], {"dry_run": True}),
        (["--dry_run", "x"], {"dry_run": True}),
        (["x", "--dry-run=false", "--count", "5"], {"count": 5}),
        (["x", "--teacher", "a=b.pt", "--teacher=c=d=e.pt"], {"teacher": ["a=b.pt", "c=d=e.pt"]}),
        (["x", "--out=1e3", "--launcher=ray"], {"out": Path("1e3"), "launcher": "ray"}),
        (
            ["-c", "--count=4", "x", "--data.root=/a b", "--model.count=2", "--coun", "y.yaml"],
            {"count": 4, "overrides": ["-c", "--data.root=/a b", "--model.count=2", "--coun", "y.yaml"]},
        ),
    ],
)
def test_arguments_reach_the_function_typed(arguments: list[str], changed: dict[str, Any]) -> None:
    CALLS.clear()
    call("study", study, arguments)
    assert [{"folder": Path("x"), **DEFAULTS, **changed}] == CALLS


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (study, [], "the following arguments are required: folder."),
        (study, ["x", "--count=many"], "count: expected a whole number, not many."),
        (study, ["x", "--count"], "argument --count: expected one argument."),
        (study, ["x", "--count", "--dry-run"], "argument --count: expected one argument."),
        (study, ["x", "--dry-run=perhaps"], "dry_run: expected true or false, not perhaps."),
        (study, ["x", "--launcher=rey"], "launcher: expected one of 'local', 'ray', not rey."),
        (plain, ["x", "y"], "'y' is one argument too many."),
        (plain, ["x", "--max-siz=3"], "There is no option '--max-siz'; the nearest are '--max-size'."),
        (plain, ["x", "-m", "3"], "There is no option '-m'; the nearest are '--max-size'."),
    ],
)
def test_a_mistake_names_the_argument(command: Any, arguments: list[str], message: str) -> None:
    CALLS.clear()
    with pytest.raises(InputError) as error:
        call("study", command, arguments)
    assert str(error.value) == message
    assert not CALLS


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_docstring(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("study", study, ["x", flag])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith("usage: kdlab study ")
    assert (
        "folder [--KEY=VALUE ...] Train a study. Whatever it lacks. positional arguments: folder where it is" in shown
    )
    assert "how many, with a long explanation that goes over two lines (type: int, default: 3)" in shown
    assert "overrides" not in shown


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: " in capsys.readouterr().out


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["exprot"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("kdlab exprot: There is no command 'exprot'; the nearest are 'export'")


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(argument: str) -> None:
    code = f"import sys; from kdlab.cli import main; main([{argument!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kdlab" in done.stdout
    assert not {"torch", "pytorch_lightning", "jsonargparse", "rich"} & set(done.stderr.split())
