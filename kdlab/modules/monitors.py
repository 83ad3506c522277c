"""Check that the values which callbacks and schedulers watch are logged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import Callback
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from kdlab.errors import InputError, nearest

PREFIXES = ("val/", "loss/", "weight/", "train/", "grad/")
"""Beginnings of the names of kdlab's values in a training."""
FORMS = (("loss/", ""), ("loss/", "_weighted"), ("weight/", ""))
"""Beginnings and endings of the names of a term's values."""
KNOWN = ("pytorch_lightning", "lightning", "kdlab")


class MonitorCheck(Callback):
    """Refuses a monitor that is never logged: what is plain before anything is written, else after sanity checking.

    A callback or a module of the user's own may log any value; a monitor that is not logged is then a warning.
    """

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Check prefixes, the names of terms, and whether there is a validation."""
        if stage != "fit" or _others_log(trainer, pl_module):
            return
        names = ["task", *pl_module.knowledge]
        terms = ["loss/total", *(f"{x}{name}{end}" for name in names for x, end in FORMS)]
        usual = [*(f"val/{name}" for name in ("loss", *pl_module.shown)), *terms]
        for owner, name in _monitors(trainer, pl_module):
            if not name.startswith(PREFIXES) or (name.startswith(("loss/", "weight/")) and name not in terms):
                raise _unknown(owner, name, usual)
            if name.startswith("val/"):
                if not trainer.enable_validation:
                    raise InputError(f"{owner} watches {name!r}, but there is no validation.", key="monitor")
                trainer.num_sanity_val_steps = trainer.num_sanity_val_steps or 1  # shows what is logged

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with what the validation logged."""
        logged = dict.fromkeys([*trainer.callback_metrics, *trainer.logged_metrics])
        for owner, name in _monitors(trainer, pl_module):
            if name in logged or name.startswith(PREFIXES[1:]):  # those of a training come later
                continue
            error = _unknown(owner, name, logged)
            if not _others_log(trainer, pl_module):
                raise error
            rank_zero_warn(f"{error} A callback of yours may log it later.")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Report before the training that the last validation will not be of the final weights."""
        if why := pl_module.length.unvalidated_end(trainer):
            rank_zero_info(
                f"No validation follows the last step, since {why}: the last val/ values, if there are any, will be of "
                "earlier weights. Test the checkpoint, or change that."
            )


def _unknown(owner: str, name: str, names: Iterable[str]) -> InputError:
    key = "model.lr_scheduler.monitor" if owner == "The scheduler" else "monitor"
    return InputError(
        f"{owner} watches {name!r}, which is not logged; the nearest are {nearest(name, names, 3)}.", key=key
    )


def _monitors(trainer: pl.Trainer, module: Any) -> Iterator[tuple[str, str]]:
    """Yield what is watched, with the class that watches it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        monitor = getattr(callback, "monitor", None)
        if isinstance(monitor, str) and getattr(callback, "strict", True):
            yield type(callback).__name__, monitor
    for config in trainer.lr_scheduler_configs:  # which are there after the setup
        if config.reduce_on_plateau and config.monitor:
            yield "The scheduler", config.monitor
    scheduler = getattr(module, "lr_scheduler", None)
    if isinstance(scheduler, partial) and isinstance(monitor := scheduler.keywords.get("monitor"), str):
        yield "The scheduler", monitor


def _others_log(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Return whether a class that is neither Lightning's nor kdlab's may log values."""
    return any(type(part).__module__.split(".")[0] not in KNOWN for part in [module, *trainer.callbacks])  # type: ignore[attr-defined]
