"""Options of a frozen teacher's fast copy, and which precisions a device has instructions for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import nn

from kdlab.compat import cpu_supports
from kdlab.errors import InputError
from kdlab.members.bn_folding import IMAGES, NORMS

LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Fast:
    """Options to make a frozen teacher's forward cheaper; the network itself is never changed.

    The first batch is run with and without. Where the outputs differ by more than the tolerance, or the copy fails, the
    plain network is used, with a warning. One batch cannot show that another would take another path through the
    network: for a network that chooses its layers by its inputs, set ``fold=False``.

    A change of the network's weights or buffers is seen at the next forward, which makes the copy anew. Writes through
    ``.data``, which leave no trace in PyTorch, are seen in evaluation and at the start of an epoch, by 64 values spread
    evenly over each tensor.

    Args:
        fold: put a BatchNorm's running statistics into the convolution or linear layer whose only reader it is.
        channels_last: images and convolution weights with the channels innermost; outputs have the layout they had.
        precision: ``"same"`` as in the training; ``"bf16"`` or ``"fp16"``: inputs and all weights but BatchNorm's in
            it, autocast off, outputs float32; ``"auto"``: with ``timed``, both are tried where the device has
            instructions for them; without, as ``"same"``, since which one is faster cannot be known.
        compile: ``torch.compile`` the copy.
        tolerance: the largest difference that is allowed: of logits, embedding and tapped layers relative to their
            norm; of the logits' softmax as KL divergence times T², at temperature T = 1 and those of the losses; and
            the share of samples whose most probable class is another one. If not given, 1e-3 where all is float32 or
            float64; else (precision, autocast, half-precision weights, or the TF32 that PyTorch allows for convolutions
            on CUDA) 0.03.
        timed: try what the other options allow on the first batch of a fit, and use the fastest that is within the
            tolerance, or the plain network where nothing is faster by more than 2 %. The choice is written to
            ``teacher_fast.json`` in the run's folder; a resumed run reads it there. A path is a file of choices that
            runs share: what it holds is used, what it lacks is timed and added.

    Raises:
        InputError: an unknown precision, or a tolerance that is not positive.
    """

    fold: bool = True
    channels_last: bool = True
    precision: Literal["same", "auto", "bf16", "fp16"] = "same"
    compile: bool = False
    tolerance: float | None = None
    timed: bool | str = False

    def __post_init__(self) -> None:
        if self.precision not in ("same", "auto", "bf16", "fp16"):
            raise InputError(f"A fast teacher's precision is 'same', 'auto', 'bf16' or 'fp16', not {self.precision!r}.")
        if self.tolerance is not None and not 0 < self.tolerance < math.inf:
            raise InputError(f"A fast teacher's tolerance must be a positive number, not {self.tolerance}.")

    def applies(self, network: nn.Module) -> bool:
        """Return whether a copy of the network could differ from it."""
        parts = list(network.modules())
        fold = self.fold and any(type(part) in NORMS for part in parts)
        channels_last = self.channels_last and any(isinstance(part, IMAGES) for part in parts)
        return self.compile or self.precision != "same" or fold or channels_last

    @property
    def changes(self) -> dict[str, Any]:
        """Return what a copy with these options differs in from the network."""
        return {name: getattr(self, name) for name in ("fold", "channels_last", "precision", "compile")}

    def combinations(self, device: torch.device) -> list[Fast]:
        """Return all combinations of what is allowed but ``compile``, those with the fewest changes first."""
        if self.precision == "auto":
            lower = [name for name in LOWER if supports(name, device)]
        else:
            lower = [self.precision] if self.precision in LOWER else []
        choices = (False, True)[: 1 + self.fold], (False, True)[: 1 + self.channels_last], ("same", *lower)
        made = [replace(PLAIN, fold=fold, channels_last=last, precision=p) for fold, last, p in product(*choices)]  # type: ignore[arg-type]
        return sorted(made, key=lambda one: one.fold + one.channels_last + (one.precision != "same"))


PLAIN = Fast(fold=False, channels_last=False)
"""The options of the network itself."""


def supports(precision: str, device: torch.device) -> bool:
    """Return whether ``device`` has instructions for ``"bf16"`` or ``"fp16"``."""
    if precision == "bf16":
        return supports_bf16(device)
    return device.type != "cpu" or cpu_supports(torch.float16)


def supports_bf16(device: torch.device) -> bool:
    """Return whether ``device`` computes in bfloat16: CUDA from Ampere on, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_supports(torch.bfloat16)
