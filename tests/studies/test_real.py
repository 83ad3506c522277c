"""Studies for real: trainings, kills, a Ray cluster, the W&B client, and input that cannot work."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab.cli import main
from kdlab.files import read_json
from kdlab.studies.launchers import processors
from kdlab.studies.ledger import FIELDS
from tests.modules.test_wandb import records

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
KD = str(ROOT / "configs/knowledge/kd.yaml")
MLP = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [32], "num_classes": 10}}
WIDE = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [64], "num_classes": 10}}
RECIPE: dict[str, Any] = {
    "trainer": {"max_epochs": 5, "accelerator": "cpu", "precision": "32-true"},
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": MLP,
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1}},
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 50, "padding": 1, "train_size": 400}},
}
STUDY: dict[str, Any] = {
    "recipe": {"configs": ["recipe.yaml"]},
    "networks": {"wide": WIDE, "small": MLP},
    "teachers": {"options": {"trainer.max_epochs": 6}},
    "pairs": [{"teacher": "wide", "student": "small"}],
    "methods": {"plain": {"networks": {"model.student": "student"}}, "KD": {"configs": [KD]}},
    "seeds": [0],
}
MEASURED = [name for name in FIELDS if name not in ("seconds", "latency", "finished", "device", "commit")]


def write(folder: Path, epochs: int | None = None, **changes: Any) -> Path:
    """A study in a folder of its own."""
    folder.mkdir(parents=True)
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    if epochs is not None:
        recipe["trainer"]["max_epochs"] = epochs
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return folder


def start(study: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kdlab", "reproduce", str(study), *options]
    with (study / "said.txt").open("ab") as said:
        return subprocess.Popen(
            command,
            cwd=study,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores Ctrl-C
        )


def measured(study: Path) -> list[dict[str, str]]:
    """The ledger without what no two trainings have in common, by run."""
    with (study / "ledger.csv").open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["run"])
    return [{name: row[name] for name in MEASURED} for row in rows]


def statuses(study: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: read_json(path) or {} for path in study.glob("runs/*/*/status.json")}


def cells(study: Path) -> set[int]:
    """Processes that train a run of this study: those whose output is its log."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            output = Path(os.readlink(path / "fd/1"))
            if output.name == "log.txt" and study.resolve() in output.parents:
                found.add(int(path.name))
    return found


def wait_for(what: str, seconds: float, true: Any) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"waited too long for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nobody disturbed."""
    study = write(tmp_path_factory.mktemp("studies") / "whole", epochs=30)
    assert start(study).wait() == 0, (study / "said.txt").read_text()
    said = (study / "said.txt").read_text()
    order = [line.partition(": ")[0::2] for line in said.splitlines() if line.startswith(("started: ", "done: "))]
    assert [name for what, name in order if what == "done"] == [name for what, name in order if what == "started"]
    assert [what for what, _ in order] == ["started", "done"] * 3
    assert {each["state"] for each in statuses(study).values()} == {"finished"}
    return study


def under_way(study: Path, epochs: int) -> bool:
    return any(said.get("state") == "running" and said["epoch"] >= epochs for said in statuses(study).values())


@pytest.mark.nightly
def test_two_kills_at_random_moments_change_no_bit(whole: Path, tmp_path: Path) -> None:
    study = write(tmp_path / "whole", epochs=30)
    chance = random.Random()
    for group in (False, True):
        process = start(study)
        before = sum(said.get("epoch", 0) for said in statuses(study).values())
        wait_for("a run", 120, lambda b=before: sum(s.get("epoch", 0) for s in statuses(study).values()) > b)
        time.sleep(chance.uniform(0.0, 1.0))
        assert process.poll() is None, (study / "said.txt").read_text()
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its run has to notice by itself
        process.wait()
        wait_for("the run's own end", 20, lambda: not cells(study))
    assert start(study).wait() == 0, (study / "said.txt").read_text()
    assert measured(study) == measured(whole)


@pytest.mark.skipif(processors() < 2, reason="two runs at once need two processors")
def test_packed_runs_with_stored_outputs_change_no_bit(whole: Path, tmp_path: Path) -> None:
    study, options = write(tmp_path / "whole", epochs=30), ("--pack=2", "--teacher_cache=outputs")
    process = start(study, *options)
    wait_for("two runs at once", 240, lambda: len(cells(study)) == 2)
    wait_for("a run", 240, lambda: under_way(study, 2))
    process.kill()
    process.wait()
    wait_for("the runs' own ends", 20, lambda: not cells(study))
    assert start(study, *options).wait() == 0, (study / "said.txt").read_text()
    assert measured(study) == measured(whole)
    assert len([*study.glob("outputs/*/*-logits-10")]) == 30, "one file for each epoch of KD"


