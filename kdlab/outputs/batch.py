"""One batch of training data: inputs, labels, sample index, further views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from kdlab.errors import InputError
from kdlab.outputs.model_output import form_of


class Mix(NamedTuple):
    """How the images of a batch were joined, two by two: ``share * own + (1 - share) * partner``.

    Attributes:
        partner: (B,) int64, the position in the batch of the second image.
        share: (B,), what the first image counts, from 0 to 1; for pasted boxes its part of the area.
    """

    partner: Tensor
    share: Tensor


class Batch(NamedTuple):
    """One batch as kdlab passes it around.

    Attributes:
        inputs: what the network is called with: a tensor (B, ...), or a mapping of keyword arguments.
        target: labels, (B,) int64 class indices unless the task loss wants something else.
        index: (B,) int64, the position of every sample in its data set; ``None`` where the loader gives none.
        views: further inputs by name, (V * B, ...) with the V of one sample together; see `kdlab.outputs.see`. A view
            of other samples is a batch itself, with their labels and index.
        mix: how the images were joined with others of the batch, if they were.
    """

    inputs: Any
    target: Tensor
    index: Tensor | None = None  # type: ignore[assignment]  # tuple has a method of this name
    views: dict[str, Tensor | Batch] | None = None
    mix: Mix | None = None

    @staticmethod
    def of(raw: Any) -> Batch:
        """Read a batch of any common form: ``(inputs, target)``, then perhaps index and views, or a mapping with
        ``labels``.

        Raises:
            InputError: the batch has none of these forms.
        """
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


def inputs_of(view: Tensor | Batch) -> Tensor:
    """The inputs of a view, which may be a batch of its own."""
    return view.inputs if isinstance(view, Batch) else view
