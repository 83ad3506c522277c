"""Run folders: where checkpoints, configs and logs of a run are kept, and how a run is resumed there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info

from kdlab.compat import has_version, next_version, wandb_options
from kdlab.config import csv_log
from kdlab.config.run_arguments import last_checkpoint
from kdlab.errors import InputError
from kdlab.files import locked, write_text

GROUP = "wandb_group.txt"
CSV = {"class_path": "kdlab.config.csv_log.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}
# One file, replaced after each epoch, validated or not. With save_top_k=0, Lightning 2.6 writes last.ckpt at the end
# only: it needs another checkpoint of the same step first.
KEPT = {"save_top_k": 1, "enable_version_counter": False}
LAST = {"filename": "last", **KEPT, "every_n_epochs": 1, "save_on_train_epoch_end": True}
LOCK = ".training.lock"
RESUMABLE = {"save_last": True, **KEPT, "save_weights_only": False}


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a run's checkpoints and config."""
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
        return Path(checkpoint.dirpath).parent
    return Path(trainer.log_dir or trainer.default_root_dir)


def continued_run(path: Path, checkpoint: Mapping[str, Any] | None) -> csv_log.Continued | None:
    """Return where the run of a checkpoint goes on; ``None`` if the checkpoint is in no run's folder.

    Args:
        path: of the checkpoint.
        checkpoint: its content; ``None`` if it was not read, and then the log keeps all rows.
    """
    folder = path.parent.parent
    if path.parent.name != last_checkpoint(folder).parent.name or not (folder / "config.yaml").is_file():
        return None
    if checkpoint is None:
        return csv_log.Continued(folder)
    return csv_log.Continued(folder, checkpoint["global_step"], (checkpoint.get("kdlab_log") or {}).get("row"))


def run_loggers(loggers: Sequence[Logger], root: Path, continued: csv_log.Continued | None) -> list[Logger]:
    """Return the loggers of a run: a CSV log comes first, and is added where there are others alone.

    A resumed run goes on in its folder, unless its CSV log was given another ``version``.
    """
    logs = [logger for logger in loggers if isinstance(logger, CSVLogger)] or [csv_log.CSVLogger(root, name="")]
    others = [logger for logger in loggers if not isinstance(logger, CSVLogger)]
    if continued is not None:
        first, folder = logs[0], continued.folder
        if not has_version(first) or Path(first.log_dir).resolve() == folder.resolve():
            log = csv_log.CSVLogger(folder.parent, name="", version=folder.name)
            log.continued = continued
            logs[0] = log
    return [*logs, *others]


@contextmanager
def claimed_folder(trainer: pl.Trainer) -> Iterator[Path | None]:
    """Give a run a folder of its own, locked; what fails before the first step leaves no new folder.

    Yields:
        The folder; ``None`` in other processes than the first, and without a CSV log.
    """
    logger = trainer.logger
    if not trainer.is_global_zero or not isinstance(logger, CSVLogger):
        yield None
        return
    folder, created = _create(logger)
    try:
        with locked(folder / LOCK, f"another process is training in {str(folder)!r}"):
            if getattr(logger, "continued", None) is None:
                _check(folder)
            yield folder
    except BaseException:
        if created and trainer.fit_loop.total_batch_idx < 0:
            shutil.rmtree(folder, ignore_errors=True)
            for parent in created[1:]:
                with suppress(OSError):  # another run may be in there
                    parent.rmdir()
        raise


def _create(logger: CSVLogger) -> tuple[Path, list[Path]]:
    """Create a run's folder; return it and all new folders. A version that was not chosen is the next free one."""
    chosen = has_version(logger)
    while True:
        folder = Path(logger.log_dir)
        created = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=chosen)
        except FileExistsError as error:
            if chosen or not folder.is_dir():
                raise InputError(f"The run's folder {str(folder)!r} cannot be made: a file is there.") from error
            next_version(logger)  # another process was quicker
        except OSError as error:
            raise InputError(f"The run's folder {str(folder)!r} cannot be made: {error.strerror}.") from error
        else:
            return folder, created


def _check(folder: Path) -> None:
    if (folder / "config.yaml").exists():
        last = last_checkpoint(folder)
        way = f"resume it with --ckpt_path={folder}" if last.exists() else "it left no checkpoint, so delete it"
        hint = f"{way}, or give this one another logger.init_args.version"
        raise InputError(f"{str(folder)!r} holds a run already: {hint}.", key="logger.init_args.version")


def refuse_other_job(trainer: pl.Trainer) -> None:
    """Refuse a new SLURM job in the root folder of a requeued one, which Lightning would resume instead."""
    root = Path(trainer.default_root_dir)
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    if SLURMEnvironment.detect() and not requeued and (others := sorted(root.glob("hpc_ckpt_*"))):
        text = f"{str(others[0])!r} is of another SLURM job, which this one would resume: give it a folder of its own."
        raise InputError(text, key="trainer.default_root_dir")


def join_group(trainer: pl.Trainer, checkpoint: str | None) -> None:
    """Put W&B runs that have no group into one of their own; a resumed run into that of the run that it continues.

    An offline run cannot be continued as itself: a resumed one is a further run.
    """
    known = Path(checkpoint).parent.parent / GROUP if checkpoint else Path()
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            options = wandb_options(logger)
            if options.get("anonymous") is None:  # Lightning always passes it on, and W&B warns of it
                options.pop("anonymous", None)
            if not options.get("group"):
                options["group"] = known.read_text().strip() if known.is_file() else f"kdlab-{uuid4().hex[:8]}"
            if checkpoint:
                rank_zero_info(f"Weights & Biases: this run continues in the group {options['group']!r}.")


def note_group(trainer: pl.Trainer, folder: Path) -> None:
    """Write the group of the W&B run into the run's folder."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            write_text(folder / GROUP, f"{wandb_options(logger)['group']}\n")


def placed(config: Mapping[str, Any], folder: Path, loggers: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a resolved config with checkpoints and CSV log in ``folder``, further loggers, and no output."""
    csv = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
    trainer: dict[str, Any] = {"logger": [{**CSV, "init_args": csv}, *loggers]}
    trainer |= {"enable_checkpointing": True, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoint = {**config["checkpoint"], "dirpath": str(last_checkpoint(folder).parent), **RESUMABLE}
    return {**config, "trainer": {**config["trainer"], **trainer}, "checkpoint": checkpoint}


def finish_loggers(trainer: pl.Trainer) -> None:
    """Close loggers that have to be closed, such as those of Weights & Biases."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()
