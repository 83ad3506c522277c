"""Fast inference of a frozen teacher: a private copy with folded BatchNorm, another layout or lower precision."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from kdlab.compat import cpu_supports, is_compiled, version_of
from kdlab.errors import InputError
from kdlab.members.bn_folding import IMAGES, LAST, NORMS, Flow, altered, converted
from kdlab.outputs import Observer, Outputs
from kdlab.outputs.observer import class_of

_log = logging.getLogger("kdlab.teaching")


@dataclass(frozen=True)
class Fast:
    """Options to make a frozen teacher's forward cheaper; the network itself is never changed.

    The first batch is run with and without. Where a value differs by more than the tolerance, or the copy fails, the
    plain network is used, with a warning. One batch cannot show that another would take another path through the
    network: for a network that chooses its layers by its inputs, set ``fold=False``.

    A change of the network's weights or buffers is seen at the next forward, which makes the copy anew. Writes through
    ``.data``, which leave no trace in PyTorch, are seen in evaluation and at the start of an epoch, by 64 values spread
    evenly over each tensor.

    Args:
        fold: put a BatchNorm's running statistics into the convolution or linear layer whose only reader it is.
        channels_last: images and convolution weights with the channels innermost; outputs have the layout they had.
        precision: ``"same"`` as in the training; ``"bf16"`` or ``"fp16"``: inputs and all weights but BatchNorm's in
            it, autocast off, outputs float32; ``"auto"``: bf16 on a GPU that computes in it (Ampere or later), else as
            ``"same"``, since a CPU with bf16 instructions may be slower with them.
        compile: ``torch.compile`` the copy.
        tolerance: the largest difference in logits, embedding and tapped layers, in standard deviations of the tensor.
            If not given, 1e-3 where all is float32 or float64; else (precision, autocast, half-precision weights, or
            the TF32 that PyTorch allows for convolutions on CUDA) 0.25.

    Raises:
        InputError: an unknown precision, or a tolerance that is not positive.
    """

    fold: bool = True
    channels_last: bool = True
    precision: Literal["same", "auto", "bf16", "fp16"] = "same"
    compile: bool = False
    tolerance: float | None = None

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


def supports_bf16(device: torch.device) -> bool:
    """Return whether ``device`` computes in bfloat16: CUDA from Ampere on, a CPU with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and cpu_supports(torch.bfloat16)


class FastObserver(Observer):
    """An observer of a frozen network that runs as cheaply as ``fast`` allows; the network stays as it is, to the bit.

    A copy is made at the first call, and again after the network moved, got other values or :meth:`find_layers`; none
    where it would not differ from the network. While any part of the network is in train mode, the network itself runs.

    Attributes:
        plain: run the network itself, for a dry run, perhaps on another device than the training's.
        only_layers: nobody reads logits or embedding. After a whole first forward, the next stop after the last tapped
            layer, with empty logits (B, 0) and no embedding; not where the network is compiled, nothing is tapped, or a
            tap is no layer but a part of the output.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str] = (), fast: Fast | None = None, only_layers: bool = False
    ) -> None:
        self.fast, self.only_layers, self.plain = fast or Fast(), only_layers, False
        self._said: set[str] = set()
        super().__init__(network, layers)

    def find_layers(self) -> None:
        """Look the layers up again and drop the copy."""
        super().find_layers()
        self._plain = _Runner(self.network, self.layers)
        self._parts = list(self.network.modules())
        self._weights = [each for each in self.network.parameters() if not each.is_inference()]
        self._tensors = [*self._weights, *(each for each in self.network.buffers() if not each.is_inference())]
        self._first = next(self.network.parameters(), None)
        self._runner: _Runner | None = None
        self._state: Any = None
        self._samples: list[Tensor] = []
        self._values = torch.empty(0)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runner": None, "_samples": []}

    def __call__(self, inputs: Any) -> Outputs:
        """Run once on ``inputs`` (a tensor, or a mapping of keyword arguments)."""
        if self.plain or any(part.training for part in self._parts):
            return self._plain(inputs)
        if next(self.network.parameters(), None) is not self._first:  # some moves make new parameters
            self.find_layers()
        state = self._seen()
        stale = self.checks_values and not torch.equal(self._sampled(), self._values)  # waits for the device
        if self._runner is None or state != self._state or stale:
            self._runner = None  # an old copy goes before a new one comes
            self._runner, self._state = self._checked(inputs), self._seen()
            self._samples = [view for each in self._tensors if (view := samples_of(each)) is not None]
            self._values = self._sampled()
        outputs = self._runner(inputs, self.only_layers)
        if self.only_layers and self._runner.last:
            self._tell(logging.DEBUG, f"its forward stops after {self._runner.last!r}, the last layer that is read")
        return outputs

    def _seen(self) -> Any:
        """Return what changes when the network moves, or changes under PyTorch's eyes."""
        first = [(each.device, each.dtype) for each in self._weights[:1]]
        return first, sum(map(version_of, self._tensors)), sum(map(Tensor.data_ptr, self._tensors))

    def _sampled(self) -> Tensor:
        """Return some bits of every tensor."""
        return torch.cat(self._samples).view(torch.uint8) if self._samples else torch.empty(0)

    def _tell(self, level: int, what: str, numbers: str = "") -> None:
        if what not in self._said:  # a fit makes the copy more than once
            self._said.add(what)
            _log.log(level, "Fast teacher %s: %s%s.", class_of(self.network), what, numbers)

    def _checked(self, inputs: Any) -> _Runner:
        """Return a copy whose outputs on the first batch equal the network's, or the network itself."""
        fast = self.fast
        if not fast.applies(self.network) or any(map(is_compiled, self._parts)):
            return self._plain
        device = self._weights[0].device if self._weights else torch.device("cpu")
        dtype = self._lower(device)
        channels_last = fast.channels_last and any(isinstance(part, IMAGES) for part in self._parts)
        flow = Flow(self.network)
        with flow, register_module_forward_pre_hook(flow.before), register_module_forward_hook(flow.after):
            plain = self._plain(inputs)
        pairs, tapped = flow.pairs(self.network, plain, self._plain._modules.values()) if fast.fold else ({}, 0)
        if not (channels_last or pairs or dtype or fast.compile):
            return self._plain
        try:
            allowed = fast.tolerance or (1e-3 if _exact(self._weights, dtype, device) else 0.25)
            made = altered(self.network, pairs, dtype, channels_last)
            if fast.compile:
                made.compile()
            runner = _Runner(made, self.layers, dtype, channels_last)
            runner.acts_as(self._plain)
            name, off = _farthest(runner(inputs), plain)
            found = f"outputs differ most in {name}, by {off:.2g} of its std on the first batch"
            if off > allowed:
                raise ArithmeticError(f"{found} ({allowed:.2g} is allowed)")
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            self._tell(logging.WARNING, "the plain network is used, since a fast copy fails", f": {reason}")
            return self._plain
        done = [f"{len(pairs)} BatchNorm{'s' * (len(pairs) != 1)} folded"] * bool(pairs)
        done += [f"{tapped} not, since the layer before is tapped"] * bool(tapped) + ["channels_last"] * channels_last
        done += [str(dtype).removeprefix("torch.")] * bool(dtype) + ["compiled"] * fast.compile
        level = logging.DEBUG if fast == Fast() else logging.INFO  # news only where something was asked for
        self._tell(level, ", ".join(done), f"; {found}")
        return runner

    def _lower(self, device: torch.device) -> torch.dtype | None:
        """Return the precision that the weights are converted to, if any."""
        name, bf16 = self.fast.precision, supports_bf16(device)
        if name == "same" or (name == "auto" and (device.type == "cpu" or not bf16)):
            return None
        if not (bf16 if name != "fp16" else device.type != "cpu" or cpu_supports(torch.float16)):
            self._tell(logging.WARNING, f"this {device.type} device has no instructions for {name}, so it is slower")
        dtype = torch.float16 if name == "fp16" else torch.bfloat16
        return None if all(each.dtype == dtype for each in self._weights if each.is_floating_point()) else dtype


