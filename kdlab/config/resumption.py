"""How a run is named on the command line: its folder first, the command that resumes it last."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import SIGTERMException

from kdlab.config.run_folder import finish_loggers, last_checkpoint, run_folder

CHECKPOINT = "--ckpt_path"


def with_run_folders(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` with the last checkpoint for a run's folder in ``--ckpt_path=FOLDER``.

    Where they name neither a config nor a model, the run's config is put first.
    """
    changed = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals and index and arguments[index - 1] == CHECKPOINT:
            option, value = "", argument
        elif option != CHECKPOINT or not equals:
            continue
        config = Path(value) / "config.yaml"
        if value and config.is_file():
            changed[index] = f"{option}{equals}{last_checkpoint(Path(value))}"
            names = {other.partition("=")[0] for other in arguments}
            if not names & {"-c", "--config", "--model"}:
                changed.insert(bool(changed) and not changed[0].startswith("-"), f"--config={config}")
    return changed


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
    return f"Done: {shown(folder)}. To train longer: {command} --trainer.max_epochs=N"


def checkpoint_of(trainer: pl.Trainer) -> Path | None:
    """Return the checkpoint that a run is resumed from; ``None`` if it has none yet."""
    paths = [getattr(trainer.checkpoint_callback, name, "") for name in ("last_model_path", "best_model_path")]
    return next((Path(path) for path in paths if path and Path(path).is_file()), None)


def shown(path: Path) -> Path:
    """Return a path relative to the working directory if it is below it."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path