def test_ctrl_c_stops_a_study_with_a_sentence(tmp_path: Path) -> None:
    study = write(tmp_path / "stopped", epochs=2000)
    process = start(study)
    wait_for("a run", 120, lambda: under_way(study, 1))
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    said = (study / "said.txt").read_text()
    assert "Stopped; the same command goes on from here." in said
    assert "Traceback" not in said
    assert not cells(study)


def test_what_a_finished_study_leaves(whole: Path) -> None:
    rows = measured(whole)
    assert {(row["kind"], row["method"], row["status"]) for row in rows} == {
        ("teacher", "", "finished"),
        ("student", "plain", "finished"),
        ("student", "KD", "finished"),
    }
    kd = next(row for row in rows if row["method"] == "KD")
    assert (kd["epochs"], kd["batch"], kd["rate"], kd["precision"]) == ("30", "50", "0.1", "32-true")
    assert int(kd["parameters"]) == 64 * 32 + 32 + 32 * 10 + 10
    assert float(kd["megabytes"]) == pytest.approx(4e-6 * int(kd["parameters"]))
    with (whole / "ledger.csv").open() as file:
        assert all(0 < float(row["latency"]) < 1 for row in csv.DictReader(file) if row["kind"] == "student")
    assert kd["perplexity"] == ""
    assert 0.5 < float(kd["accuracy"]) <= 1
    assert float(kd["best_accuracy"]) >= float(kd["accuracy"])  # digits are validated on the test set
    assert float(kd["agreement"]) > 0.5
    assert len(rows) == len({row["run"] for row in rows}) == 3
    folders = {path.name for path in (whole / "runs/whole").iterdir() if path.is_dir()}
    assert len(folders) == 3
    for folder in folders:
        files = {path.name for path in (whole / "runs/whole" / folder).iterdir()}
        assert {"recipe.yaml", "config.yaml", "result.json", "student.safetensors", "status.json", "log.txt"} <= files


def test_the_accuracy_of_an_epoch_is_its_own(whole: Path) -> None:
    """Digits are validated on the test set: after the last epoch, validation says what the test does."""
    for path in (whole / "runs/whole").glob("*/result.json"):
        result = read_json(path)
        assert result is not None
        assert result["accuracies"][-1] == [result["epochs"], result["accuracy"]]
        assert [epoch for epoch, _ in result["accuracies"]] == list(range(1, result["epochs"] + 1))
        assert result["best_accuracy"] == max(accuracy for _, accuracy in result["accuracies"])


def test_called_again_nothing_is_trained(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "ledger.csv").read_bytes()
    main(["reproduce", str(whole), "--runs", str(whole / "runs")])
    assert (whole / "ledger.csv").read_bytes() == before
    assert "KD" in capsys.readouterr().out
    main(["reproduce", str(whole), "--runs", str(whole / "runs"), "--dry-run"])
    assert "3 runs, 0 to do" in capsys.readouterr().out


def test_a_dry_run_trains_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "dry")
    main(["reproduce", str(study), "--runs", str(tmp_path / "runs"), "--dry-run"])
    said = capsys.readouterr().out
    assert "3 runs, 3 to do" in said
    assert "teacher wide" in said
    assert not (study / "ledger.csv").exists()
    assert not list(tmp_path.glob("runs/*/*/recipe.yaml"))


def test_auto_times_runs_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "dry", epochs=1000)
    main(["reproduce", str(study), "--runs", str(tmp_path / "runs"), "--dry-run", "--pack", "auto"])
    line = re.search(r"--pack (\d), as steps a second .* \(1: ([\d.]+)(?:, 2: ([\d.]+))?", capsys.readouterr().out)
    assert line is not None
    pack, one, two = int(line[1]), float(line[2]), float(line[3] or 0)
    assert one > 0
    assert (two > 0) == (processors() > 1)
    if processors() == 2:
        assert pack == (2 if two > 1.05 * one else 1)


LOSS = """
import torch
from torch import nn


class Odd(nn.Module):
    steps = 0

    def forward(self, student, teacher, target):
        self.steps += self.training and torch.is_grad_enabled()
        if self.steps > 30:
            raise RuntimeError("no more than 30 steps")
        return student.logits.sum() * 0
"""


