"""A converted copy of a frozen network, and how far its outputs are from the network's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from kdlab.compat import version_of
from kdlab.members.bn_folding import IMAGES, LAST, Flow, altered, converted
from kdlab.members.fast_options import LOWER, PLAIN, Fast
from kdlab.outputs import Observer, Outputs

ROWS, VALUES = 512, 2**22
"""Most rows, and most values in them, of the logits whose softmax is compared."""
MARGIN = 0.05
"""Difference of two classes' probabilities below which it does not count which one is more probable."""


class _Stop(BaseException):
    """The end of a forward; no ``Exception``, so that no network handles it as an error of its own."""


class Runner(Observer):
    """An observer of a network or a converted copy, of the whole or up to the last tapped layer."""

    def __init__(
        self, network: nn.Module, layers: Sequence[str], dtype: torch.dtype | None = None, channels_last: bool = False
    ) -> None:
        super().__init__(network, layers)
        self.dtype, self.channels_last = dtype, channels_last
        self.last = ""  # the last tap in the first whole forward; empty while no forward can stop
        self._is_stopping = False
        self._can_stop = bool(layers) and self._taps.keys() == set(self.layers) and not self._is_compiled

    def _keep(self, name: str, module: nn.Module, args: Any, *output: Any) -> None:
        super()._keep(name, module, args, *output)
        if self._can_stop and self._taps.keys() <= self._kept.keys():
            self.last = self.last or [*self._kept][-1]
            if self._is_stopping:
                raise _Stop

    def __call__(self, inputs: Any, only_layers: bool = False) -> Outputs:
        """Run once on ``inputs``, with ``only_layers`` no further than the last tapped layer."""
        arguments = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        tensors = {name: tensor for name, tensor in arguments.items() if isinstance(tensor, Tensor)}
        images = [tensor for tensor in tensors.values() if tensor.dim() == 4 and tensor.is_floating_point()]
        # Images of one channel are in both layouts.
        as_is = bool(images) and all(x.is_contiguous(memory_format=LAST) and not x.is_contiguous() for x in images)
        arguments |= {name: converted(tensor, self.dtype, self.channels_last) for name, tensor in tensors.items()}
        first = next(iter(tensors.values()), torch.empty(0))
        self._is_stopping = only_layers and bool(self.last)
        try:
            with torch.autocast(first.device.type, enabled=False) if self.dtype else nullcontext():
                outputs = super().__call__(arguments if isinstance(inputs, Mapping) else arguments[""])
        except _Stop:
            overwritten = {name for name, version in self._versions.items() if version_of(self._kept[name]) != version}
            if overwritten:
                self._copied |= overwritten
                return self(inputs, only_layers)
            outputs = self._outputs(torch.empty(0), "", inputs)
            self._kept.clear()
        if only_layers and self.last:
            outputs = Outputs(outputs.layers[0].new_empty(len(first), 0), outputs.layers, names=outputs.names)
        if self.dtype:
            outputs = outputs.map(lambda x: x.float() if x.is_floating_point() else x)
        return outputs if as_is or not self.channels_last else outputs.map(Tensor.contiguous)


@dataclass(eq=False)
class Copy:
    """A copy of a network, or the network itself, and what a batch shows of it.

    Attributes:
        options: what it differs in from the network.
        runner: runs it.
        error: the largest difference of its outputs, as :func:`largest_error` has it.
        where: the output that differs most.
        refused: why it may not be used; empty if it may.
    """

    options: Fast
    runner: Runner
    error: float = 0.0
    where: str = ""
    refused: str = ""


