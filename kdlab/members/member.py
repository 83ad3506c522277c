"""Members of a plan: named sources of outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from kdlab.data.preprocessing import Normalization, Preprocessing
from kdlab.errors import check_word
from kdlab.members.batchnorm import batch_statistics
from kdlab.outputs.containers import Batch, Outputs
from kdlab.outputs.network_layers import heads_of
from kdlab.outputs.observer import Observer
from kdlab.outputs.split_views import headed, inputs_with_views, with_views
from kdlab.outputs.task_format import ALL_KINDS, CLASSES, Kind
from kdlab.schedules import Progress

Result = TypeVar("Result")
Seen = Mapping[str, Outputs]
"""The outputs of the members that ran before in this step, by name."""

BATCHNORM = ("frozen", "batch")
"""The statistics that BatchNorm of an untrained network may normalize with."""


class Member(nn.Module):
    """A source of outputs: a network, a bank of past outputs, a mixture of other members.

    A member's outputs have names: its own, ``NAME_HEAD`` for further heads of a network, and ``NAME@VARIANT`` for the
    same source seen otherwise (another view, an earlier epoch). A loss with parameters has one copy for each pair of
    names before the ``@``.

    Attributes:
        sources: names of the outputs that it is made of.
        is_frozen: whether its outputs stay the same function of the batch during training, so that losses may read
            networks and outputs before the first step.
        in_evaluation: whether it runs in validation and test, and may be deployed.
        is_optional: whether an output may be missing in training, as before the first exchange.
        kinds: the kinds of targets for which its outputs are right.
        any_shape: whether its logits may have more axes than (B, K).
        synchronized: names of buffers that all processes fill alike, so that DDP must not broadcast them.
        is_dry_run: set during the dry run: every output that will ever be given is given, and networks run plainly,
            perhaps on another device than in training.
    """

    is_frozen: ClassVar[bool] = False
    in_evaluation: ClassVar[bool] = False
    is_optional: ClassVar[bool] = False
    kinds: tuple[Kind, ...] = CLASSES
    any_shape: ClassVar[bool] = False
    synchronized: ClassVar[tuple[str, ...]] = ()
    is_dry_run = False

    def __init__(self, name: str, sources: Sequence[str] = ()) -> None:
        super().__init__()
        self.name, self.sources = name, tuple(sources)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all outputs that it may give."""
        return (self.name,)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return outputs on a batch by name; ``batch.progress`` is ``None`` in evaluation.

        An output may be missing (a bank before the first epoch is over): edges that need it are then skipped.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward().")

    def record(self, batch: Batch, seen: Seen) -> None:
        """Keep what later steps need, once the step's loss is computed; also called on validation batches."""

    def on_step_end(self, progress: Progress) -> None:
        """Follow the networks after an optimizer step."""

    def on_validation_end(self) -> None:
        """Use what :meth:`record` kept of the validation set."""

    def setup(self, samples: int | None) -> None:
        """Receive the size of the training set before the dry run; ``None`` if it has none."""

    def set_taps(self, layers: Sequence[str], views: Sequence[str] = (), only_layers: bool = False) -> None:
        """Select what losses read of it: layers, further views, and whether nothing but layers."""

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the networks behind an output, each with the name of its head."""
        return ()


class NetworkMember(Member):
    """A member that runs one network, in one forward for all its heads and views.

    The network is not registered here. The LightningModule registers those that are trained, a teaching registers
    copies that belong into checkpoints, and nothing registers a frozen one.

    Attributes:
        inputs: names of the views that the network sees in training, one after the other; ``""`` is the batch itself.
        views: names of views that run in the same forward, given as outputs ``NAME@VIEW``.
        factors: whether logits are given as hidden states and their head in training, for losses that compare them in
            chunks.
        temperatures: at which losses read its logits.
    """

    in_evaluation: ClassVar[bool] = True
    factors: bool = False
    temperatures: tuple[float, ...] = ()
    kinds = ALL_KINDS
    any_shape: ClassVar[bool] = True
    network: nn.Module
    observer: Observer
    _tapped: tuple[tuple[str, ...], bool] | None = None

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__(name)
        self.__dict__["network"] = network
        self.inputs: tuple[str, ...] = ("",)
        self.views: tuple[str, ...] = ()
        self.set_taps(())

    @property
    def heads(self) -> dict[str, str]:
        """Return the head of each output on the batch itself, by the output's name, the main one first."""
        return {f"{self.name}_{head}" if head else self.name: head for head in heads_of(self.network)}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all outputs that it may give."""
        return (*self.heads, *(f"{name}@{view}" for view in self.views for name in self.heads))

    def set_taps(self, layers: Sequence[str], views: Sequence[str] = (), only_layers: bool = False) -> None:
        """Tap ``layers`` and run ``views`` from now on; modules that were replaced are looked up again."""
        tapped = tuple(layers), only_layers
        if tapped == self._tapped:  # the observer knows which layers are overwritten, and compiled code its hooks
            self.observer.find_layers()
        else:
            self._tapped, self.observer = tapped, self.make_observer(layers, only_layers)
        self._further = tuple(dict.fromkeys([*views, *self.views]))
        self._sees_batch_alone = not self._further and self.inputs == ("",)
        self._only_layers = only_layers

    def make_observer(self, layers: Sequence[str], only_layers: bool) -> Observer:
        """Return what runs the network and keeps ``layers``."""
        return Observer(self.network, layers)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the outputs of all heads and views; in evaluation those on the batch itself."""
        self.observer.factors = self.factors and batch.progress is not None
        if batch.progress is None or self._sees_batch_alone:
            observed = self.observe(batch.inputs, batch).replace(index=batch.index, mask=batch.mask)
        else:
            inputs = inputs_with_views(batch, self.inputs, self._further)
            observed = with_views(self.observe(inputs, batch), batch, self._further)
        outputs = headed(self.name, observed) if observed.heads else {self.name: observed}
        if batch.progress is not None:
            outputs |= {f"{name}@{view}": outputs[name].views[view] for view in self.views for name in [*outputs]}
        return outputs

    def observe(self, inputs: Any, batch: Batch) -> Outputs:
        """Run the network once."""
        return self.observer(inputs)

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the network and the head of an output."""
        heads = self.heads
        return ((self.network, heads[name if name in heads else name.rpartition("@")[0]]),)


class Learner(NetworkMember):
    """A network that is trained."""


class UntrainedMember(NetworkMember):
    """A network that is not trained: in eval mode and without gradient, whatever is done to it from outside.

    With ``batchnorm="batch"`` it normalizes with the statistics of the batch; the running ones still do not change.
    With ``preprocessing`` it sees other images than the student, who sees them as the data has ``normalized`` them.
    """

    preprocessing: Preprocessing | None = None
    normalized: Normalization | None = None

    def __init__(self, name: str, network: nn.Module, batchnorm: str = "frozen") -> None:
        check_word("batchnorm", batchnorm, BATCHNORM)
        self.batchnorm = batchnorm
        self._epoch: int | None = None
        super().__init__(name, network)

    def set_taps(self, layers: Sequence[str], views: Sequence[str] = (), only_layers: bool = False) -> None:
        """Tap ``layers`` and run ``views`` from now on, with the network frozen again."""
        self.network.eval().requires_grad_(False)
        super().set_taps(layers, views, only_layers)

    def observe(self, inputs: Any, batch: Batch) -> Outputs:
        """Run the network once, without gradient."""
        if self.network.training:  # somebody called train() on it
            self.network.eval()
        self.observer.plain = self.is_dry_run
        epoch = None if batch.progress is None else batch.progress.epoch
        self.observer.checks_values = epoch is None or epoch != self._epoch
        self._epoch = epoch
        self.observer.only_layers = self._only_layers and batch.progress is not None
        self.observer.temperatures = self.temperatures
        return self.applied(self.observer, inputs)

    @torch.no_grad()
    def applied(self, function: Callable[[Any], Result], inputs: Any) -> Result:
        """Return a function of the network on inputs as it was trained to see them, with its BatchNorm statistics."""
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs, self.normalized)
        with batch_statistics(self.network) if self.batchnorm == "batch" else nullcontext():
            return function(inputs)
