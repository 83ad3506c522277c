"""Embeddings, tokens or maps of both networks as vectors at the same positions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses.checks import embeddings
from kdlab.outputs import Outputs


def vectors(student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
    """Return (B, N, Ds) and (B, N, Dt): embeddings with N = 1, or one tapped layer of each, tokens or maps.

    A student's map (B, D, h, w) is resized to the teacher's grid (bilinear), as RADIO and lightly-train do.

    Raises:
        InputError: as :func:`~kdlab.losses.checks.embeddings`; a layer of tokens and one of another kind, or unequal
            numbers of tokens.
    """
    pair = embeddings(student, teacher)
    shapes = [tuple(outputs.layers[0].shape) if outputs.layers else None for outputs in (student, teacher)]
    if all(shape is None or len(shape) == 2 for shape in shapes):
        return pair[0][:, None], pair[1][:, None]
    one, other = (outputs.layers[0] if outputs.layers else outputs.embedding for outputs in (student, teacher))
    assert one is not None
    assert other is not None
    if one.dim() == other.dim() == 4:
        if one.shape[2:] != other.shape[2:]:
            one = F.interpolate(one, other.shape[2:], mode="bilinear", align_corners=False)
        one, other = (x.flatten(2).transpose(1, 2) for x in (one, other))
    if one.dim() != 3 or other.dim() != 3 or one.shape[1] != other.shape[1]:
        raise InputError(
            f"Layers {tuple(one.shape)} and {tuple(other.shape)} have no positions in common: tap both as maps "
            "('LAYER:map'), whose sizes may differ, or as equally many tokens ('LAYER:tokens')."
        )
    return one, other
