"""Fast inference of a frozen teacher: a private copy with folded BatchNorm, another layout or lower precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.compat import is_compiled, version_of
from kdlab.members.fast_choice import Choice, choose
from kdlab.members.fast_copy import Copy, Runner, Trial
from kdlab.members.fast_options import LOWER, PLAIN, Fast, supports
from kdlab.outputs import Observer, Outputs
from kdlab.outputs.observer import class_of

__all__ = ["Fast", "FastObserver"]

_log = logging.getLogger("kdlab.teaching")


class FastObserver(Observer):
    """An observer of a frozen network that runs as cheaply as ``fast`` allows; the network stays as it is, to the bit.

    A copy is made at the first call, and again after the network moved, got other values or :meth:`find_layers`; none
    where it would not differ from the network. While any part of the network is in train mode, the network itself runs.

    Attributes:
        plain: run the network itself, for a dry run, perhaps on another device than the training's.
        only_layers: nobody reads logits or embedding. After a whole first forward, the next stop after the last tapped
            layer, with empty logits (B, 0) and no embedding; not where the network is compiled, nothing is tapped, or a
            tap is no layer but a part of the output.
        is_choosing: choose by timing at the next call, which runs the network itself.
        choice: what was chosen then.
    """

    choice: Choice | None = None
    is_choosing = False

    def __init__(
        self, network: nn.Module, layers: Sequence[str] = (), fast: Fast | None = None, only_layers: bool = False
    ) -> None:
        self.fast, self.only_layers, self.plain = fast or Fast(), only_layers, False
        self._said: set[str] = set()
        super().__init__(network, layers)

    def find_layers(self) -> None:
        """Look the layers up again and drop the copy."""
        super().find_layers()
        self._plain = Runner(self.network, self.layers)
        self._parts = list(self.network.modules())
        self._weights = [each for each in self.network.parameters() if not each.is_inference()]
        self._tensors = [*self._weights, *(each for each in self.network.buffers() if not each.is_inference())]
        self._first = next(self.network.parameters(), None)
        self._copy: Copy | None = None
        self._state: Any = None
        self._samples: list[Tensor] = []
        self._values = torch.empty(0)

    @property
    def used(self) -> Fast:
        """Return what the copy that runs differs in from the network, as the last call found it."""
        return PLAIN if self._copy is None else self._copy.options

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None, "_samples": []}

    def __call__(self, inputs: Any) -> Outputs:
        """Run once on ``inputs`` (a tensor, or a mapping of keyword arguments)."""
        if self.plain or any(part.training for part in self._parts):
            return self._plain(inputs)
        if next(self.network.parameters(), None) is not self._first:  # some moves make new parameters
            self.find_layers()
        if self.is_choosing:
            self.is_choosing = False
            self.choice = choose(Trial(self._plain, inputs, self.fast, self.temperatures), self.only_layers)
            _log.info("Fast teacher %s: %s.", class_of(self.network), self.choice.text)
            return self._plain(inputs)
        state = self._seen()
        stale = self.checks_values and not torch.equal(self._sampled(), self._values)  # waits for the device
        if self._copy is None or state != self._state or stale:
            self._copy = None  # an old copy goes before a new one comes
            self._copy, self._state = self._checked(inputs), self._seen()
            self._samples = [view for each in self._tensors if (view := samples_of(each)) is not None]
            self._values = self._sampled()
        runner = self._copy.runner
        outputs = runner(inputs, self.only_layers)
        if self.only_layers and runner.last:
            self._tell(logging.DEBUG, f"its forward stops after {runner.last!r}, the last layer that is read")
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

    def _checked(self, inputs: Any) -> Copy:
        """Return a copy whose outputs on the first batch equal the network's, or the network itself."""
        fast, itself = self.fast, Copy(PLAIN, self._plain)
        if not fast.applies(self.network) or any(map(is_compiled, self._parts)):
            return itself
        trial = Trial(self._plain, inputs, fast, self.temperatures)
        copy = trial.make(fast)
        if copy.options.precision in LOWER and not supports(copy.options.precision, trial.device):
            text = f"this {trial.device.type} device has no instructions for {copy.options.precision}, so it is slower"
            self._tell(logging.WARNING, text)
        if copy.refused:
            self._tell(logging.WARNING, "the plain network is used, since a fast copy fails", f": {copy.refused}")
            return itself
        if copy.options != PLAIN:
            level = logging.DEBUG if fast == Fast() else logging.INFO  # news only where something was asked for
            numbers = f"; outputs differ most in {copy.where}, by {copy.error:.2g}, on the first batch"
            self._tell(level, trial.described(copy.options), numbers)
        return copy


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
