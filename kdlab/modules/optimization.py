"""One optimizer for all trainable parts, with groups where a part needs options of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from kdlab.compat import check_device_of_fused_step
from kdlab.errors import InputError, nearest
from kdlab.optimizers import DOT

NO_LENGTH = "A one-cycle learning rate needs a run of known length: set trainer.max_epochs or trainer.max_steps."


def groups(parameters: Mapping[str, nn.Parameter], options: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: one for each entry of ``options``, then all the rest.

    An entry's name is a parameter's name or the beginning of some, cut at a dot: ``"losses.hint"``, ``"student.fc"``. A
    parameter that fits several entries belongs to the longest.
    """
    if not parameters:
        raise InputError("Nothing can be trained: every parameter of the student and of the losses is frozen.")
    members: dict[str, list[nn.Parameter]] = {name: [] for name in options}
    rest: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        fitting = [entry for entry in members if name == entry or name.startswith(entry + ".")]
        (members[max(fitting, key=len)] if fitting else rest).append(parameter)
    for entry, group in members.items():
        if not group:
            parts = {name.rsplit(".", depth)[0] for name in parameters for depth in range(name.count(".") + 1)}
            raise InputError(
                f"Parameter group {entry!r} fits no trainable parameter; the nearest are {nearest(entry, parts)}."
            )
    result = [{"params": group, **options[entry]} for entry, group in members.items()]
    return [*result, {"params": rest}] if rest else result


def prepare(optimizer: torch.optim.Optimizer, module: nn.Module, trainer: pl.Trainer) -> None:
    """Check the optimizer against the Trainer, and let torch's own optimizers take a step in one kernel where they can.

    A step is not fused where the user chose otherwise, nor with a gradient scaler (fp16-mixed), where a fused step
    would exclude gradient clipping.
    """
    if isinstance(optimizer, DOT) and trainer.gradient_clip_val:
        raise InputError("DOT cannot be used with gradient clipping: drop trainer.gradient_clip_val.")
    known = type(optimizer) in (SGD, Adam, AdamW, Adagrad)
    sparse = any(getattr(part, "sparse", False) is True for part in module.modules())  # embeddings' gradients
    if not known or sparse or getattr(trainer.precision_plugin, "scaler", None) is not None:
        return
    for group in optimizer.param_groups:
        unset = group.get("fused") is None and group.get("foreach") is None
        plain = not (group.get("differentiable") or group.get("capturable") or group.get("dampening"))
        floats = all(
            p.is_floating_point() and p.device.type in ("cpu", "cuda") and type(p.data) is torch.Tensor  # no shard
            for p in group["params"]
        )
        if unset and plain and floats:
            group["fused"] = True
            check_device_of_fused_step(optimizer)
            if group.get("momentum"):
                # The fused step stops where some parameters have a momentum and others, which get their first gradient
                # later, do not yet; from zeros (without dampening) the first step is the same.
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def with_scheduler(
    optimizer: torch.optim.Optimizer,
    make: Callable[..., Any] | None,
    steps: int | None,
    monitor: Mapping[str, str],
) -> Any:
    """Return what Lightning's ``configure_optimizers`` returns.

    A ``OneCycleLR`` without its length gets the run's number of optimizer steps and is stepped each step; every other
    scheduler is stepped each epoch; a ``ReduceLROnPlateau`` watches the value that ``monitor`` has for its mode.
    """
    if make is None:
        return optimizer
    try:
        scheduler = make(optimizer)
    except ValueError as error:
        if "total_steps" not in str(error):
            raise
        if not steps:
            none = "A one-cycle learning rate needs at least one step: trainer.max_epochs or max_steps is 0."
            raise InputError(NO_LENGTH if steps is None else none) from error
        scheduler = make(optimizer, total_steps=steps)
    config = {"scheduler": scheduler, "interval": "step" if isinstance(scheduler, OneCycleLR) else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = getattr(scheduler, "monitor", monitor[scheduler.mode])
    return {"optimizer": optimizer, "lr_scheduler": config}


def check_length(trainer: pl.Trainer, steps: int | None) -> None:
    """Check that a one-cycle learning rate ends where it was planned to end, also in a run that is resumed."""
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, OneCycleLR) and config.scheduler.last_epoch > 0:
            planned = config.scheduler.total_steps
            if steps is None:
                raise InputError(NO_LENGTH)
            if planned < steps:
                raise InputError(
                    f"The one-cycle learning rate of the checkpoint was planned for {planned} steps, but this run "
                    f"takes {steps}: resume with the same trainer.max_epochs."
                )


def total_steps(trainer: pl.Trainer, batches: int | None) -> int | None:
    """Return how many optimizer steps the run takes; ``None`` if it has no end, or its loader no length.

    ``batches`` are those of an epoch, on this process. (Lightning's own estimate would build the loader before its
    position is restored: a resumed epoch would start over.)
    """
    limit, steps = trainer.limit_train_batches, math.inf
    if isinstance(limit, int):
        batches = limit if batches is None else min(batches, limit)
    elif batches is not None:
        batches = int(batches * limit)
    if batches is not None and trainer.max_epochs != -1:
        assert isinstance(trainer.max_epochs, int)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs
    steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    return int(steps) if math.isfinite(steps) else None
