"""Worker of a study: ``python -m kdlab.studies.worker FOLDER`` trains the config in the folder's ``recipe.yaml``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

from kdlab.config.lightning_cli import take_up
from kdlab.config.run_arguments import last_checkpoint
from kdlab.config.run_folder import finish_loggers
from kdlab.config.trained_run import file_name, trained_run
from kdlab.errors import InputError, refusal_in
from kdlab.export.formats import FORMATS, size_of
from kdlab.export.student import student_of
from kdlab.export.timing import SAMPLES, one_sample
from kdlab.files import locked, read_json, write_json
from kdlab.models.weights import save_tensors
from kdlab.outputs import Batch
from kdlab.studies.columns import COLUMNS, Trained
from kdlab.studies.environment import versions
from kdlab.studies.launchers import WATCHED, exit_with_the_study
from kdlab.studies.ledger import FAILED, FINISHED
from kdlab.studies.run_callback import STATUS, Record
from kdlab.studies.runs import EXPORT, RECIPE, RESULT, STUDENT


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, test, write the student and then ``result.json``; return 1 on failure, with the reason in the status."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    folder = Path(name)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if os.environ.pop(WATCHED, ""):
        threading.Thread(target=exit_with_the_study, daemon=True).start()
    first = "LOCAL_RANK" not in os.environ  # of the run's processes
    with contextlib.ExitStack() as stack:
        if first:  # a run may be restarted elsewhere before the process of the lost worker has ended
            stack.enter_context(locked(folder / ".lock", f"another process is training {str(folder)!r}", wait=True))
        try:
            if read_json(folder / RESULT) is None:
                _train(folder)
        except BaseException as error:
            refused = refusal_in(error)
            reason = str(refused or f"{type(error).__name__}: {error}").strip() or repr(error)
            write_json(folder / STATUS, {"state": FAILED, "error": reason.splitlines()[0]})
            if refused is None:
                traceback.print_exc()
            return 1
        if first:
            write_json(folder / STATUS, {**(read_json(folder / STATUS) or {}), "state": FINISHED})
    return 0


def _train(folder: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((folder / RECIPE).read_text())
    cli = take_up(config, folder)
    trainer = cli.trainer
    if trainer.interrupted:
        raise InputError("The run was interrupted; it is resumed from its last epoch when the study is called again.")
    (tested,) = trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    if not trainer.is_global_zero:
        return
    finish_loggers(trainer)  # W&B may still be writing, and a run is over when its result is there
    student = {}
    with contextlib.suppress(InputError):  # an ensemble has no single network
        student = student_of(last_checkpoint(folder))
        save_tensors(student, folder / STUDENT)
    metrics = {name.removeprefix("test/"): float(value) for name, value in tested.items()}
    record = next(callback for callback in trainer.callbacks if isinstance(callback, Record))  # type: ignore[attr-defined]
    environment = versions(trainer.strategy.root_device, trainer.world_size)
    time = _latency(cli.model, cli.datamodule)
    trained = Trained(metrics, record, trainer, student, environment, time, _exported(folder))
    result = {column.name: column.measured(trained) for column in COLUMNS if column.measured}
    write_json(folder / RESULT, {**result, "accuracies": record.accuracies, "test": metrics})


def _latency(module: pl.LightningModule, data: pl.LightningDataModule) -> float | None:
    """Return the time of one sample; ``None`` for data without the attribute ``eval_batch_size``.

    What fails here leaves the time out and not the run, which is trained and tested by now.
    """
    if not hasattr(data, "eval_batch_size"):
        return None
    data.eval_batch_size = 1
    module.cpu().eval()
    batches = (data.on_after_batch_transfer(raw, 0) for raw in data.test_dataloader())
    try:
        return one_sample(module, (Batch.of(batch).inputs for batch in batches))
    except Exception:
        logging.getLogger(__name__).warning("The time of one sample could not be measured:", exc_info=True)
        return None


def _exported(folder: Path) -> dict[str, float | None]:
    """Export the student as the study says, and return accuracy, size and time of the file in its runtime.

    What fails here leaves the columns out and not the run. What int8 loses is for the table to show, and has no bound.
    """
    if not (options := read_json(folder / EXPORT)):
        return {}
    format, int8 = options["format"], bool(options.get("int8"))
    path = folder / file_name(format, int8)
    try:
        path.unlink(missing_ok=True)  # of a call that was killed
        run = trained_run(folder)
        checked = run.export(path, format, int8=int8, calibrate=options.get("calibrate", 512), points=100)
        torch.set_num_threads(1)  # which the runtime takes over when it loads
        inputs = (sample.file_inputs[:1] for sample in run.samples(False, SAMPLES))
        time = one_sample(FORMATS[format].load(path), inputs)
    except Exception:
        logging.getLogger(__name__).warning("The student could not be exported:", exc_info=True)
        return {}
    return {"accuracy": checked.scores.get("accuracy"), "megabytes": size_of(path, format) / 1e6, "latency": time}


if __name__ == "__main__":
    raise SystemExit(main())
