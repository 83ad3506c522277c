"""Hidden states and attention of sequences: pairs of layers, positions that count, means over them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, layer_pairs
from kdlab.outputs import Outputs


def sequence_pairs(student: Outputs, teacher: Outputs, same_width: bool) -> list[Pair]:
    """Return the tapped layers in pairs: hidden states (B, L, D), or (B, D) of one position a sample.

    Raises:
        InputError: as :func:`~kdlab.losses.checks.layer_pairs`, other shapes, other lengths, or, with ``same_width``,
            other widths.
    """
    pairs = layer_pairs(student, teacher)
    for pair in pairs:
        if pair.student.dim() not in (2, 3) or pair.student.dim() != pair.teacher.dim():
            raise InputError(f"This loss compares hidden states (B, L, D) or (B, D), but {pair.shapes}.")
        if pair.student.shape[:-1] != pair.teacher.shape[:-1]:
            raise InputError(
                f"This loss compares sequences of one length, but {pair.shapes}: give both networks the same tokens."
            )
        if same_width and pair.student.shape[-1] != pair.teacher.shape[-1]:
            raise InputError(f"This loss compares hidden states of one width, but {pair.shapes}.")
    return pairs


def mask_of(student: Outputs, length: int) -> Tensor | None:
    """Return which positions (B, length) count, bool; ``None`` if all do.

    Raises:
        InputError: the mask has another length.
    """
    if student.mask is None:
        return None
    if student.mask.dim() != 2 or student.mask.shape[1] != length:
        raise InputError(
            f"The mask is {tuple(student.mask.shape)} and the layers have {length} positions: tap layers of whole "
            "sequences."
        )
    return student.mask.bool()


def counted_rows(student: Outputs, *layers: Tensor) -> list[Tensor]:
    """Return of layers (B, L, D), or (B, D), the rows (N, D) of the positions that count."""
    mask = mask_of(student, layers[0].shape[1]) if layers[0].dim() == 3 else None
    return [layer.flatten(0, -2) if mask is None else layer[mask] for layer in layers]


def mean_of_rows(values: Tensor) -> Tensor:
    """Return the mean over all values, 0 if there is none."""
    return values.sum() / max(values.numel(), 1)


def split_heads(states: Tensor, heads: int, name: str) -> Tensor:
    """Return states (B, L, heads * d), or (B, H, L, d) of H heads whose parts are put together, as (B, heads, L, d).

    Raises:
        InputError: the width is no multiple of ``heads``, or another number of axes.
    """
    if states.dim() == 4:
        states = states.transpose(1, 2).flatten(2)
    if states.dim() != 3:
        raise InputError(f"Queries, keys and values must be (B, L, D) or (B, H, L, d), not {tuple(states.shape)}.")
    if states.shape[2] % heads:
        raise InputError(
            f"Layer {name!r} is {states.shape[2]} wide, which {heads} heads do not divide: set another number."
        )
    return states.reshape(*states.shape[:2], heads, states.shape[2] // heads).transpose(1, 2)


def relation(left: Tensor, right: Tensor, mask: Tensor | None) -> Tensor:
    """Return log-softmax of scaled products: (B, h, L, d) twice to (B, h, L, L), keys without mask left out."""
    if mask is not None:  # padding may hold anything
        left, right = (x.masked_fill(~mask[:, None, :, None], 0.0) for x in (left, right))
    scores = left @ right.mT / left.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -1e9)  # finite: 0 times it is 0
    return F.log_softmax(scores, -1)


def relation_kl(log_q: Tensor, log_p: Tensor, mask: Tensor | None) -> Tensor:
    """Return the KL divergence of (B, h, L, L), p first, the mean over heads and the positions that count."""
    rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1).mean(1)
    return mean_of_rows(rows if mask is None else rows[mask])


def states_of(outputs: Outputs, side: str, names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """Return the tapped layers of one side, which are ``names``.

    Raises:
        InputError: another number of layers.
    """
    if len(outputs.layers) != len(names):
        raise InputError(
            f"This loss reads {', '.join(names)} of each network, {len(names)} layers in this order, but "
            f"{len(outputs.layers)} {side} layers are tapped."
        )
    return outputs.layers


def same_positions(student: Tensor, teacher: Tensor) -> None:
    """Check that queries, keys or values, split by heads, agree in batch, heads and length.

    Raises:
        InputError: they do not.
    """
    if student.shape[:3] != teacher.shape[:3]:
        shapes = [f"{x.shape[0]} samples, {x.shape[1]} heads, {x.shape[2]} positions" for x in (student, teacher)]
        raise InputError(f"The student gives {shapes[0]} and the teacher {shapes[1]}: they must be the same.")
