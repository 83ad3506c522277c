"""Numerical guards: non-finite losses and weights, skipped steps, gradients of single terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.modules.loss_logging import Terms
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress

_log = logging.getLogger("kdlab.modules")

CURE = "Lower the learning rate or the term's weight, or look at these samples; --model.skip_nonfinite=N skips N steps."
DELAYED = ("cuda",)
"""The devices whose losses are checked a step later, since reading one would wait."""
BEFORE = "An earlier step left weights that are not finite: its loss was finite, its gradient was not."


class SkipNonfinite(pl.Callback):
    """Skip optimizer steps whose loss or gradient is not finite, at most ``limit`` of them in a run.

    A skipped step leaves weights, optimizer state and buffers (BatchNorm statistics, memory banks) as they were before
    it, on all processes; it counts as a step, also for the learning rate. Each step costs a copy of all buffers and a
    pass over the gradients. With a gradient scaler (fp16-mixed) only the loss is checked: an overflow of the scaled
    gradient is the scaler's to skip.

    Attributes:
        skipped: the number of steps skipped so far, also those before a run was resumed.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise InputError(f"skip_nonfinite is the number of steps that may be skipped, at least 0, not {limit}.")
        self.limit, self.skipped = limit, 0
        self._reason = ""
        self._before: dict[str, Tensor] = {}

    def note(self, reason: str) -> None:
        """Skip the step that is being computed."""
        self._reason = self._reason or reason

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Copy the buffers before the first forward of a step."""
        if not self._before or trainer.accumulate_grad_batches == 1:
            self._remember(pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Drop the gradients if they, or the loss on any process, are not finite.

        Raises:
            InputError: ``limit`` steps were skipped before.
        """
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not scaled and (names := [n for n, p in pl_module.named_parameters() if not _is_finite(p.grad)]):
            self.note(f"The gradient is not finite at step {trainer.global_step}: of {_few(names)}. {CURE}")
        found = torch.tensor(bool(self._reason), dtype=torch.float32, device=pl_module.device)
        if trainer.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        if found:
            self._skip(pl_module, optimizer)
        if trainer.accumulate_grad_batches == 1:
            self._remember(pl_module)  # another network may take its turn in this batch
        else:
            self._before = {}

    def _remember(self, module: nn.Module) -> None:
        self._before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def _skip(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        for name, buffer in module.named_buffers():
            if name in self._before:
                buffer.detach().copy_(self._before[name])
        reason, self._reason = self._reason or "The loss of another process is not finite.", ""
        if self.skipped == self.limit:
            raise InputError(f"{reason}\n{self.limit} steps were skipped before, as skip_nonfinite allows.")
        self.skipped += 1
        _log.warning(f"Skipped {self.skipped} of at most {self.limit} steps: {reason}")

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the count."""
        self.skipped = int(state_dict["skipped"])


class Guards:
    """What watches the numbers of a training.

    A loss that is not finite stops the training before the backward pass, or skips the step. A weight that is not
    finite is not saved. On request the gradient of each weighted term is logged: that of the trained networks'
    parameters, without the losses' own parts, before clipping, summed over the batches of an optimizer step and
    averaged over processes. In sequential updates the networks' gradients count as one vector.

    Attributes:
        callbacks: to register with the Trainer.
        watches: whether gradients are logged.
    """

    def __init__(self, skip_nonfinite: int, watch_gradients: bool) -> None:
        self._skip = SkipNonfinite(skip_nonfinite) if skip_nonfinite else None
        self.callbacks: list[pl.Callback] = [] if self._skip is None else [self._skip]
        self.watches = watch_gradients
        self._failure = ""
        self._sums: dict[str, Tensor] = {}
        self._pending: tuple[Tensor, Any, Callable[[], str]] | None = None

    def start(self) -> None:
        """Begin a fit."""
        self._failure, self._sums, self._pending = "", {}, None

    def check(
        self,
        module: Any,
        terms: Terms,
        total: Tensor,
        seen: Mapping[str, Outputs],
        batch: Batch,
        progress: Progress,
    ) -> None:
        """Stop at a loss that is not finite, or skip the step.

        To wait for a GPU in every step would slow it down, so there the flag is copied beside the computation, and read
        in the next step, or before a checkpoint: the step that is reported is right, and the training ends before the
        weights are used or saved. What is remembered until then are the logits, not the layers. Where steps may be
        skipped, each step waits.

        Raises:
            InputError: the step may not be skipped.
        """
        place = progress.step, progress.epoch
        if self._skip is not None or total.device.type not in DELAYED:
            value = total.detach().float()
            if not math.isfinite(value.numpy() if value.is_cpu else value.item()):
                self._stop(nonfinite_loss(module, terms, seen, batch, *place))
            return
        self._settle()
        values = {name: (value.detach(), weight) for name, (value, weight) in terms.items()}
        logits = {name: Outputs(outputs.logits.detach()) for name, outputs in seen.items()}
        flag = total.detach().isfinite().to("cpu", non_blocking=True)
        event = torch.cuda.Event() if total.is_cuda else None  # type: ignore[no-untyped-call]
        if event is not None:
            event.record()
        self._pending = flag, event, partial(nonfinite_loss, module, values, logits, batch, *place, late=True)

    def _settle(self) -> None:
        """Check the loss of the step before."""
        if self._pending is not None:
            flag, event, describe = self._pending
            self._pending = None
            if event is not None:
                event.synchronize()
            if not flag:
                self._stop(describe())

    def _stop(self, reason: str) -> None:
        if self._skip is None:
            self._failure = reason
            raise InputError(reason)
        self._skip.note(reason)

    def check_state(self, module: nn.Module) -> None:
        """Check that what is to be saved is finite, so that it replaces no good checkpoint.

        Raises:
            InputError: a trainable weight is not finite, or the last forward was not, which BatchNorms have seen.
        """
        if self._failure:
            raise InputError(self._failure)
        self._settle()
        if names := [n for n, p in module.named_parameters() if p.requires_grad and not _is_finite(p)]:
            raise InputError(
                f"Weights are not finite, so they are not saved and earlier checkpoints stay: {_few(names)}. The loss "
                f"was finite and its gradient was not. {CURE}"
            )

    def add(self, weighted: Mapping[str, Tensor], module: Any) -> None:
        """Add the gradients of a batch's terms."""
        parameters = [x for network in module.learners.values() for x in network.parameters() if x.requires_grad]
        scale, share = scale_and_share(module.trainer)
        for name, value in weighted.items():
            with torch.autocast(value.device.type, enabled=False):
                gradients = torch.autograd.grad(
                    value * (scale * share), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            flat = torch.cat([gradient.float().flatten() for gradient in gradients]) / scale
            self._sums[name] = self._sums[name] + flat if name in self._sums else flat

    def values(self, processes: int) -> dict[str, Tensor | float]:
        """Return what is logged: ``skipped_steps``, ``grad/NAME_norm``, ``grad/NAME_cosine`` (to the task)."""
        values: dict[str, Tensor | float] = {}
        if self._skip is not None:
            values["skipped_steps"] = float(self._skip.skipped)
        sums, self._sums = self._sums, {}
        for gradient in sums.values() if processes > 1 else ():
            dist.all_reduce(gradient)
            gradient /= processes
        for name, gradient in sums.items():
            values[f"grad/{name}_norm"] = gradient.norm()
            if "task" in sums and name != "task":
                values[f"grad/{name}_cosine"] = torch.cosine_similarity(gradient, sums["task"], dim=0)
        return values


def scale_and_share(trainer: pl.Trainer) -> tuple[float, float]:
    """Return the factor of a gradient scaler, and the share of a batch in the step's gradient."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale()), 1 / trainer.accumulate_grad_batches


def nonfinite_loss(
    module: Any, terms: Terms, seen: Mapping[str, Outputs], batch: Batch, step: int, epoch: int, late: bool = False
) -> str:
    """Describe a loss that is not finite: the step, the term, and statistics of what it was computed from."""
    values = {name: (float(value.detach()), weight) for name, (value, weight) in terms.items()}
    bad = [name for name, (value, weight) in values.items() if not math.isfinite(value * weight)] or ["total"]
    place = f"step {step} of epoch {epoch}" + (f" on process {rank}" if (rank := module.global_rank) else "")
    lines = [f"Loss term {', '.join(map(repr, bad))} is not finite at {place}. {CURE}"]
    if names := [name for name, value in module.named_parameters() if not (late or _is_finite(value))]:
        lines.append(f"{BEFORE} They are in {_few(names)}.")
    lines += [f"  {name}: {value:.6g}, weight {weight:.6g}" for name, (value, weight) in values.items()]
    rows = torch.zeros(len(batch.target), dtype=torch.bool)
    inputs = batch.inputs if isinstance(batch.inputs, Mapping) else {"": batch.inputs}
    described = [(f"inputs {name}".rstrip(), value) for name, value in inputs.items() if isinstance(value, Tensor)]
    described += [part for name, outputs in seen.items() for part in _parts(name, outputs)]
    for what, value in described:
        lines.append(f"  {what}: {statistics(value)}")
        if value.dim() and len(value) == len(rows):
            rows |= ~value.detach().isfinite().flatten(1).all(1).cpu() if value.dim() > 1 else ~value.isfinite().cpu()
    if rows.any():
        named = "samples (index in the data set)" if batch.index is not None else "samples (position in the batch)"
        numbers = (torch.arange(len(rows)) if batch.index is None else batch.index.cpu())[rows].tolist()
        lines.append(f"  not finite for {len(numbers)} of {len(rows)} {named}: {', '.join(map(str, numbers[:20]))}")
    return "\n".join(lines)


def statistics(value: Tensor) -> str:
    """Describe a tensor: its shape, the range and mean of its finite numbers, and how many are nan or inf."""
    numbers = value.detach().double()
    finite, shape = numbers[numbers.isfinite()], tuple(value.shape)
    span = f"from {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}" if len(finite) else "none finite"
    return f"{shape}, {span}, {int(numbers.isnan().sum())} nan, {int(numbers.isinf().sum())} inf"


def _parts(name: str, outputs: Outputs) -> Iterator[tuple[str, Tensor]]:
    yield f"{name} logits", outputs.logits
    yield from ((f"{name} layer {layer!r}", value) for layer, value in zip(outputs.names, outputs.layers, strict=True))
    if outputs.embedding is not None:
        yield f"{name} embedding", outputs.embedding


def _is_finite(value: Tensor | None) -> bool:
    return value is None or not value.is_floating_point() or bool(value.detach().isfinite().all())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
