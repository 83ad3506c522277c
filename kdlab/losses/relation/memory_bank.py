"""Memory bank of sample vectors, and draws of samples of the same and of other classes on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError


def draw_other_classes(labels: Tensor, row_classes: Tensor, count: int, largest: int) -> Tensor:
    """Draw ``count`` samples of other classes for every row, (B, count), all sets equally probable.

    Without replacement if every class leaves at least ``count`` others, else with. Rows share one permutation, and each
    takes the first samples of other classes after a random start; so the sets of two rows are not independent.

    Args:
        labels: (N,), the class of every sample.
        row_classes: (B,), the class of every row.
        count: samples for each row.
        largest: samples of the largest class.

    Raises:
        InputError: there is one class only.

    >>> draw_other_classes(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1]), 2, 3).sort(1).values
    tensor([[0, 1],
            [0, 1]])
    """
    samples, device = len(labels), labels.device
    if largest >= samples:
        raise InputError("All training samples are of one class: there are no samples of other classes to contrast.")
    if count > samples - largest:
        order, start, size = _class_ranges(labels, row_classes)
        place = torch.randint(2**62, (len(row_classes), count), device=device) % (samples - size)
        return order[torch.where(place < start, place, place + size)]
    order = torch.randperm(samples, device=device)
    start, span = torch.randint(samples, (len(row_classes),), device=device), count + largest
    other = _windows(labels[order], span)[start] != row_classes[:, None]
    rank = other.cumsum(1)
    place = torch.where(other & (rank <= count), rank - 1, count)  # the last column is discarded
    drawn = torch.empty(len(row_classes), count + 1, dtype=torch.int64, device=device)
    return drawn.scatter_(1, place, _windows(order, span)[start])[:, :count]


def draw_same_class(labels: Tensor, row_classes: Tensor) -> Tensor:
    """Draw a sample of the same class for every row, (B,), possibly itself; arguments as above."""
    order, start, size = _class_ranges(labels, row_classes)
    return order[start + torch.randint(2**62, start.shape, device=row_classes.device) % size].squeeze(1)


def _class_ranges(labels: Tensor, row_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All samples ordered by class, and the start and the size of each row's class in this order (B, 1)."""
    ordered, order = labels.sort()
    start = torch.searchsorted(ordered, row_classes[:, None])
    return order, start, torch.searchsorted(ordered, row_classes[:, None], right=True) - start


def _windows(x: Tensor, span: int) -> Tensor:
    """Return the ``span`` elements from each one on, cyclically, (N, span), as a view without a copy."""
    return torch.cat([x, x[: span - 1]]).unfold(0, span, 1)


class MemoryBank(nn.Module):
    """One vector of every training sample for each network, the log Z of both, and the labels seen so far.

    Args:
        samples: N.
        width: length of the vectors, uniform between -sqrt(3 / width) and sqrt(3 / width) at first.
    """

    student: Tensor
    teacher: Tensor
    log_z: Tensor
    labels: Tensor

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        bound = (3 / width) ** 0.5
        for side in ("student", "teacher"):
            self.register_buffer(side, torch.empty(samples, width).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), torch.nan))
        self.register_buffer("labels", torch.full((samples,), -1))

    @torch.no_grad()
    def update(self, index: Tensor, labels: Tensor, student: Tensor, teacher: Tensor, momentum: float) -> None:
        """Move the vectors of some samples towards new ones; for a repeated sample the first one is used."""
        first = _first_occurrence(index)
        self.labels[index] = labels[first]
        for bank, new in ((self.student, student), (self.teacher, teacher)):
            moved = momentum * bank[index].to(new.dtype) + (1 - momentum) * new[first]
            bank[index] = F.normalize(moved, eps=1e-12).to(bank.dtype)


def _first_occurrence(index: Tensor) -> Tensor:
    """Return the first position with the same value, for every position."""
    ordered, order = index.sort(stable=True)
    places = torch.arange(len(index), device=index.device)
    new = torch.cat([places[:1] == 0, ordered[1:] != ordered[:-1]])
    begins = torch.where(new, places, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[begins])
