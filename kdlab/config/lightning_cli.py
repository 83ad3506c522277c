"""LightningCLI with kdlab's defaults, for fit, validate, test and predict."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import yaml
from jsonargparse import get_loader, set_dumper, set_loader
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger
from pytorch_lightning.plugins.io import CheckpointIO

from kdlab.config.class_paths import check_config
from kdlab.config.config_merge import merge_configs
from kdlab.config.csv_log import Continued
from kdlab.config.located_yaml import Source
from kdlab.config.messages import quietly, silence
from kdlab.config.part_summary import PartSummary
from kdlab.config.resumption import announced
from kdlab.config.run_arguments import last_checkpoint
from kdlab.config.run_errors import about, construction_error, input_error
from kdlab.config.run_folder import (
    CSV,
    LAST,
    claimed_folder,
    continued_run,
    join_group,
    note_group,
    refuse_other_job,
    run_folder,
    run_loggers,
)
from kdlab.config.shorthands import expanded
from kdlab.config.step_checkpoint import ModelCheckpoint
from kdlab.errors import InputError
from kdlab.files import write_text
from kdlab.modules.base import DistillationModule
from kdlab.modules.checkpoint_io import AtomicCheckpointIO, check_checkpoint, check_fit, is_local

Config = Mapping[str, Any]
"""A resolved config: every option with its value, as plain dicts and lists."""

SILENT = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
QUIET_TRAINER = {**dict.fromkeys(SILENT, False), "num_sanity_val_steps": 2}
"""Options of a Trainer that writes nothing."""
QUIET = [f"--trainer.{name}={json.dumps(value)}" for name, value in QUIET_TRAINER.items()]


def _plain(value: Any) -> Any:
    """Return a copy with lists for tuples, as YAML would read it."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _load(text: str, load: Callable[[str], Any] = get_loader("yaml")) -> Any:  # noqa: B008
    """Read YAML with shorthands of networks; None is null, which jsonargparse passes to nested classes as this word.

    Raises:
        InputError: it has a key twice, or holds itself.
    """
    value = load(text)
    if isinstance(value, dict | list):
        Source(Path("an option"), text)
    return _null(expanded(value))


def _null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _null(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_null(inner) for inner in value]
    return None if value == "None" else value


set_loader("yaml", _load, (yaml.YAMLError,))
set_dumper("object", _plain)  # parser.dump without text


class _SaveConfig(pl.Callback):
    """Writes the resolved config beside the checkpoints as ``config.yaml`` and logs it."""

    def __init__(self, parser: LightningArgumentParser, config: Any, resolved: Config) -> None:
        self.resolved = resolved

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        folder = run_folder(trainer)
        if trainer.is_global_zero and not trainer.barebones:
            text = yaml.safe_dump(self.resolved, sort_keys=False, allow_unicode=True)
            write_text(folder / "config.yaml", f"# pytorch_lightning=={version('pytorch-lightning')}\n{text}")
            note_group(trainer, folder)
            for logger in trainer.loggers:
                logger.log_hyperparams(dict(self.resolved))


