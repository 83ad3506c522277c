"""Worker of a study: ``python -m kdlab.studies.worker FOLDER`` trains what its ``recipe.yaml`` says."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml

from kdlab.config.lightning_cli import finish_loggers, take_up
from kdlab.errors import InputError, refusal_in
from kdlab.export.student import student_of
from kdlab.models.weights import save_tensors
from kdlab.studies.environment import versions
from kdlab.studies.files import read_json, write_json
from kdlab.studies.launchers import WATCHED
from kdlab.studies.ledger import FINISHED
from kdlab.studies.locks import locked
from kdlab.studies.run_callback import STATUS, Record
from kdlab.studies.runs import RECIPE, RESULT, STUDENT

BATCHNORM = ("running_mean", "running_var", "num_batches_tracked")
"""State of a network that is no parameter."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test, write the student and then ``result.json``; 1 if it failed, with the reason in ``status.json``."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    folder = Path(name)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if os.environ.pop(WATCHED, ""):
        threading.Thread(target=_die_with_the_study, daemon=True).start()
    with contextlib.ExitStack() as stack:
        if "LOCAL_RANK" not in os.environ:  # of several processes of a run the first holds the lock
            # A run is started again on another machine before the process of the lost one may have noticed.
            stack.enter_context(locked(folder / ".lock", f"another process is training {str(folder)!r}", wait=True))
        try:
            if read_json(folder / RESULT) is None:
                _train(folder)
        except BaseException as error:
            refused = refusal_in(error)
            said = str(refused or f"{type(error).__name__}: {error}").strip()
            write_json(folder / STATUS, {"state": "failed", "error": said.splitlines()[0] if said else repr(error)})
            if refused is None:
                traceback.print_exc()
            return 1
        if "LOCAL_RANK" not in os.environ:
            write_json(folder / STATUS, {**(read_json(folder / STATUS) or {}), "state": FINISHED})
    return 0


def _train(folder: Path) -> None:
    recipe: dict[str, Any] = yaml.safe_load((folder / RECIPE).read_text())
    cli = take_up(recipe, folder)
    trainer = cli.trainer
    if trainer.interrupted:
        raise InputError("The run was interrupted; it goes on from its last epoch when the study is called again.")
    (tested,) = trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    finish_loggers(trainer)  # W&B may still be writing, and a run is over when its result is there
    result = _result(trainer, tested)
    with contextlib.suppress(InputError):  # of an ensemble there is no one network to take out
        student = student_of(folder / "checkpoints" / "last.ckpt")
        trained = {name: value for name, value in student.items() if name.rsplit(".", 1)[-1] not in BATCHNORM}
        result["parameters"] = sum(value.numel() for value in trained.values())
        save_tensors(student, folder / STUDENT)
    write_json(folder / RESULT, result)


def _result(trainer: pl.Trainer, tested: Mapping[str, float]) -> dict[str, Any]:
    record = next(each for each in trainer.callbacks if isinstance(each, Record))  # type: ignore[attr-defined]
    found = {name.removeprefix("test/"): float(value) for name, value in tested.items()}
    best = record.best()
    return {
        "accuracy": found.get("deployed_accuracy", found.get("student_accuracy")),
        "best_epoch": best[0] if best else None,
        "best_accuracy": best[1] if best else None,
        "agreement": found.get("agreement"),
        "kl_to_teacher": found.get("kl_to_teacher"),
        "ece": found.get("deployed_ece", found.get("student_ece")),
        "teacher_accuracy": found.get("teacher_accuracy"),
        "ensemble_accuracy": found.get("ensemble_accuracy"),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "seconds": record.seconds,
        "accuracies": record.accuracies,
        "test": found,
        **versions(trainer.strategy.root_device),
    }


def _die_with_the_study() -> None:
    """Nobody would look at the result of a run whose study was killed, and the study's next call takes the run up."""
    while os.read(0, 1):  # not sys.stdin: its lock would be held when Python ends
        pass
    os._exit(1)


if __name__ == "__main__":
    raise SystemExit(main())
