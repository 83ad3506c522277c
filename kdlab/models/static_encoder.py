"""Sentence vectors without context: the mean of the vectors of a text's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.surgery import positive
from kdlab.models.weights import load_weights
from kdlab.outputs import Head


class StaticEncoder(nn.Module):
    """A table with one vector for each token, whose mean is a text's vector: its logits and its embedding.

    There is nothing else in the network, so that the order of words does not count and a text costs one look-up for
    each token.

    Args:
        vocabulary: number of tokens.
        width: size of the vectors.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(positive("vocabulary", vocabulary), positive("width", width))
        self.pooled = nn.Identity()

    @property
    def heads(self) -> dict[str, Head]:
        """Return the only head, whose embedding is the pooled vector."""
        return {"": Head(self.pooled, str)}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Mapping[str, Any]:
        """Return ``logits`` (B, D), the mean of the vectors; 0 for a text without any token.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 at the tokens of a text; all if not given.
        """
        counts = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if counts.dim() != 2:
            raise InputError("A static encoder reads one text in each row: set data.packing=false.")
        vectors = self.embeddings(input_ids)
        counts = counts[..., None].to(vectors.dtype)
        return {"logits": self.pooled((vectors * counts).sum(1) / counts.sum(1).clamp(min=1))}


def static_encoder(
    vocabulary: int | None = None,
    width: int | None = None,
    teacher: nn.Module | None = None,
    weights: str | None = None,
) -> StaticEncoder:
    """Build a :class:`StaticEncoder`.

    Args:
        vocabulary: number of tokens; ``None`` for the teacher's.
        width: size of the vectors; ``None`` for the teacher's.
        teacher: a transformer of :func:`kdlab.models.hugging_face` whose token embeddings are where the table starts;
            it is not changed. ``None`` for random vectors.
        weights: a weights file, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: neither a teacher nor both sizes are given, sizes differ from the teacher's, or the weights do not
            fit.
    """
    table: Tensor | None = None
    if teacher is not None:
        inner: Any = getattr(teacher, "network", teacher)  # of a SentenceEncoder
        table = inner.get_input_embeddings().weight.detach()
    sizes = [
        given if given is not None or table is None else table.shape[axis]
        for axis, given in enumerate((vocabulary, width))
    ]
    if sizes[0] is None or sizes[1] is None:
        raise InputError("A static encoder needs vocabulary and width, or a teacher that has them.")
    if table is not None and tuple(sizes) != tuple(table.shape):
        raise InputError(f"The teacher's token embeddings are {tuple(table.shape)}, not {tuple(sizes)}.")
    network = StaticEncoder(sizes[0], sizes[1])
    if table is not None:
        with torch.no_grad():
            network.embeddings.weight.copy_(table)
    return network if weights is None else load_weights(network, weights)
