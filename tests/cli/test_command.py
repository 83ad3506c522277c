"""command: one parser for all commands, from signatures and docstrings."""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, repeat
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
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: " in shown
    assert "<class 'Path'>" not in shown


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


@pytest.mark.parametrize("arguments", [["fit", "-c", "gone"], ["check", "gone"], ["fit", "-c", "dkd"]])
def test_a_mistake_in_a_config_is_reported_before_pytorch_is_imported(arguments: list[str]) -> None:
    code = f"""
import sys
from kdlab.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    print(stop.code, {{"torch", "pytorch_lightning"}} & {{*sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"
    assert done.stderr.startswith(f"kdlab {arguments[0]}: ")


def test_an_interrupt_while_importing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdlab.cli.import_module", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["methods"])
    assert (stop.value.code, capsys.readouterr().err) == (130, "kdlab methods: interrupted.\n")


@pytest.mark.parametrize(
    ("rank", "first_ended", "speaks"), [("0", False, True), ("1", True, False), ("1", False, True)]
)
def test_of_several_processes_one_reports(
    rank: str,
    first_ended: bool,
    speaks: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another than the first speaks if the first goes on: the error is its own."""
    parents = chain([5], repeat(1 if first_ended else 5))
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("kdlab.cli.PATIENCE", 0.0)
    monkeypatch.setattr("os.getppid", lambda: next(parents))
    with pytest.raises(SystemExit) as stop:
        main(["fti"])
    assert stop.value.code == 2
    assert bool(capsys.readouterr().err) is speaks


@pytest.mark.full
def test_two_processes_say_it_once(tmp_path: Path) -> None:
    (tmp_path / "kd.yaml").write_text(
        "model: {class_path: kdlab.Distiller, init_args: {student: "
        "{class_path: kdlab.models.mlp, init_args: {in_features: 63, hidden: [8], num_classes: 10}}}}\n"
    )
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    command = [sys.executable, "-m", "kdlab", "fit", "-c", "kd.yaml", *two]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr.count("kdlab fit: "), run.stderr.count("Traceback")) == (2, 1, 0), run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kd.yaml"]


@pytest.mark.full
def test_a_command_searches_no_garbage_at_exit() -> None:
    code = "import atexit, gc, sys\natexit.register(lambda: print(len(gc.get_objects())))\n"  # runs last
    code += "from kdlab.cli import main\nmain(['methods', '--family', 'relation'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 1000  # of some 500,000 objects: it takes a fifth of the whole command
