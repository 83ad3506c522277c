"""The study's loop, with a launcher that trains nothing: order, failures, repairs, what earlier calls left."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab.files import read_json, write_json
from kdlab.studies.ledger import FAILED, FINISHED, Ledger
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import RECIPE, RESULT, STUDENT, Run
from kdlab.studies.scheduler import Work
from tests.studies.small import PAIR, STUDY, runs

KD = [f"{PAIR}, KD, seed {seed}" for seed in (0, 1)]
PLAIN = [f"tiny, plain, seed {seed}" for seed in (0, 1)]
ORDER = ["teacher big", PLAIN[0], KD[0], PLAIN[1], KD[1]]
RESULTS = {"accuracy": 0.7123456789012345, "best_epoch": 2, "seconds": 1.5, "teacher_accuracy": None, "device": "none"}


class Fake:
    """Trains nothing: ``trains`` says what a run does in its folder."""

    def __init__(self, trains: Callable[[Path], None], at_once: int = 1) -> None:
        self.trains, self.capacity = trains, at_once
        self.started: list[Path] = []
        self.running: list[Path] = []
        self.stopped = 0

    def start(self, folder: Path) -> None:
        assert len(self.running) < self.capacity
        assert read_json(folder / STATUS) == {"state": "waiting"}
        self.started.append(folder)
        self.running.append(folder)

    def ended(self, seconds: float) -> list[Path]:
        ended = self.running[:1]
        del self.running[:1]
        for folder in ended:
            self.trains(folder)
        return ended

    def stop(self) -> None:
        self.stopped += 1


def trained(folder: Path) -> None:
    """A run that ends well."""
    (folder / STUDENT).write_text("weights")
    write_json(folder / RESULT, RESULTS)


class Study:
    """The small study's work in a folder, from the ledger as it stands."""

    def __init__(self, folder: Path, text: str = STUDY, data: Callable[[Run], str] = lambda run: "data") -> None:
        self.work = Work(runs(folder, text), data, folder / "runs", Ledger(folder / "ledger.csv"))
        self.names = {run.key: run.name for run in self.work.runs}
        self.seen: list[tuple[list[str], dict[str, str]]] = []

    def folder(self, name: str) -> Path:
        return self.work.folder(self.run(name))

    def run(self, name: str) -> Run:
        return next(run for run in self.work.runs if run.name == name)

    def carry_out(self, launcher: Fake, loggers: Sequence[Mapping[str, Any]] = ()) -> dict[str, str]:
        def watch(running: Sequence[Run], outcome: Mapping[str, str]) -> None:
            self.seen.append(([run.name for run in running], {self.names[key]: said for key, said in outcome.items()}))

        outcome = self.work.carry_out(launcher, lambda run: loggers, watch)
        return {self.names[key]: said for key, said in outcome.items()}

    def started(self, launcher: Fake) -> list[str]:
        names = {self.work.folder(run): run.name for run in self.work.runs}
        return [names[folder] for folder in launcher.started]

    def states(self) -> list[str]:
        return [self.work.state(run) for run in self.work.runs]

    def rows(self) -> list[dict[str, str]]:
        return Ledger(self.work.ledger.path).rows


def test_everything_is_done_once_in_order(tmp_path: Path) -> None:
    study, launcher = Study(tmp_path), Fake(trained)
    assert study.states() == ["new"] * 5
    assert study.carry_out(launcher) == dict.fromkeys(ORDER, FINISHED)
    assert study.started(launcher) == ORDER
    assert [row["run"] for row in study.rows()] == [study.work.identity(run) for run in study.work.runs]
    assert launcher.stopped == 1
    assert study.seen[0] == (ORDER[:1], {})
    assert study.seen[1] == (ORDER[1:2], {ORDER[0]: FINISHED})
    assert study.seen[-1] == ([], dict.fromkeys(ORDER, FINISHED))
    # Another call has nothing to do, and waits for nothing.
    again = Study(tmp_path)
    assert again.states() == [FINISHED] * 5
    idle = Fake(trained)
    assert again.carry_out(idle) == dict.fromkeys(ORDER, FINISHED)
    assert (idle.started, len(study.rows())) == ([], 5)


def test_several_at_once_wait_for_their_teacher_alone(tmp_path: Path) -> None:
    study, launcher = Study(tmp_path), Fake(trained, at_once=9)
    assert set(study.carry_out(launcher).values()) == {FINISHED}
    assert study.seen[0][0] == ["teacher big", *PLAIN]
    assert study.seen[1] == ([*PLAIN, *KD], {"teacher big": FINISHED})
    assert study.started(launcher) == ["teacher big", *PLAIN, *KD]