class Trial:
    """One batch through a frozen network, and through copies of it that are compared with it.

    Args:
        plain: runs the network.
        inputs: of the batch.
        fast: the options that are allowed.
        temperatures: at which the softmax of the logits is compared, beside 1.
    """

    def __init__(self, plain: Runner, inputs: Any, fast: Fast, temperatures: Iterable[float] = ()) -> None:
        self.plain, self.inputs, self.fast = plain, inputs, fast
        self.temperatures = tuple(dict.fromkeys((1.0, *temperatures)))
        self.weights = [weight for weight in plain.network.parameters() if not weight.is_inference()]
        self.device = self.weights[0].device if self.weights else torch.device("cpu")
        flow = Flow(plain.network)
        with flow, register_module_forward_pre_hook(flow.before), register_module_forward_hook(flow.after):
            self.outputs = plain(inputs)
        layers = plain._modules.values()
        self.pairs, self.tapped = flow.pairs(plain.network, self.outputs, layers) if fast.fold else ({}, 0)

    def effective(self, fast: Fast) -> Fast:
        """Return what ``fast`` changes in this network."""
        dtype = LOWER.get(fast.precision)
        is_there = all(weight.dtype == dtype for weight in self.weights if weight.is_floating_point())
        return replace(
            PLAIN,
            fold=fast.fold and bool(self.pairs),
            channels_last=fast.channels_last and any(isinstance(part, IMAGES) for part in self.plain.network.modules()),
            precision="same" if dtype is None or is_there else fast.precision,
            compile=fast.compile,
        )

    def make(self, fast: Fast) -> Copy:
        """Make a copy and compare it with the network."""
        options = self.effective(fast)
        if options == PLAIN:
            return Copy(PLAIN, self.plain)
        dtype, copy = LOWER.get(options.precision), Copy(options, self.plain)
        try:
            pairs = self.pairs if options.fold else {}
            network = altered(self.plain.network, pairs, dtype, options.channels_last)
            if options.compile:
                network.compile()
            copy.runner = Runner(network, self.plain.layers, dtype, options.channels_last)
            copy.runner.acts_as(self.plain)
            outputs = copy.runner(self.inputs)
            temperatures = () if self.plain._is_headless else self.temperatures
            copy.where, copy.error = largest_error(outputs, self.outputs, temperatures)
            allowed = self.fast.tolerance or (1e-3 if _exact(self.weights, dtype, self.device) else 0.03)
            if copy.error > allowed:
                off = f"by {copy.error:.2g} on the first batch ({allowed:.2g} is allowed)"
                copy.refused = f"outputs differ most in {copy.where}, {off}"
        except Exception as error:
            copy.refused = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        return copy

    def described(self, options: Fast) -> str:
        """Return the options of a copy as text."""
        count = len(self.pairs)
        done = [f"{count} BatchNorm{'s' * (count != 1)} folded"] * options.fold
        done += [f"{self.tapped} not, since the layer before is tapped"] * (options.fold and bool(self.tapped))
        done += ["channels_last"] * options.channels_last + [options.precision] * (options.precision != "same")
        return ", ".join(done + ["compiled"] * options.compile) or "as it is"


def largest_error(fast: Outputs, plain: Outputs, temperatures: Sequence[float] = (1.0,)) -> tuple[str, float]:
    r"""Return which of the outputs that losses read differs most, and by how much.

    Tensors count by :math:`\lVert fast - plain \rVert / \lVert plain \rVert`, the softmax of logits (B, K) by
    :math:`T^2 \, KL(p_T \Vert q_T)`, as a loss at temperature T has it, and the most probable classes by the share of
    samples for which they differ.
    """
    names = ["the logits", *(f"layer {name!r}" for name in plain.names), "the embedding"]
    errors = {"the logits": 0.0}
    for name, value, expected in zip(names, fast.tensors(), plain.tensors(), strict=False):
        if expected.numel():
            difference, size = (float(x.float().norm()) for x in (value - expected, expected))
            errors[name] = difference / max(size, 1e-12) if math.isfinite(difference) else math.inf
    if math.isfinite(errors["the logits"]) and plain.logits.dim() > 1 and plain.logits.shape[-1] > 1:
        errors |= _softmax_errors(fast.logits, plain.logits, temperatures)
    return max(errors.items(), key=lambda item: item[1])


def _softmax_errors(fast: Tensor, plain: Tensor, temperatures: Sequence[float]) -> dict[str, float]:
    rows, classes = plain.numel() // plain.shape[-1], plain.shape[-1]
    step = max(1, math.ceil(rows / max(1, min(ROWS, VALUES // classes))))
    z, expected = (x.detach().reshape(rows, classes)[::step].cpu().double() for x in (fast, plain))
    errors = {}
    for temperature in temperatures:
        log_q, log_p = F.log_softmax(z / temperature, 1), F.log_softmax(expected / temperature, 1)
        kl = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
        errors[f"the softmax at temperature {temperature:g}"] = temperature**2 * float(kl)
    if temperatures:
        p = expected.softmax(1)
        lost = p.amax(1) - p.gather(1, z.argmax(1, keepdim=True))[:, 0]
        errors["the most probable classes"] = float((lost > MARGIN).double().mean())
    return errors


def _exact(weights: Iterable[Tensor], dtype: torch.dtype | None, device: torch.device) -> bool:
    """Return whether outputs are computed in float32 or float64."""
    backends: Any = torch.backends
    of = (backends.cudnn.conv, backends.cuda.matmul) if device.type == "cuda" else (backends.mkldnn.matmul,)
    lowered = dtype is not None or torch.is_autocast_enabled(device.type) or any(x.itemsize < 4 for x in weights)
    return not lowered and all(backend.fp32_precision in ("none", "ieee") for backend in of)
