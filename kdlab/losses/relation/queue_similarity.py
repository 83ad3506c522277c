"""Queue similarity: similarities to past embeddings of the teacher (lightly-train 2026)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.distributed import gather
from kdlab.losses.checks import at_least, embeddings
from kdlab.losses.functional import full_precision
from kdlab.losses.projecting import Projecting, Projection
from kdlab.losses.relation.affinity_mimicking import kl
from kdlab.outputs import Outputs


class Queue(nn.Module):
    """The last ``size`` rows (size, width) that were added, in the order of a ring.

    Attributes:
        count: how many were ever added.
    """

    rows: Tensor
    count: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, fresh: Tensor) -> None:
        """Replace the oldest rows by others, (B, width) with B of at most ``size``."""
        places = (self.count + torch.arange(len(fresh), device=fresh.device)) % len(self.rows)
        self.rows[places] = fresh.to(self.rows.dtype)
        self.count += len(fresh)


class QueueSimilarity(Projecting):
    r"""KL divergence of the similarities of an image to the batch's and to past embeddings of the teacher.

    .. math:: L = \frac1B \sum_b KL\left( \sigma(\hat t_b \cdot q_k / \tau)_k \,\|\,
              \sigma(\widehat{h(s_b)} \cdot q_k / \tau)_k \right), \qquad \hat x = x / \|x\|

    with the softmax :math:`\sigma` over :math:`q_k`: the teacher's embeddings of this batch and of up to ``size``
    samples of past batches, all of length 1. h is trained, or ``None`` for equal widths. Past samples are added in
    ``after_backward()`` of a training step, those of all processes. The queue is part of checkpoints. Needs no labels.
    Computed in float32, or in float64 for float64 embeddings.

    Recipe: weight 1 beside weight 1 on :class:`TokenSimilarity`; a size of 16 to 8192 that grows with the data.

    Args:
        size: number of past samples, at least 1.
        temperature: :math:`\tau`, positive.
        projection: the kind of h, as in :class:`CosineSmoothL1`.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        target: not used.

    Raises:
        InputError: a number out of range, widths that differ without projection, an empty batch.

    Paper: none; the objective is that of lightly-train 0.18 (``distillationv3``), written from its formula, which keeps
    a queue in each process.

    >>> teacher = Outputs(torch.zeros(2, 2), embedding=torch.eye(2))
    >>> turned = Outputs(torch.zeros(2, 2), embedding=torch.eye(2).flip(0))
    >>> QueueSimilarity(4, 1.0, projection=None)(turned, teacher, torch.zeros(2))  # tanh(1/2)
    tensor(0.4621)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity
    couples_samples: ClassVar[bool] = True

    past: Queue
    _pending: Tensor | None = None

    def __init__(self, size: int = 4096, temperature: float = 0.07, projection: Projection | None = "linear") -> None:
        super().__init__(projection)
        self.size = int(at_least("size", size, 1))
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    def build(self, student: int, teacher: int) -> None:
        """Build h and the queue."""
        super().build(student, teacher)
        self.past = Queue(self.size, teacher)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples, a scalar; gradient to the student and to h."""
        features, targets = embeddings(student, teacher)
        targets = F.normalize(targets.detach(), dim=1)
        features = F.normalize(self.project(features, targets), dim=1)
        # Rows that are not filled yet are masked, so that no number of them has to come to the host.
        empty = torch.arange(self.size, device=targets.device) >= self.past.count
        masked = torch.cat([empty.new_zeros(len(targets)), empty])
        keys = torch.cat([targets, self.past.rows.to(targets.dtype)]).T / self.temperature
        if self.training:
            self._pending = targets
        lowest = torch.finfo(features.dtype).min
        return kl(*((rows @ keys).masked_fill(masked, lowest) for rows in (features, targets)))

    def after_backward(self) -> None:
        """Add the last training batch to the queue, in the place of the oldest samples."""
        if self._pending is None:
            return
        fresh, self._pending = gather(self._pending)[-self.size :], None
        self.past.add(fresh)
