"""One optimiser for all trainable parts, with groups where a part needs options of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from kdlab.errors import InputError, nearest
from kdlab.modules.gradient_split import refuse_clipping

if TYPE_CHECKING:
    from kdlab.modules.base import DistillationModule


def groups(module: DistillationModule) -> list[dict[str, Any]]:
    """The optimiser's parameter groups: one for each entry of ``parameter_groups``, then all the rest.

    An entry's name is a parameter's name or the beginning of some, cut at a dot: ``"losses.hint"``, ``"student.fc"``. A
    parameter that fits several entries belongs to the longest.

    Raises:
        InputError: an entry fits no trainable parameter; nothing at all is trainable.
    """
    parameters = module.trainable()
    if not parameters:
        raise InputError("Nothing can be trained: every parameter of the student and of the losses is frozen.")
    members: dict[str, list[nn.Parameter]] = {name: [] for name in module.parameter_groups}
    rest: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        fitting = [entry for entry in members if name == entry or name.startswith(entry + ".")]
        (members[max(fitting, key=len)] if fitting else rest).append(parameter)
    for entry, found in members.items():
        if not found:
            parts = {name.rsplit(".", depth)[0] for name in parameters for depth in range(name.count(".") + 1)}
            raise InputError(
                f"Parameter group {entry!r} fits no trainable parameter; the nearest are {nearest(entry, parts)}."
            )
    result = [{"params": found, **module.parameter_groups[entry]} for entry, found in members.items()]
    return [*result, {"params": rest}] if rest else result


def configure(module: DistillationModule) -> Any:
    """What Lightning's ``configure_optimizers`` returns.

    A ``OneCycleLR`` without its length gets the run's number of optimiser steps and is stepped each step; every other
    scheduler is stepped each epoch; a ``ReduceLROnPlateau`` watches ``val/loss``, or with mode "max" the student's
    accuracy.
    """
    optimizer = module.optimizer(groups(module))
    refuse_clipping(module, optimizer)
    fuse(module, optimizer)
    if module.lr_scheduler is None:
        return optimizer
    try:
        scheduler = module.lr_scheduler(optimizer)
    except ValueError as error:
        if "total_steps" not in str(error):
            raise
        scheduler = module.lr_scheduler(optimizer, total_steps=optimizer_steps(module))  # type: ignore[call-arg]
    config: dict[str, Any] = {
        "scheduler": scheduler,
        "interval": "step" if isinstance(scheduler, OneCycleLR) else "epoch",
    }
    if isinstance(scheduler, ReduceLROnPlateau):
        watched = "val/loss" if scheduler.mode == "min" else "val/student_accuracy"
        config["monitor"] = getattr(scheduler, "monitor", watched)
    return {"optimizer": optimizer, "lr_scheduler": config}


def fuse(module: DistillationModule, optimizer: torch.optim.Optimizer) -> None:
    """Let torch's own optimisers do a step in one kernel where they can and the user said nothing else.

    Not with a gradient scaler (fp16-mixed), where a fused step would exclude gradient clipping.
    """
    own = type(optimizer) in (SGD, Adam, AdamW, Adagrad)
    sparse = any(getattr(part, "sparse", False) is True for part in module.modules())  # embeddings' gradients
    if not own or sparse or getattr(module.trainer.precision_plugin, "scaler", None) is not None:
        return
    for group in optimizer.param_groups:
        silent = group.get("fused") is None and group.get("foreach") is None
        plain = not (group.get("differentiable") or group.get("capturable") or group.get("dampening"))
        floats = all(each.is_floating_point() and each.device.type in ("cpu", "cuda") for each in group["params"])
        if silent and plain and floats:
            group["fused"] = True
            optimizer._need_device_dtype_check_for_fused = True  # type: ignore[attr-defined]
            if group.get("momentum"):
                # The fused step stops where some parameters have a momentum and others, which get their first gradient
                # later, do not yet; from zeros (without dampening) the first step is the same.
                for each in group["params"]:
                    optimizer.state[each]["momentum_buffer"] = torch.zeros_like(each)


def check_length(module: DistillationModule) -> None:
    """A one-cycle learning rate ends where it was planned to end, also in a run that is resumed.

    Raises:
        InputError: the run takes more steps than that.
    """
    for config in module.trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, OneCycleLR) and config.scheduler.last_epoch > 0:
            planned, steps = config.scheduler.total_steps, optimizer_steps(module)
            if planned < steps:
                raise InputError(
                    f"The one-cycle learning rate of the checkpoint was planned for {planned} steps, but this run "
                    f"takes {steps}: resume with the same trainer.max_epochs."
                )


def optimizer_steps(module: DistillationModule) -> int:
    """How many optimiser steps the run takes.

    Raises:
        InputError: the run has no end, or its loader no length.
    """
    trainer = module.trainer
    assert isinstance(trainer.max_epochs, int)
    batches = module.rehearsal.batches if module.rehearsal else None
    # Lightning's own estimate would build the loader before its position is restored: a resumed epoch would start over.
    if batches is None:
        steps = trainer.estimated_stepping_batches
    else:
        limit = trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        steps = (
            math.inf
            if trainer.max_epochs == -1
            else math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs
        )
        steps = steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
    if not math.isfinite(steps):
        raise InputError(
            "A one-cycle learning rate needs a run of known length: set trainer.max_epochs or trainer.max_steps."
        )
    if steps < 1:
        raise InputError("A one-cycle learning rate needs at least one step: trainer.max_epochs or max_steps is 0.")
    return int(steps)
