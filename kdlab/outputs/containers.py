"""What goes into networks and what comes out: batches and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdlab.distributed import first_row, gather
from kdlab.errors import InputError, form_of
from kdlab.schedules import Progress


class Mix(NamedTuple):
    """How the images of a batch were mixed in pairs: ``share * own + (1 - share) * partner``.

    Attributes:
        partner: (B,) int64, the position in the batch of the second image.
        share: (B,), the weight of the first image, from 0 to 1; for pasted boxes its part of the area.
    """

    partner: Tensor
    share: Tensor


class Batch(NamedTuple):
    """One batch as kdlab passes it around.

    Attributes:
        inputs: what the network is called with: a tensor (B, ...), or a mapping of keyword arguments.
        target: labels, (B,) int64 class indices unless the task loss expects something else.
        index: (B,) int64, the position of every sample in its data set; ``None`` where the loader gives none.
        views: further inputs by name, (V * B, ...) with the V of one sample together. A view of other samples is a
            batch itself, with their labels and index.
        mix: how the images were mixed with others of the batch, if they were.
        progress: how far the training is; ``None`` in evaluation.
        is_generated: whether the student made the tokens, so that the labels are no truth.
    """

    inputs: Any
    target: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # tuple has a method of this name
    views: dict[str, Tensor | Batch] | None = None
    mix: Mix | None = None
    progress: Progress | None = None
    is_generated: bool = False

    @staticmethod
    def of(raw: Any) -> Batch:
        """Read ``(inputs, target)``, perhaps with index and views after them, or a mapping with ``labels``."""
        if isinstance(raw, Batch):
            return raw
        if isinstance(raw, Mapping) and "labels" in raw:
            inputs = {name: value for name, value in raw.items() if name not in ("labels", "index")}
            return Batch(inputs, raw["labels"], raw.get("index"))
        if isinstance(raw, Sequence) and len(raw) in (2, 3, 4):
            return Batch(*raw)
        raise InputError(
            "A batch must be (inputs, labels), (inputs, labels, sample index) or a mapping with 'labels', "
            f"not {form_of(raw)}."
        )

    @property
    def mask(self) -> Tensor | None:
        """Return which positions count, (B, L), if the inputs are a mapping with an attention mask.

        Of a mask of pairs of positions, (B, 1, L, L) bool or additive, these are the positions that attend to
        themselves, see ``kdlab.data.text.packing.block_mask``.
        """
        mask = self.inputs.get("attention_mask") if isinstance(self.inputs, Mapping) else None
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            return mask
        diagonal = mask[:, 0].diagonal(dim1=-2, dim2=-1)
        return diagonal if diagonal.dtype == torch.bool else diagonal >= 0

    def view(self, name: str) -> Tensor | Batch:
        """Return a view by name."""
        if name not in (self.views or {}):
            raise InputError(
                f"The batch has no view {name!r}: let the data give it (data.views), or the loader a fourth element "
                f"{{{name!r}: inputs (V * B, ...), the V views of one sample side by side}}."
            )
        return (self.views or {})[name]


def inputs_of(view: Tensor | Batch) -> Tensor:
    """Return the inputs of a view, which may be a batch of its own."""
    return view.inputs if isinstance(view, Batch) else view


def with_inputs(view: Tensor | Batch, inputs: Tensor) -> Tensor | Batch:
    """Return a view with other inputs."""
    return view._replace(inputs=inputs) if isinstance(view, Batch) else inputs


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of one network on one view of the batch, as a loss reads them.

    Attributes:
        logits: class scores before softmax. A loss gets (N, K), one row for every sample, token or pixel that counts;
            networks may give (B, K, ...) or (B, ..., K), see :mod:`kdlab.outputs.task_format`.
        layers: the tapped layers' tensors, in the order in which the knowledge names them.
        embedding: (B, D), what enters the network's classifier (its last linear layer); ``None`` if it has none.
        mask: (B, L), 1 where a token counts, the ``attention_mask`` of the inputs; ``None`` if they have none.
        index: (B,) int64, the position of every sample in its data set; ``None`` if the loader gives none.
        names: the tapped layers' names, for messages.
        views: outputs on further views of the same samples, by name, from the same forward.
        members: of teachers that count differently for each sample: their outputs, and weights (B,).
        heads: the further outputs of a network that has several, by name, each as if of a network of its own.
        target: of a view, its labels where it shows other samples than the batch.
        mix: of a view, how its images were mixed.
    """

    logits: Tensor
    layers: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    mask: Tensor | None = None
    index: Tensor | None = None
    names: tuple[str, ...] = ()
    views: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)
    members: tuple[tuple[Outputs, Tensor], ...] = ()
    heads: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)
    target: Tensor | None = None
    mix: Mix | None = None

    def replace(self, **changes: Any) -> Outputs:
        """Return the same outputs with other values of some fields.

        :func:`dataclasses.replace` takes five times as long, and a step does this many times.
        """
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, **changes)
        return made

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """Apply ``change`` to logits, layers and embedding, of views, members and heads too."""
        return self.replace(
            logits=change(self.logits),
            layers=tuple(map(change, self.layers)),
            embedding=None if self.embedding is None else change(self.embedding),
            views={name: each.map(change) for name, each in self.views.items()},
            members=tuple((each.map(change), change(weight)) for each, weight in self.members),
            heads={name: each.map(change) for name, each in self.heads.items()},
        )

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over logits, layers and embedding, then those of views, heads, and members with their weights."""
        yield self.logits
        yield from self.layers
        if self.embedding is not None:
            yield self.embedding
        for each in (*self.views.values(), *self.heads.values()):
            yield from each.tensors()
        for member, weight in self.members:
            yield from member.tensors()
            yield weight

    def detach(self) -> Outputs:
        """Return the same values, detached from the graph."""
        return self.map(Tensor.detach)

    def only(self, names: Sequence[str]) -> Outputs:
        """Return the same outputs, views included, with only the layers ``names``, in that order."""
        if tuple(names) == self.names:
            return self
        layers = tuple(self.layers[self.names.index(name)] for name in names)
        views = {view: each.only(names) for view, each in self.views.items()}
        return self.replace(layers=layers, names=tuple(names), views=views)

    def targets(self, batch: Batch) -> Tensor:
        """Return the labels of these samples: their own, or those of the batch, repeated for each view of a sample."""
        if self.target is not None:
            return self.target
        times = self.logits.shape[0] // max(batch.target.shape[0], 1)
        return batch.target if times <= 1 else batch.target.repeat_interleave(times)


def gathered(value: Any) -> Any:
    """Return tensors, outputs or collections with the rows of all processes, see :func:`kdlab.distributed.gather`."""
    match value:
        case Tensor():
            return gather(value)
        case Mix(partner, share):
            return Mix(gather(partner + first_row(len(partner), partner.device)), gather(share))
        case Outputs():
            names = [field.name for field in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: gathered(getattr(value, name)) for name in names})
        case Mapping():
            return {name: gathered(part) for name, part in value.items()}
        case tuple():
            return tuple(map(gathered, value))
    return value
