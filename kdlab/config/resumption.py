"""What a run prints of itself: its folder first, the command that resumes it last."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch.optim.lr_scheduler import CosineAnnealingLR

from kdlab.config.run_arguments import CHECKPOINT, last_checkpoint
from kdlab.config.run_folder import finish_loggers, run_folder
from kdlab.modules.base import DistillationModule
from kdlab.modules.run_length import RunLength


@contextmanager
def announced(trainer: pl.Trainer, folder: Path | None) -> Iterator[None]:
    """Print the run's folder, and at the end, however the fit ends, the command that goes on from its last checkpoint.

    Ctrl-C exits with status 130 and SIGTERM with 143. An exception carries the command as a note (Python 3.11 on),
    which is the last line of its traceback.
    """
    if folder is None:
        yield
        return
    print(f"Run folder: {folder}", flush=True)
    start = time.time()
    try:
        yield
    except SystemExit as error:  # Lightning's, of Ctrl-C and SIGTERM
        print(resume_text(trainer, "Interrupted."), flush=True)
        by_signal = signal.SIGTERM if isinstance(error, SIGTERMException) else signal.SIGINT
        raise SystemExit(128 + by_signal) from error
    except Exception as error:
        path = checkpoint_of(trainer)
        if path is not None and path.stat().st_mtime >= start:  # else it failed where a resumed run would fail again
            getattr(error, "add_note", print)(resume_text(trainer, "Stopped."))
        raise
    finish_loggers(trainer)
    print(resume_text(trainer, ""), flush=True)


def resume_text(trainer: pl.Trainer, start: str) -> str:
    """Return the folder of a run and the command that resumes it; without a checkpoint only that there is none."""
    folder, path = run_folder(trainer), checkpoint_of(trainer)
    if path is None:
        return f"{start} {folder} has no checkpoint yet.".strip()
    short = path.resolve() == last_checkpoint(folder).resolve()
    command = (
        f"kdlab fit {CHECKPOINT}={shown(folder)}"
        if short
        else (f"kdlab fit -c {shown(folder)}/config.yaml {CHECKPOINT}={shown(path)}")
    )
    if start:
        return f"{start} Resume: {command}"
    option = "max_epochs" if trainer.max_steps == -1 else "max_steps"
    longer = "To train longer"
    if is_planned(trainer):
        longer = "Its schedule ends here, so a longer training begins anew"
        command = f"kdlab fit -c {shown(folder)}/config.yaml"
    return f"Done: {shown(folder)}. {longer}: {command} --trainer.{option}=N"


def is_planned(trainer: pl.Trainer) -> bool:
    """Return whether the learning rate or a weight was planned to end here: a longer run needs another plan."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    ended = any(isinstance(each, CosineAnnealingLR) and each.last_epoch >= each.T_max for each in schedulers)
    module = trainer.lightning_module
    return ended or (module.length if isinstance(module, DistillationModule) else RunLength()).counts(trainer)


def checkpoint_of(trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint that a run is resumed from; ``None`` if it has none yet."""
    paths = [getattr(trainer.checkpoint_callback, name, "") for name in ("last_model_path", "best_model_path")]
    return next((Path(path) for path in paths if path and Path(path).is_file()), None)


def shown(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path
