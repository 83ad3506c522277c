"""Small runs of each kind, by the code that resumes them for users: ``take_up``, and the scheduler of studies."""

from __future__ import annotations

import copy
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.strategies.launchers import multiprocessing

from kdlab.cli.study_commands import OpenStudy, reproduce
from kdlab.config.lightning_cli import resolve, take_up
from kdlab.config.run_folder import placed
from kdlab.files import locked
from kdlab.studies import worker
from kdlab.studies.launchers import WATCHED
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.preflight import Trials
from kdlab.studies.scheduler import Work
from tests.faults.forks import Job, alive
from tests.tiny_transformers import SENTENCES, sentences, tiny, tokenizer_folder

MLP = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [16], "num_classes": 10}}
WIDE = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [32], "num_classes": 10}}
SOFT = {"loss": {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 4.0}}}
RECIPE: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {"max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 5, "num_sanity_val_steps": 0},
    "checkpoint": {"every_n_train_steps": 4, "every_n_epochs": None},
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": {**MLP, "init_args": {**MLP["init_args"], "dropout": 0.2}},  # type: ignore[dict-item]
            "teacher": WIDE,
            "knowledge": {"soft": SOFT},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.1}},
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 16, "padding": 1, "train_size": 96}},
}


def recipe(kind: str, folder: Path) -> dict[str, Any]:
    """A recipe of a kind."""
    content = copy.deepcopy(RECIPE)
    options = content["model"]["init_args"]
    if kind == "cotraining":
        content["model"]["class_path"] = "kdlab.CoTrainer"
        networks = {"a": options.pop("student"), "b": options.pop("teacher")}
        content["model"]["init_args"] = {**options, "networks": networks}
    if kind == "cached":
        options["teacher_cache"] = {"folder": str(folder / "cache"), "views": 2}
    if kind == "text":
        content["data"] = _text(folder)
        network = {"path": str(folder / "bert"), "config": {"hidden_dropout_prob": 0.1}, "local_files_only": True}
        teacher = {"class_path": "kdlab.models.hugging_face", "init_args": network}
        cut = {"class_path": "kdlab.models.student_from_teacher", "init_args": {"teacher": teacher, "layers": 2}}
        options |= {"student": cut, "teacher": teacher}
    if kind == "ddp":
        content["trainer"] |= {"strategy": "ddp_fork", "devices": 2}
    return content


def _text(folder: Path) -> dict[str, Any]:
    """Write a teacher of four layers, its tokenizer and 54 sentences; return the data."""
    torch.set_num_threads(1)  # a fork does not copy OpenMP's threads, which transformers would wait for
    tiny("Bert").save_pretrained(folder / "bert")
    tokenizer = tokenizer_folder(folder / "bert")
    root = sentences(folder / "sentences", SENTENCES * 6)
    options = {"root": root, "tokenizer": tokenizer, "batch_size": 8, "group_by_length": True}
    return {"class_path": "kdlab.data.TextData", "init_args": {**options, "cache": str(folder / "tokens")}}


def job(kind: str, folder: Path) -> Job:
    """A run of a kind; its config is parsed once, here, and what it imports is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "study":
        run = _study(folder)
    else:
        file = folder / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe(kind, folder)))
        config = resolve(["-c", str(file)])

        def run(place: Path) -> None:
            multiprocessing._check_bad_cuda_fork = lambda: None  # type: ignore[attr-defined]  # no GPU is used
            take_up(placed(config, place), place)

    run(folder / "first")
    return run


def _study(folder: Path) -> Job:
    content = recipe("offline", folder)
    options = content["model"]["init_args"]
    options |= {"student": None, "teacher": None, "knowledge": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**content, "seed_everything": None}))
    kd = {"model": {"init_args": {"knowledge": {"soft": SOFT}}}}
    (folder / "kd.yaml").write_text(yaml.safe_dump(kd))
    study = {
        "title": "Kills",
        "recipe": {"configs": ["recipe.yaml"]},
        "networks": {"wide": WIDE, "small": MLP},
        "teachers": {"options": {"trainer.max_epochs": 2}},
        "pairs": [{"teacher": "wide", "student": "small"}],
        "methods": {"KD": {"configs": ["kd.yaml"]}},
        "seeds": [0],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    opened = OpenStudy(reproduce, folder / "study.yaml", [], folder / "parsed", None, [])
    trials = Trials(folder / ".trials.json")
    data = {run.key: trials.fingerprint(run.config) for run in opened.runs}

    def run(place: Path) -> None:
        work = Work(opened.runs, lambda run: data[run.key], place / "runs", Ledger(place / "ledger.csv"))
        with locked(place / ".lock", "another process is at the study"):
            outcome = work.carry_out(Forked(), lambda run: [], lambda running, outcome: None)
        assert set(outcome.values()) == {FINISHED}, outcome

    return run


class Forked:
    """One run at a time in a forked worker, which ends with its study as :class:`Local`'s do."""

    capacity: float = 1

    def __init__(self) -> None:
        self._running: tuple[Path, int, int] | None = None

    def start(self, folder: Path) -> None:
        """Start the run."""
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(read, 0)
            os.close(write)
            os.environ[WATCHED] = "1"
            os._exit(worker.main([str(folder)]))
        os.close(read)
        self._running = folder, pid, write

    def ended(self, seconds: float) -> list[Path]:
        """Return the folder of the run if it ended."""
        if self._running is None:
            return []
        folder, pid, write = self._running
        while alive(pid):
            time.sleep(0.01)
        os.waitpid(pid, 0)
        os.close(write)
        self._running = None
        return [folder]

    def stop(self) -> None:
        """End the run."""
        if self._running is not None:
            os.kill(self._running[1], signal.SIGTERM)
            self.ended(0)


def run_folders(kind: str, place: Path) -> list[Path]:
    """Return the folders of the runs, in order."""
    return sorted((place / "runs").glob("*-*")) if kind == "study" else [place]


def ledger(place: Path) -> list[dict[str, str]]:
    """Return what the ledger has of the runs that ended well, without times."""
    if not (place / "ledger.csv").exists():
        return []
    rows = [row for row in Ledger(place / "ledger.csv").rows if row["status"] == FINISHED]
    return [
        {name: row[name] for name in row if name not in ("seconds", "latency", "finished", "commit")} for row in rows
    ]
