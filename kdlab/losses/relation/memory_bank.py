"""Samples of the same and of other classes, drawn on the device; and vectors of samples kept from batch to batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError


def draw_other_classes(labels: Tensor, row_classes: Tensor, count: int, largest: int) -> Tensor:
    """For every row, ``count`` samples of other classes than its own, each set of them as probable as any other.

    Without replacement where all classes leave enough others, else with. Rows share one permutation, from which each
    takes the first others after a start of its own; so one row's set says something about another's.

    Args:
        labels: (N,), the class of every sample.
        own: (B,), the class of every row.
        count: how many samples a row.
        largest: how many samples the largest class has.

    Raises:
        InputError: there is one class only.

    >>> of_other_classes(torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 1]), 2, 3).sort(1).values
    tensor([[0, 1],
            [0, 1]])
    """
    samples, device = len(labels), labels.device
    if largest >= samples:
        raise InputError("All training samples are of one class, so there are no samples of other classes to contrast.")
    if count > samples - largest:
        order, start, size = _class_ranges(labels, row_classes)
        place = torch.randint(2**62, (len(row_classes), count), device=device) % (samples - size)
        return order[torch.where(place < start, place, place + size)]
    order = torch.randperm(samples, device=device)
    start, span = torch.randint(samples, (len(row_classes),), device=device), count + largest
    other = _windows(labels[order], span)[start] != row_classes[:, None]
    rank = other.cumsum(1)
    place = torch.where(other & (rank <= count), rank - 1, count)  # the last column takes what is not wanted
    drawn = torch.empty(len(row_classes), count + 1, dtype=torch.int64, device=device)
    return drawn.scatter_(1, place, _windows(order, span)[start])[:, :count]


def draw_same_class(labels: Tensor, row_classes: Tensor) -> Tensor:
    """For every row a sample of its own class, (B,), which may be itself; arguments as above."""
    order, start, size = _class_ranges(labels, row_classes)
    return order[start + torch.randint(2**62, start.shape, device=row_classes.device) % size].squeeze(1)


def _class_ranges(labels: Tensor, row_classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All samples in the order of their classes, and where in it each row's class begins and how many it has (B, 1)."""
    ordered, order = labels.sort()
    start = torch.searchsorted(ordered, row_classes[:, None])
    return order, start, torch.searchsorted(ordered, row_classes[:, None], right=True) - start


def _windows(x: Tensor, span: int) -> Tensor:
    """(N, span): the ``span`` elements from each one on, around the end; a view that takes no memory."""
    return torch.cat([x, x[: span - 1]]).unfold(0, span, 1)


class MemoryBank(nn.Module):
    """One vector of every training sample from either network, the constants of their scores, and labels as seen.

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
        """Move the vectors of some samples towards new ones; of a sample that is given twice, the first counts."""
        first = _first_occurrence(index)
        self.labels[index] = labels[first]
        for bank, new in ((self.student, student), (self.teacher, teacher)):
            moved = momentum * bank[index].to(new.dtype) + (1 - momentum) * new[first]
            bank[index] = F.normalize(moved, eps=1e-12).to(bank.dtype)


def _first_occurrence(index: Tensor) -> Tensor:
    """For every position, the first one that has the same value."""
    ordered, order = index.sort(stable=True)
    places = torch.arange(len(index), device=index.device)
    new = torch.cat([places[:1] == 0, ordered[1:] != ordered[:-1]])
    begins = torch.where(new, places, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[begins])


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_processes(x: Tensor) -> Tensor:
    """Return the rows of all processes, in their order; they may have unequally many."""
    if not is_distributed():
        return x
    size = torch.tensor([len(x)], device=x.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    counts = torch.cat(sizes).tolist()
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
