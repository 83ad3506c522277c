"""Run folders: where checkpoints, configs and logs of a run are kept, and how a run is resumed there."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info

from kdlab.compat import wandb_options
from kdlab.errors import InputError
from kdlab.files import atomic_write, write_text

GROUP = "wandb_group.txt"
CSV = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}
# One file, replaced after each epoch, validated or not. With save_top_k=0, Lightning 2.6 writes last.ckpt at the end
# only: it needs another checkpoint of the same step first.
KEPT = {"save_top_k": 1, "enable_version_counter": False}
LAST = {"filename": "last", **KEPT, "every_n_epochs": 1, "save_on_train_epoch_end": True}
RESUMABLE = {"save_last": True, **KEPT, "save_weights_only": False}


def run_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of a run's checkpoints and config."""
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
        return Path(checkpoint.dirpath).parent
    return Path(trainer.log_dir or trainer.default_root_dir)


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint that a run is resumed from; it need not exist."""
    return folder / "checkpoints" / "last.ckpt"


def claim_folder(trainer: pl.Trainer, resumed: bool) -> None:
    """Check that a new run has a folder of its own; a resumed one keeps its earlier numbers in ``metrics.N.csv``."""
    if not trainer.is_global_zero or not isinstance(trainer.logger, CSVLogger):
        return
    folder = Path(trainer.logger.log_dir)
    if not resumed and (folder / "config.yaml").exists():
        last = last_checkpoint(folder)
        way = f"resume it with --ckpt_path={last}" if last.exists() else "it left no checkpoint, so delete it"
        hint = f"{way}, or give this one another logger.init_args.version"
        raise InputError(f"{str(folder)!r} holds a run already: {hint}.", key="logger.init_args.version")
    if resumed and (folder / "metrics.csv").exists():  # CSVLogger would delete it
        (folder / "metrics.csv").rename(folder / f"metrics.{len(list(folder.glob('metrics.*.csv')))}.csv")


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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes beside the target and renames.

    Lightning writes to the system's temporary folder and moves the file; where that is another disk the move is a copy,
    and a kill during the copy leaves half a file in place of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        if "://" in str(path):  # object stores have transactions of their own
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def finish_loggers(trainer: pl.Trainer) -> None:
    """Close loggers that have to be closed, such as those of Weights & Biases."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()