class _Stop(BaseException):
    """The end of a forward; no ``Exception``, so that no network handles it as an error of its own."""


class _Runner(Observer):
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
        given = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        tensors = {name: each for name, each in given.items() if isinstance(each, Tensor)}
        images = [each for each in tensors.values() if each.dim() == 4 and each.is_floating_point()]
        # Images of one channel are in both layouts.
        as_is = bool(images) and all(x.is_contiguous(memory_format=LAST) and not x.is_contiguous() for x in images)
        given |= {name: converted(each, self.dtype, self.channels_last) for name, each in tensors.items()}
        first = next(iter(tensors.values()), torch.empty(0))
        self._is_stopping = only_layers and bool(self.last)
        try:
            with torch.autocast(first.device.type, enabled=False) if self.dtype else nullcontext():
                outputs = super().__call__(given if isinstance(inputs, Mapping) else given[""])
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


def _exact(weights: Iterable[Tensor], dtype: torch.dtype | None, device: torch.device) -> bool:
    """Return whether outputs are computed in float32 or float64."""
    backends: Any = torch.backends
    of = (backends.cudnn.conv, backends.cuda.matmul) if device.type == "cuda" else (backends.mkldnn.matmul,)
    lowered = dtype is not None or torch.is_autocast_enabled(device.type) or any(x.itemsize < 4 for x in weights)
    return not lowered and all(each.fp32_precision in ("none", "ieee") for each in of)


def samples_of(tensor: Tensor) -> Tensor | None:
    """Return a view of up to 64 values spread evenly over a tensor's memory; ``None`` if it is no plain block of it."""
    tensor, count = tensor.detach(), tensor.numel()
    plain = tensor.layout is torch.strided and tensor.dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
    if (
        not plain
        or tensor.is_meta
        or tensor.untyped_storage().nbytes() < (tensor.storage_offset() + count) * tensor.itemsize
    ):
        return None
    return tensor.as_strided((min(count, 64),), (max(count // 64, 1),))


def _farthest(fast: Outputs, plain: Outputs) -> tuple[str, float]:
    """Return which output differs most, and by how many standard deviations of the whole tensor."""
    names = ["the logits", *(f"layer {name!r}" for name in plain.names), "the embedding"]
    found = {"the logits": 0.0}
    for name, ours, theirs in zip(names, fast.tensors(), plain.tensors(), strict=False):
        if theirs.numel():
            off = (ours - theirs).float().abs().max() / theirs.float().std(correction=0).clamp(min=1e-12)
            found[name] = float(off.nan_to_num(math.inf))
    return max(found.items(), key=lambda each: each[1])
