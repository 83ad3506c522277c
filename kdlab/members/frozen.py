"""Frozen teachers, out of reach of the optimizer, of checkpoints and of other callbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from kdlab.compat import convert
from kdlab.data.preprocessing import Preprocessing
from kdlab.errors import InputError
from kdlab.members.fast_choice import Choice
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import PLAIN, Fast
from kdlab.members.member import UntrainedMember
from kdlab.outputs.containers import Batch
from kdlab.outputs.observer import Observer


class Frozen(UntrainedMember):
    """A trained network that teaches and never changes.

    It stays out of the LightningModule's tree: it is not among its parameters, buffers, modules or checkpoint keys, so
    that no optimizer, weight averaging, pruning or BatchNorm conversion reaches it. It follows the module's device and
    dtype. What runs in training is by default a faster copy with the same outputs (see
    :class:`~kdlab.members.Fast`), no further than the last tapped layer where nothing else is read.

    Args:
        network: the network; put in eval mode, without gradient.
        name: of its outputs.
        batchnorm: ``"frozen"`` normalizes with the running statistics. ``"batch"`` normalizes with those of the batch,
            as the released code of OFD and ReviewKD (CIFAR) does; the running statistics still do not change.
        fast: what may be done to make the forward cheaper; ``None`` for nothing.
        preprocessing: what the network was trained to see; ``"own"`` for what timm's ``pretrained_cfg`` says of it,
            ``None`` for images as the student sees them.

    Attributes:
        chosen: options that were chosen by timing for this training, in place of ``fast``.
        normalized: how the data normalizes the images, set before the first batch; ``None`` if it does not say.

    Raises:
        InputError: ``batchnorm`` is an unknown word, or ``preprocessing`` is "own" and the network says nothing.
    """

    is_frozen: ClassVar[bool] = True
    chosen: Fast | None = None

    def __init__(
        self,
        network: nn.Module,
        name: str = "teacher",
        batchnorm: Literal["frozen", "batch"] = "frozen",
        fast: Fast | None = Fast(),  # noqa: B008  # frozen
        preprocessing: Preprocessing | Literal["own"] | None = None,
    ) -> None:
        self.fast = fast
        self.preprocessing = preprocessing_of(network) if preprocessing == "own" else preprocessing
        super().__init__(name, network, batchnorm)

    def make_observer(self, layers: Sequence[str], only_layers: bool) -> Observer:
        """Return a fast observer where it could be faster."""
        fast = self.chosen or self.fast
        if self.batchnorm == "batch" or fast is None or not (only_layers or fast.applies(self.network)):
            return Observer(self.network, layers)
        return FastObserver(self.network, layers, fast)

    def use(self, options: Fast | None) -> None:
        """Run with other options than ``fast`` from now on; ``None`` for ``fast`` again."""
        assert self._tapped is not None
        self.chosen = options
        self.observer = self.make_observer(*self._tapped)

    def choose(self, batch: Batch) -> Choice | None:
        """Time on a training batch what ``fast`` allows; it is :meth:`use` that changes something.

        ``None`` where no option applies to the network.
        """
        self.use(None)
        observer = self.observer
        if not isinstance(observer, FastObserver):
            return None
        observer.is_choosing = True
        self(batch, {})
        return observer.choice

    @property
    def used(self) -> Fast:
        """Return what the network's copy differed in from it in the last forward."""
        return self.observer.used if isinstance(self.observer, FastObserver) else PLAIN

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        with torch.no_grad():
            convert(self.network, fn)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def preprocessing_of(network: nn.Module) -> Preprocessing:
    """Return what a network says that it was trained to see.

    Raises:
        InputError: it says nothing.
    """
    if (about := Preprocessing.of(network)) is None:
        raise InputError(
            f"{type(network).__name__} does not say how it was trained to see images (timm's pretrained_cfg): give "
            "kdlab.members.Preprocessing with mean, std and size."
        )
    return about