def test_a_run_that_fails_is_reported_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = {"networks": {"model.student": "student", "model.teacher": "teacher"}}
    odd |= {"options": {"model.knowledge": {"odd": {"loss": "my_odd_loss.Odd"}}}}
    study = write(tmp_path / "fails", methods={"odd": odd, **STUDY["methods"]}, baseline="plain")
    monkeypatch.chdir(study)
    (study / "my_odd_loss.py").write_text(LOSS)
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", "study.yaml", "--runs", "runs"])
    assert stopped.value.code == 1
    assert "RuntimeError: no more than 30 steps" in capsys.readouterr().out
    rows = measured(study)
    assert {row["method"]: row["status"] for row in rows} == {
        "odd": "failed",
        "plain": "finished",
        "KD": "finished",
        "": "finished",
    }
    (study / "my_odd_loss.py").write_text(LOSS.replace("> 30", "> 31"))
    main(["report", "study.yaml", "--runs", "runs"])
    said = capsys.readouterr().out
    assert "| odd |  |  |" in said  # the code is another now: what failed was another run


@pytest.fixture
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    yield
    if ray.is_initialized():
        ray.shutdown()


def workers(study: Path) -> list[int]:
    """Ray's workers that train a run of this study: those of another one on this machine are none of ours."""
    found = []
    for cell in cells(study):
        with contextlib.suppress(OSError):
            parent = Path(f"/proc/{cell}/stat").read_text().rpartition(")")[2].split()[1]
            if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"ray::_train_in"):
                found.append(int(parent))
    return found


@pytest.mark.nightly
def test_on_ray_a_lost_worker_changes_no_number(whole: Path, tmp_path: Path, ray_cluster: None) -> None:
    study = write(tmp_path / "whole", epochs=30)
    process = start(study, "--launcher", "ray", "--workers", "2")
    training: list[int] = []

    def found() -> bool:
        training[:] = workers(study) if under_way(study, 2) else []
        return bool(training) or process.poll() is not None

    wait_for("a run on Ray", 180, found)
    assert process.poll() is None, (study / "said.txt").read_text()
    os.kill(training[0], signal.SIGKILL)
    assert process.wait() == 0, (study / "said.txt").read_text()
    assert measured(study) == measured(whole)


