"""One optimizer for all trainable parts, with groups where a part needs options of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from kdlab.compat import check_device_of_fused_step
from kdlab.errors import InputError, nearest
from kdlab.modules.run_length import NO_LENGTH
from kdlab.optimizers import DOT


def groups(
    parameters: Mapping[str, nn.Parameter], options: Mapping[str, Mapping[str, Any]], lr: float | None = None
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: one for each entry of ``options``, then all the rest.

    An entry's name is a parameter's name or the beginning of some, cut at a dot: ``"losses.hint"``, ``"student.fc"``. A
    parameter that fits several entries belongs to the longest. Groups without a rate get ``lr``, if given.
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
    common = {} if lr is None else {"lr": lr}
    result = [{"params": group, **common, **options[entry]} for entry, group in members.items()]
    return [*result, {"params": rest, **common}] if rest else result


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
    lr: float | None = None,
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
    if lr is not None and isinstance(scheduler, OneCycleLR | CyclicLR):
        raise InputError(
            f"{type(scheduler).__name__} sets its own learning rate, so the one that was found ({lr:.3g}) would count "
            "for nothing: give it as max_lr, and update_attr=False to the finder (or lr=None to the module)."
        )
    config = {"scheduler": scheduler, "interval": "step" if isinstance(scheduler, OneCycleLR) else "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config["monitor"] = getattr(scheduler, "monitor", monitor[scheduler.mode])
    return {"optimizer": optimizer, "lr_scheduler": config}