def test_a_row_says_what_was_trained_and_what_came_of_it(tmp_path: Path) -> None:
    study = Study(tmp_path)
    study.carry_out(Fake(trained))
    rows = {row["run"]: row for row in study.rows()}
    teacher, kd = (rows[study.work.identity(study.run(name))] for name in ("teacher big", KD[1]))
    assert (kd["kind"], kd["pair"], kd["method"], kd["seed"], kd["network"]) == ("student", PAIR, "KD", "1", "tiny")
    assert (teacher["kind"], teacher["pair"], teacher["method"], teacher["network"]) == ("teacher", "", "", "big")
    assert (kd["config"], kd["data"], kd["status"], kd["error"]) == (study.run(KD[1]).key, "data", FINISHED, "")
    assert (kd["batch"], kd["rate"], kd["epochs"], teacher["epochs"], kd["precision"]) == ("50", "0.1", "3", "6", "")
    assert float(kd["accuracy"]) == RESULTS["accuracy"]
    assert (kd["best_epoch"], kd["teacher_accuracy"], kd["device"]) == ("2", "", "none")
    assert kd["finished"].endswith("+00:00")


@pytest.mark.parametrize("failing", ["", "teacher big", "teacher mid"])
def test_a_student_waits_for_all_teachers_of_an_ensemble(failing: str, tmp_path: Path) -> None:
    mid = "  mid: {class_path: kdlab.models.mlp, init_args: {hidden: [32]}}\nteachers:"
    text = STUDY.replace("teachers:", mid).replace("{teacher: big,", "{name: two, teacher: [big, mid],")
    study = Study(tmp_path, text)

    def trains(folder: Path) -> None:
        if failing and folder == study.folder(failing):
            write_json(folder / STATUS, {"state": "failed", "error": "no memory"})
        else:
            trained(folder)

    outcome = study.carry_out(Fake(trains, at_once=9))
    assert study.seen[0][0] == ["teacher big", "teacher mid", *PLAIN]
    if failing:
        assert outcome["two, KD, seed 0"] == "its teacher failed: no memory"
        return
    assert set(outcome.values()) == {FINISHED}
    recipe = yaml.safe_load((study.folder("two, KD, seed 0") / RECIPE).read_text())
    teachers = recipe["model"]["init_args"]["teacher"]
    folders = [study.folder("teacher big"), study.folder("teacher mid")]
    assert [Path(one["init_args"]["weights"]) for one in teachers] == [folder / STUDENT for folder in folders]


def test_failed_teacher_stops_only_its_students(tmp_path: Path) -> None:
    study = Study(tmp_path)

    def fails(folder: Path) -> None:
        if folder == study.folder("teacher big"):
            write_json(folder / STATUS, {"state": "failed", "error": "no memory"})
        else:
            trained(folder)

    launcher = Fake(fails)
    assert study.carry_out(launcher) == {
        PLAIN[0]: FINISHED,
        PLAIN[1]: FINISHED,
        "teacher big": "no memory",
        KD[0]: "its teacher failed: no memory",
        KD[1]: "its teacher failed: no memory",
    }
    assert study.started(launcher) == ["teacher big", *PLAIN]
    kept = [(row["status"], row["error"]) for row in study.rows()]
    assert kept == [(FAILED, "no memory"), (FINISHED, ""), (FINISHED, "")]
    again = Study(tmp_path)
    assert again.states() == [FAILED, FINISHED, "new", FINISHED, "new"]
    shutil.rmtree(again.folder("teacher big"), ignore_errors=True)
    assert again.states()[0] == FAILED, "the ledger says so too"
    repaired = Fake(trained)
    assert set(again.carry_out(repaired).values()) == {FINISHED}
    assert again.started(repaired) == ["teacher big", *KD]
    assert [row["status"] for row in study.rows()].count(FAILED) == 1
    assert Study(tmp_path).states() == [FINISHED] * 5