def of_run(folder: Path) -> Any:
    """What the W&B client recorded of a run itself: name, group, project."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("*.wandb")
    for data in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            return record.run
    raise AssertionError(f"{file} has no run")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_wandb_group_has_a_run_per_cell_and_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    settings |= {f"WANDB_{name}_DIR": str(tmp_path / "own") for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    study = write(tmp_path / "logged")
    monkeypatch.chdir(tmp_path)
    wandb.init(project="before", dir=str(tmp_path / "before")).finish()  # its client stays, and stays in this directory
    monkeypatch.chdir(study)
    main(["reproduce", "study.yaml", "--runs", "runs", "--wandb", "kdlab-test"])
    runs = [of_run(folder) for folder in study.rglob("offline-run-*")]
    assert len(runs) == 4
    assert {run.run_group for run in runs} == {"logged"}
    assert {run.project for run in runs} == {"kdlab-test"}
    assert {run.display_name for run in runs} == {
        *("small, plain, seed 0", "teacher wide", "wide → small, KD, seed 0", "logged report")
    }


# Input that cannot work: one sentence with the line, and nothing is run


def refused(study: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["reproduce", str(study), "--runs", str(study / "runs"), *overrides])
    assert stopped.value.code == 2
    assert not (study / "ledger.csv").exists()
    assert not list((study / "runs").glob("*/*/recipe.yaml"))
    return capsys.readouterr().err


def test_a_missing_file_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "bad")
    text = (study / "study.yaml").read_text().replace("kd.yaml", "kdd.yaml")
    (study / "study.yaml").write_text(text)
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "kdd.yaml" in each)
    said = refused(study, capsys)
    assert f"study.yaml, line {line}: there is no file" in said
    assert said.count("\n") == 1


def test_an_unknown_method_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [{"teacher": "wide", "student": "small", "methods": {"KDD": {"options": {"trainer.max_epochs": 1}}}}]
    study = write(tmp_path / "bad", pairs=pairs)
    lines = (study / "study.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if "KDD" in each)
    assert f"study.yaml, line {line}: there is no method 'KDD'; the nearest are 'KD'" in refused(study, capsys)


def test_an_unknown_loss_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kd = {"options": {"model.knowledge": {"soft": {"loss": "kdlab.losses.SoftTargetss"}}}}
    study = write(tmp_path / "bad", methods={**STUDY["methods"], "typo": kd})
    lines = (study / "study.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if "SoftTargetss" in each)
    said = refused(study, capsys)
    assert f"study.yaml, line {line}: " in said
    assert "SoftTargets" in said


@pytest.mark.parametrize(
    ("changes", "recipe", "overrides", "blamed"),
    [
        (
            {"recipe": {"configs": ["recipe.yaml"], "options": {"model.task_wieght": 1}}},
            "",
            (),
            "study.yaml: task_wieght",
        ),
        ({"teachers": {"options": {"trainer.max_epoch": 1}}}, "", (), "study.yaml: max_epoch:"),
        ({}, "task_wieght", (), "recipe.yaml: task_wieght"),
        ({}, "", ("--model.task_wieght=1",), "On the command line, "),
    ],
    ids=["recipe", "teachers", "file", "command line"],
)
def test_a_wrong_key_is_named_with_its_own_line(
    changes: dict[str, Any],
    recipe: str,
    overrides: tuple[str, ...],
    blamed: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = write(tmp_path / "bad", **changes)
    if recipe:
        text = yaml.safe_load((study / "recipe.yaml").read_text())
        text["model"]["init_args"][recipe] = 1
        (study / "recipe.yaml").write_text(yaml.safe_dump(text))
    said = refused(study, capsys, *overrides)
    assert "unknown key" in said
    assert said.count("\n") == 1
    file, _, key = blamed.partition(": ")
    if key:
        lines = (study / file).read_text().splitlines()
        line = next(number for number, each in enumerate(lines, 1) if key in each)
        assert f"{file}, line {line}: the config has the unknown key " in said
    else:
        assert blamed in said
        assert ", line" not in said


@pytest.mark.parametrize("by", ["study", "command line"])
def test_unfit_teacher_file_is_found_before_any_run(
    by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = {**STUDY["teachers"], "weights": {"wide": "wide.pt"}} if by == "study" else STUDY["teachers"]
    study = write(tmp_path / "bad", teachers=teachers)
    (study / "wide.pt").write_text("not weights")
    said = refused(study, capsys, *([f"--teacher=wide={study / 'wide.pt'}"] if by == "command line" else []))
    lines = (study / "study.yaml").read_text().splitlines()
    line = next((number for number, each in enumerate(lines, 1) if "wide: wide.pt" in each), 0)
    assert (f"study.yaml, line {line}: " if line else "--teacher wide: ") in said
    assert "is not a weights file" in said


def test_misspelled_option_suggests_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(write(tmp_path / "bad"), capsys, "--dryrun")
    assert "'--dryrun' is no option of kdlab reproduce (did you mean --dry-run?)" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import torhc\n", "my_{name}.py, line 1: ModuleNotFoundError: No module named 'torhc'."),
        ("def mine(:\n", "my_{name}.py, line 1: invalid syntax."),
        ("import torch\nraise ValueError('odd')\n", "my_{name}.py, line 2: ValueError: odd."),
    ],
    ids=["imports", "syntax", "raises"],
)
def test_an_own_file_that_cannot_be_imported_is_named(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"broken_{len(text)}"
    mine = {"options": {"model.knowledge.mine.loss": f"my_{name}.Mine"}}
    study = write(tmp_path / "bad", methods={**STUDY["methods"], "mine": mine})
    (study / f"my_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(study))
    heard = refused(study, capsys)
    assert said.format(name=name) in heard
    assert heard.count("\n") == 1


def test_user_loss_by_option_without_knowledge_in_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = {"options": {"model.knowledge.mine.loss": "kdlab.losses.SoftTargets", "model.knowledge.mine.weight": 0.5}}
    study = write(tmp_path / "own", methods={**STUDY["methods"], "mine": mine})
    main(["reproduce", str(study), "--runs", str(study / "runs"), "--dry-run"])
    assert "wide → small, mine, seed 0" in capsys.readouterr().out


def test_a_pair_with_different_classes_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twelve = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [8], "num_classes": 12}}
    pairs = [*STUDY["pairs"], {"teacher": "twelve", "student": "small"}]
    study = write(tmp_path / "bad", networks={**STUDY["networks"], "twelve": twelve}, pairs=pairs)
    lines = (study / "study.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if "teacher: twelve" in each)
    said = refused(study, capsys)
    assert f"study.yaml, line {line}: the networks of twelve → small have different classes: " in said
    assert "twelve has 12, small has 10" in said


def test_a_cell_that_is_there_twice_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = write(tmp_path / "bad", methods={**STUDY["methods"], "again": STUDY["methods"]["KD"]})
    lines = (study / "study.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if each.strip().startswith("again:"))
    assert f"study.yaml, line {line}: wide → small, again is the same training as" in refused(study, capsys)


def test_a_config_that_cannot_work_is_found_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hint = {"loss": "kdlab.losses.Hint", "student_layers": ["hiden.0"], "teacher_layers": ["hidden.0"]}
    study = write(tmp_path / "bad", methods={**STUDY["methods"], "hint": {"options": {"model.knowledge": {"h": hint}}}})
    lines = (study / "study.yaml").read_text().splitlines()
    line = next(number for number, each in enumerate(lines, 1) if each.strip() == "hint:")
    said = refused(study, capsys)
    assert f"study.yaml, line {line}: wide → small, hint, seed 0: " in said
    assert "hiden.0" in said
