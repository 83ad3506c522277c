"""fit, validate, test and predict: LightningCLI with kdlab's defaults."""

from __future__ import annotations

import csv
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentError
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor

from kdlab.config.atomic_checkpoint import WholeCheckpoints
from kdlab.config.config_merge import laid_over, with_data
from kdlab.config.parser_errors import sentence
from kdlab.errors import InputError, failed_import, refusal_in

CSV = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}
# One file, written anew after each epoch. (With save_last and save_top_k=0 Lightning 2.6 writes it at the end alone.)
# After each epoch, also where not each is validated.
LAST = {
    "filename": "last",
    "save_top_k": 1,
    "enable_version_counter": False,
    "every_n_epochs": 1,
    "save_on_train_epoch_end": True,
}


class Recipe(SaveConfigCallback):
    """Writes the resolved config beside the checkpoints as ``config.yaml``, and gives it to every logger."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Nothing yet: the run's folder is known when the fit starts."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and log the config."""
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        text = self.parser.dump(self.config, skip_none=False)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


def run_folder(trainer: pl.Trainer) -> Path:
    """Where a run keeps its checkpoints and its config."""
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
        return Path(checkpoint.dirpath).parent
    return Path(trainer.log_dir or trainer.default_root_dir)


class KdlabCLI(LightningCLI):
    """Any LightningModule with any LightningDataModule by class path; kdlab's digits if no data is named."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The checkpoint's options as ``--checkpoint.*``."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in LAST.items()})

    def before_fit(self) -> None:
        """Keep a new run out of an old one's folder, and an old run's numbers when it is resumed in its own.

        Raises:
            InputError: the folder belongs to another run.
        """
        self._find_checkpoint()
        if not self.trainer.is_global_zero or not isinstance(self.trainer.logger, CSVLogger):
            return
        folder = Path(self.trainer.logger.log_dir)
        numbers = folder / "metrics.csv"
        if not self._get(self.config, "ckpt_path"):
            if (folder / "config.yaml").exists():
                last = folder / "checkpoints" / "last.ckpt"
                way = f"resume it with --ckpt_path={last}" if last.exists() else "it left no checkpoint, so delete it"
                raise InputError(
                    f"{str(folder)!r} holds a run already: {way}, or give this one another logger.init_args.version."
                )
        elif numbers.exists():  # CSVLogger would delete them
            earlier = len(list(folder.glob("metrics.*.csv")))
            numbers.rename(folder / f"metrics.{earlier}.csv")

    def _find_checkpoint(self) -> None:
        """Refuse the path of a checkpoint that is not there; Lightning has words, such as "last", for others."""
        path = self._get(self.config, "ckpt_path")
        if isinstance(path, str) and path.endswith(".ckpt") and "://" not in path and not Path(path).is_file():
            raise InputError(f"There is no checkpoint {path!r}: ckpt_path is the file to go on from or to evaluate.")

    before_validate = before_test = before_predict = _find_checkpoint

    def predict(self, **options: Any) -> None:
        """Run the Trainer's predict and write ``predictions.csv``: sample, class, confidence."""
        batches = cast("list[Tensor]", self.trainer.predict(**options) or [])
        confidence, classes = torch.cat([batch.float() for batch in batches]).softmax(-1).max(-1)
        rank = f".{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / f"predictions{rank}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["sample", "class", "confidence"])
            for sample, (name, share) in enumerate(zip(classes.tolist(), confidence.tolist(), strict=True)):
                rows.writerow([sample, name, round(share, 6)])
        print(path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        callbacks = list(callbacks)
        if config.get("enable_checkpointing") is False:
            callbacks = [each for each in callbacks if not isinstance(each, ModelCheckpoint)]
        plugins = config.get("plugins") or []
        config["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins])]
        if not any(isinstance(each, CheckpointIO) for each in config["plugins"]):
            config["plugins"].append(WholeCheckpoints())
        given = config.get("callbacks") or []
        bars = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, ProgressBar)]
        if config.get("enable_progress_bar") is not False and not bars and not config.get("barebones"):
            from kdlab.config.progress_bar import StudentBar

            callbacks.append(StudentBar())
        return super()._instantiate_trainer(config, callbacks)


def run(command: str, arguments: Sequence[str]) -> None:
    """Parse, build and run one of the Trainer's commands."""
    build([command, *arguments])


def build(
    arguments: Sequence[str], *, run: bool = True, save_config: bool = True, kind: type[KdlabCLI] = KdlabCLI
) -> KdlabCLI:
    """The CLI, with everything built from ``arguments``; with ``run`` the command is carried out.

    Raises:
        InputError: the config does not fit; the message names the key at fault and the nearest right ones.
    """
    called = list(arguments) == sys.argv[1:]  # DDP starts its other processes from sys.argv
    laid = with_data(laid_over(arguments))
    called = called and laid == list(arguments)
    _quieten()
    try:
        return kind(
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=Recipe if save_config else None,
            seed_everything_default=0,
            trainer_defaults={"logger": CSV, "default_root_dir": "runs"},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=None if called else laid,
            run=run,
        )
    except ArgumentError as error:
        raise failed_import(error) or InputError(sentence(error)) from error
    except MisconfigurationException as error:  # the Trainer's own refusals: no GPU here, options that exclude another
        raise InputError(str(error).strip().splitlines()[0]) from error
    except (ValueError, TypeError) as error:  # jsonargparse wraps what a constructor raises
        if refused := refusal_in(error):
            raise refused from error
        raise
    except (ImportError, SyntaxError) as error:  # in a file that the config names
        if broken := failed_import(error):
            raise broken from error
        raise


def _quieten() -> None:
    """Keep back what Lightning says that no user of kdlab can act on."""
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", r"Precision .* is not supported by the model summary")
    warnings.filterwarnings("ignore", "Experiment logs directory .* exists")  # before_fit has seen to it
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # likewise
    warnings.filterwarnings("ignore", "The dirpath has changed from")  # a resumed run gets a folder of its own
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )


def take_up(recipe: dict[str, Any], folder: Path) -> KdlabCLI:
    """Train a whole recipe whose checkpoints are in ``folder``, from the last of them if there is one."""
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        (folder / "config.yaml").unlink(missing_ok=True)  # it was stopped before its first checkpoint
    resumed = [f"--ckpt_path={last}"] if last.exists() else []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it goes on there
        return build(["fit", f"--config={yaml.safe_dump(recipe, sort_keys=False)}", *resumed])


def finish_loggers(trainer: pl.Trainer) -> None:
    """Close the runs of loggers that have to be closed, such as those of Weights & Biases."""
    for logger in trainer.loggers:
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()