def test_a_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    study = Study(tmp_path)

    def fails(folder: Path) -> None:
        if folder != study.folder(PLAIN[0]):
            trained(folder)

    outcome = study.carry_out(Fake(fails))
    assert [name for name in ORDER if outcome[name] != FINISHED] == [PLAIN[0]]
    log = study.folder(PLAIN[0]) / "log.txt"
    assert outcome[PLAIN[0]] == f"its process was killed; see {log}"
    # The next call does not take an old reason for a new one.
    (study.folder(PLAIN[0]) / "checkpoints").mkdir()
    (study.folder(PLAIN[0]) / "checkpoints/last.ckpt").touch()
    assert Study(tmp_path).states()[ORDER.index(PLAIN[0])] == "interrupted"
    write_json(study.folder(PLAIN[0]) / STATUS, {"state": "failed", "error": "old"})
    assert Study(tmp_path).states()[ORDER.index(PLAIN[0])] == FAILED
    assert Study(tmp_path).carry_out(Fake(fails))[PLAIN[0]] == f"its process was killed; see {log}"


def test_written_result_is_entered_without_training(tmp_path: Path) -> None:
    study = Study(tmp_path)
    for name in ("teacher big", KD[1]):
        folder = study.folder(name)
        folder.mkdir(parents=True)
        trained(folder)
    launcher = Fake(trained)
    assert study.carry_out(launcher) == dict.fromkeys(ORDER, FINISHED)
    assert study.started(launcher) == [PLAIN[0], KD[0], PLAIN[1]]
    assert sorted(row["run"] for row in study.rows()) == sorted(study.work.identity(run) for run in study.work.runs)


def test_a_result_that_was_cut_is_none(tmp_path: Path) -> None:
    study = Study(tmp_path)
    folder = study.folder(PLAIN[0])
    folder.mkdir(parents=True)
    (folder / RESULT).write_text('{"accuracy": 0.')
    launcher = Fake(trained)
    assert set(study.carry_out(launcher).values()) == {FINISHED}
    assert study.started(launcher) == ORDER


def test_teacher_without_weights_is_trained_again_if_needed(tmp_path: Path) -> None:
    Study(tmp_path).carry_out(Fake(trained))
    study = Study(tmp_path)
    (study.folder("teacher big") / STUDENT).unlink()
    assert study.states() == [FINISHED] * 5, "all its students are done"
    more = STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    study = Study(tmp_path, more)
    assert [run.name for run in study.work.runs if not study.work.done(run)] == [
        "teacher big",
        "tiny, plain, seed 2",
        f"{PAIR}, KD, seed 2",
    ]
    assert study.states()[0] == "new", "finished, and needed again"

    def looks(folder: Path) -> None:
        assert not (folder / RESULT).exists(), "a process that finds a result does nothing"
        trained(folder)

    launcher = Fake(looks)
    assert set(study.carry_out(launcher).values()) == {FINISHED}
    assert study.started(launcher) == ["teacher big", "tiny, plain, seed 2", f"{PAIR}, KD, seed 2"]
    assert len(study.rows()) == 7, "the teacher is in the ledger once"


def test_a_teacher_that_cannot_be_trained_again_stays_measured(tmp_path: Path) -> None:
    Study(tmp_path).carry_out(Fake(trained))
    study = Study(tmp_path, STUDY.replace("seeds: [0, 1]", "seeds: [0, 1, 2]"))
    (study.folder("teacher big") / STUDENT).unlink()

    def fails(folder: Path) -> None:
        if folder != study.folder("teacher big"):
            trained(folder)

    outcome = study.carry_out(Fake(fails))
    assert outcome[f"{PAIR}, KD, seed 2"].startswith("its teacher failed: ")
    assert Study(tmp_path).states() == [FINISHED] * 5


def test_a_study_that_ends_ends_its_runs_and_goes_on_later(tmp_path: Path) -> None:
    study = Study(tmp_path)

    def interrupted(folder: Path) -> None:
        if folder == study.folder(PLAIN[0]):
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "last.ckpt").touch()
            raise KeyboardInterrupt
        trained(folder)

    launcher = Fake(interrupted)
    with pytest.raises(KeyboardInterrupt):
        study.carry_out(launcher)
    assert launcher.stopped == 1
    again = Study(tmp_path)
    assert again.states() == [FINISHED, "interrupted", "new", "new", "new"]
    later = Fake(trained)
    assert set(again.carry_out(later).values()) == {FINISHED}
    assert again.started(later) == ORDER[1:]


def test_a_student_finds_its_teacher_where_their_data_differ(tmp_path: Path) -> None:
    # Such as a method that adds unlabelled images, or a teacher of other classes.
    study = Study(tmp_path, data=lambda run: "the teacher's" if not run.cells else "the student's")
    assert set(study.carry_out(Fake(trained)).values()) == {FINISHED}
    recipe = yaml.safe_load((study.folder(KD[0]) / RECIPE).read_text())
    assert Path(recipe["model"]["init_args"]["teacher"]["init_args"]["weights"]).exists()