class KdlabCLI(LightningCLI):
    """Any LightningModule with any LightningDataModule by class path; ``resolved`` is the config with every default."""

    resolved: dict[str, Any]
    checkpoint: dict[str, Any] | None = None  # what a run begins with: names and shapes are read before it
    _is_command = True  # not a run of a study, whose config is a dict
    _continued: Continued | None = None

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint's options as ``--checkpoint.*``."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{name}": value for name, value in LAST.items()})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and check the seed before it is set."""
        self._is_command = not isinstance(args, dict)
        super().parse_arguments(parser, args)
        chosen = self.config.get("subcommand")
        seed = (self.config[chosen] if chosen else self.config).get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            text = f"seed_everything is a whole number from 0 to {2**32 - 1}, not {seed}."
            raise InputError(text, key="seed_everything", value=str(seed))

    def before_instantiate_classes(self) -> None:
        """Dump the config, for the saved config and for ``save_hyperparameters``; check it, and read the checkpoint."""
        dumped = cast("Any", self.parser.dump(self.config, skip_none=False, skip_link_targets=False, format="object"))
        self.resolved = dumped[self.subcommand] if self.subcommand else dumped
        self.config_dump = self.resolved
        self.save_config_kwargs = {"resolved": self.resolved}
        check_config(self.resolved)
        path = self.resolved.get("ckpt_path")
        words = path in ("best", "last", "hpc") or str(path).startswith("registry")
        if path is not None and not words and is_local(path) and self.resolved["weights_only"] is not False:
            with about("ckpt_path", str(path)):
                self.checkpoint = check_checkpoint(Path(path), resume=self.subcommand == "fit")
        if path is not None and not words and is_local(path) and self.subcommand == "fit":
            self._continued = continued_run(Path(path), self.checkpoint)

    def _parse_ckpt_path(self) -> None:
        """Leave the config as it is: Lightning would change it to the hyperparameters in a checkpoint."""

    def instantiate_classes(self) -> None:
        """Build trainer, module and data; what a constructor raises becomes an :class:`InputError`."""
        try:
            super().instantiate_classes()
        except Exception as error:
            raise input_error(error) or construction_error(error) or error from error

    def fit(self, **options: Any) -> None:
        """Train in a folder that no other run uses; one that is refused before its first step leaves none."""
        trainer = self.trainer
        for name in ("max_epochs", "max_steps", "limit_train_batches"):
            if getattr(trainer, name) == 0:
                raise InputError(f"trainer.{name} is 0: nothing would be trained.", key=f"trainer.{name}")
        if not self.resolved["ckpt_path"]:
            refuse_other_job(trainer)
        join_group(trainer, self.resolved["ckpt_path"])
        with claimed_folder(trainer) as folder, announced(trainer, folder if self._is_command else None):
            trainer.fit(**options)

    def before_test(self) -> None:
        """Check that the checkpoint fits the networks."""
        if self.checkpoint and isinstance(self.model, DistillationModule):
            with about("ckpt_path", str(self.resolved["ckpt_path"])):
                check_fit(self.model, self.model.learners.values(), self.checkpoint, self.resolved["ckpt_path"])
        self.checkpoint = None

    before_fit = before_validate = before_predict = before_test

    def validate(self, **options: Any) -> None:
        """Evaluate on the validation set; see ``_evaluate``."""
        self._evaluate("validate", options)

    def test(self, **options: Any) -> None:
        """Evaluate on the test set; see ``_evaluate``."""
        self._evaluate("test", options)

    def _evaluate(self, command: str, options: dict[str, Any]) -> None:
        """Run an evaluation and print where its values are: ``test.csv`` in the checkpoint's run, else a CSV log."""
        from kdlab.config.predictions import folder_of, write_rows

        trainer, folder = self.trainer, folder_of(self.resolved)
        log = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
        path = None if log is None else Path(log.log_dir) / "metrics.csv"
        if log is not None and folder is not None:
            path = folder / f"{command}.csv"
            trainer.loggers = [logger for logger in trainer.loggers if logger is not log]  # it makes a new folder
        results = getattr(trainer, command)(**options)
        if path is None or not trainer.is_global_zero:
            return
        if folder is not None:
            values = {name: value for result in results for name, value in result.items()}
            write_rows([{"checkpoint": Path(self.resolved["ckpt_path"]).name, **values}], path)
        print(path)

    def predict(self, **options: Any) -> None:
        """Run the Trainer's predict and write ``predictions.csv`` into the run's folder; see ``sample_rows``."""
        if self.trainer.world_size > 1:
            text = "Predictions are numbered in the order of one process: set trainer.devices to 1."
            raise InputError(text, key="trainer.devices")
        from kdlab.config.predictions import Predictions, folder_of, write_rows

        folder, predictions = folder_of(self.resolved), Predictions()
        if folder:
            self.trainer.loggers = []  # which create a new folder, with nothing in it
        self.trainer.callbacks.append(predictions)  # type: ignore[attr-defined]
        self.trainer.predict(**{**options, "return_predictions": False})
        path = (folder or run_folder(self.trainer)) / "predictions.csv"
        write_rows(predictions.rows, path)
        print(path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        callbacks = list(callbacks)
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, pl.callbacks.ModelCheckpoint)]
        if config.get("barebones"):  # Lightning's mode for timing: it refuses what kdlab adds
            callbacks.clear()
            if isinstance(config.get("logger"), CSVLogger):
                config["logger"] = None
        if loggers := [logger for logger in _listed(config.get("logger")) if isinstance(logger, Logger)]:
            config["logger"] = run_loggers(loggers, Path(config.get("default_root_dir") or "runs"), self._continued)
        if isinstance(self.model, DistillationModule) and config.get("enable_model_summary") is not False:
            config["enable_model_summary"] = False
            if not config.get("barebones"):
                callbacks.append(PartSummary())
        config["plugins"] = _listed(config.get("plugins"))
        if not any(isinstance(plugin, CheckpointIO) for plugin in config["plugins"]):
            config["plugins"].append(AtomicCheckpointIO())
        bars = [callback for callback in _listed(config.get("callbacks")) if isinstance(callback, ProgressBar)]
        if config.get("enable_progress_bar") is not False and not bars and not config.get("barebones"):
            from kdlab.config.progress_bar import StudentBar

            callbacks.append(StudentBar())
        return super()._instantiate_trainer(config, callbacks)


class _ParsedOnly(KdlabCLI):
    def instantiate_classes(self) -> None:
        """Build nothing."""


def build(
    arguments: Sequence[str] | Config, *, run: bool = True, save_config: bool = True, kind: type[KdlabCLI] = KdlabCLI
) -> KdlabCLI:
    """Build trainer, module and data from a command line, or from a resolved config, and run the command (``fit``).

    With ``save_config`` a fit writes ``config.yaml``. An :class:`InputError` names the wrong key and the nearest ones.
    """
    args: Any
    if isinstance(arguments, Mapping):
        args = {"subcommand": "fit", "fit": _plain(arguments)} if run else _plain(arguments)
    else:
        args = merge_configs(arguments)
        if args == list(arguments) == sys.argv[1:]:
            args = None  # DDP starts its other processes from sys.argv
    silence()
    try:
        return kind(
            model_class=pl.LightningModule,
            datamodule_class=pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=_SaveConfig if save_config else None,  # type: ignore[arg-type]
            seed_everything_default=0,
            trainer_defaults={"logger": CSV, "default_root_dir": "runs"},
            parser_kwargs={"exit_on_error": False, "allow_abbrev": False},
            args=args,
            run=run,
        )
    except Exception as error:
        if refused := input_error(error, () if isinstance(arguments, Mapping) else arguments):
            raise refused from error
        raise


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the config of arguments of ``kdlab fit`` with every default; nothing is built."""
    with quietly():
        return build(arguments, run=False, save_config=False, kind=_ParsedOnly).resolved


def take_up(config: Config, folder: Path) -> KdlabCLI:
    """Train a resolved config whose checkpoints are in ``folder``, from the last of them if there is one."""
    last = last_checkpoint(folder)
    if not last.exists():  # else the folder of a run stopped before its first checkpoint would count as another run's
        (folder / "config.yaml").unlink(missing_ok=True)
    return build({**config, "ckpt_path": str(last) if last.exists() else None})


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value] if value else []
