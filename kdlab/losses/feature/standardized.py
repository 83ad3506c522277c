"""Standardized features: mean 0 and variance 1, by feature or by PHI-S (Ranzinger et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import one_of
from kdlab.losses.context import Context
from kdlab.losses.feature.cosine_smooth_l1 import CosineSmoothL1
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.response.logits import needs_of, views_of
from kdlab.outputs import Outputs


class Statistics(nn.Module):
    """What features become: the matrix, or the factors, times the features less their mean; and of how many rows."""

    mean: Tensor
    matrix: Tensor
    rows: Tensor

    def __init__(self, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("matrix", torch.zeros(shape))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))


class Standardized(Lazy):
    r"""A loss on a teacher's features with mean 0 and variance 1, so that no teacher outweighs the others.

    With the mean :math:`\mu` and the covariance :math:`\Sigma = U \Lambda U^T` of the teacher's features over the
    training set, the loss compares the student with

    .. math:: \text{"std": } y_d = \frac{x_d - \mu_d}{\sqrt{\Sigma_{dd}}}, \qquad
              \text{"phi_s": } y = \frac1\phi H U^T (x - \mu), \quad \phi^2 = \frac1D \operatorname{tr} \Lambda

    where H is a Hadamard matrix divided by :math:`\sqrt D`. "phi_s" is a rotation and one factor: distances keep their
    ratios, and still every feature has variance 1. Mean and covariance are computed in float64 over one pass of the
    training set before the first step, and are part of checkpoints. Features that never vary stay 0. Each of several
    teachers has statistics of its own. Computed in float32, or in float64 for float64 features.

    Recipe: around the loss of each teacher, with that loss's weight.

    Args:
        loss: the loss on the standardized features; ``None`` is :class:`CosineSmoothL1`.
        method: ``"std"`` or ``"phi_s"``.

    Shapes:
        embedding: of the teacher (B, D), or its tapped layer: tokens (B, N, D) or a map (B, D, h, w), whose positions
            all count; the rest as the loss takes it.

    Raises:
        InputError: a loss that reads no features, several tapped layers, a forward before the statistics are known;
            "phi_s" with a D for which no Hadamard matrix is built: D is :math:`2^k` or :math:`2^k (q + 1)` with a prime
            q of the form 4 n + 3 (12, 20, 24, 192, 384, 768, 1280, ...).

    Paper: M. Ranzinger, J. Barker, G. Heinrich, P. Molchanov, B. Catanzaro, A. Tao, "PHI-S: Distribution Balancing for
    Label-Free Multi-Teacher Distillation", 2024, arXiv 2410.01680. TAO's ``hadamard.py`` is not followed; the matrices
    are those of Sylvester and Paley.

    >>> values = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0], [2.0, 5.0]])
    >>> loss = Standardized(method="std")
    >>> loss.precompute([(Outputs(torch.zeros(4, 2), embedding=values), torch.zeros(4))])
    >>> loss.standardized(Outputs(torch.zeros(4, 2), embedding=values)).embedding[0]
    tensor([-1., -1.])
    """

    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the student is not standardized

    statistics: Statistics

    def __init__(self, loss: nn.Module | None = None, method: Literal["std", "phi_s"] = "phi_s") -> None:
        super().__init__()
        self.loss = CosineSmoothL1() if loss is None else loss
        self.method = one_of("method", method, ("std", "phi_s"))
        if not {"embedding", "layers", "teacher_layers", "teacher_embedding"} & set(needs_of(self.loss)):
            raise InputError(
                f"{type(self.loss).__name__} reads no features of the teacher, which Standardized changes."
            )
        self._layers: tuple[str, ...] = ()

    def build(self, width: int) -> None:
        """Build the statistics of ``width`` features."""
        self.statistics = Statistics(width, (width, width) if self.method == "phi_s" else (width,))

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the inputs that the wrapped loss needs."""
        return needs_of(self.loss)

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views that the wrapped loss reads."""
        return views_of(self.loss)

    def setup(self, context: Context) -> None:
        """Note the teacher's layer; statistics are computed anew unless a checkpoint brings them."""
        self._layers = context.teacher_layers
        if self.sizes is not None:
            self.statistics.rows.zero_()

    @torch.no_grad()
    def precompute(self, batches: Iterable[tuple[Outputs, Tensor]]) -> None:
        """Compute mean and covariance from the teacher's outputs on the training set."""
        if self.sizes is not None and int(self.statistics.rows):
            return  # of the run that is resumed
        count, total, squares = 0, torch.empty(0), torch.empty(0)
        first = torch.empty(0)
        for outputs, _ in batches:
            rows = _rows(self._features(outputs.only(self._layers))).double()
            if not count:
                first = rows[0]  # shifts the values, so that the squares do not cancel
                total, squares = torch.zeros_like(first), first.new_zeros(len(first), len(first))
            count += len(rows)
            total += (rows - first).sum(0)
            squares += (rows - first).T @ (rows - first)
        if not count:
            raise InputError("The training set gives no features to standardize.")
        shift = total / count
        covariance = squares / count - shift[:, None] * shift
        self.materialize(total.float(), len(first))
        self.statistics.mean.copy_(shift + first)
        self.statistics.matrix.copy_(_transform(covariance, self.method))
        self.statistics.rows.fill_(count)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the wrapped loss on the student and the standardized teacher, a scalar."""
        value: Tensor = self.loss(student, self.standardized(teacher), target)
        return value

    @property
    def per_sample(self) -> Callable[[Outputs, Outputs, Tensor], Tensor]:
        """Return the ``per_sample`` of the wrapped loss."""
        inner: Any = self.loss.per_sample
        return lambda student, teacher, target: inner(student, self.standardized(teacher), target)

    def standardized(self, teacher: Outputs) -> Outputs:
        """Return the teacher's outputs with standardized features."""
        value = self._features(teacher)
        if self.sizes is None:  # the dry run, before the training set was seen
            width = _rows(value).shape[1]
            if self.method == "phi_s":
                hadamard(width)
            self.materialize(value, width)
            self.statistics.mean.copy_(_rows(value).mean(0) if len(value) else torch.zeros(width))
            self.statistics.matrix.copy_(torch.eye(width) if self.method == "phi_s" else torch.ones(width))
        last = value.movedim(1, -1) if value.dim() == 4 else value
        centered = last - self.statistics.mean.to(last.dtype)
        matrix = self.statistics.matrix.to(last.dtype)
        changed = centered @ matrix.T if self.method == "phi_s" else centered * matrix
        changed = changed.movedim(-1, 1) if value.dim() == 4 else changed
        if teacher.layers:
            return replace(teacher, layers=(changed,))
        return replace(teacher, embedding=changed)

    def _features(self, teacher: Outputs) -> Tensor:
        if len(teacher.layers) > 1:
            raise InputError(f"Standardized takes one layer of the teacher, but {len(teacher.layers)} are tapped.")
        value = teacher.layers[0] if teacher.layers else teacher.embedding
        if value is None or value.dim() not in (2, 3, 4):
            raise InputError("The teacher gives no embedding (B, D), and no tokens or map is tapped of it.")
        return value


def _rows(value: Tensor) -> Tensor:
    """Return features as rows (R, D)."""
    return (value.movedim(1, -1) if value.dim() == 4 else value).flatten(0, -2)


def _transform(covariance: Tensor, method: str) -> Tensor:
    """Return the matrix (D, D), or the factors (D,), from a covariance in float64."""
    if method == "std":
        std = covariance.diagonal().clamp(min=0).sqrt()
        return torch.where(std > 1e-12, 1 / std.clamp(min=1e-12), 0.0)
    values, vectors = torch.linalg.eigh(covariance)
    phi = values.mean().clamp(min=0).sqrt()
    rotation: Tensor = hadamard(len(values)).to(covariance) @ vectors.T
    return rotation / phi if phi > 1e-12 else rotation * 0


def hadamard(size: int) -> Tensor:
    """Return a Hadamard matrix over the root of its size, (size, size) float64: orthogonal, all entries of one size.

    Raises:
        InputError: no matrix of this size is built, see :class:`Standardized`.

    >>> (hadamard(2) * 2**0.5).round()
    tensor([[ 1.,  1.],
            [ 1., -1.]], dtype=torch.float64)
    """
    doublings = 0
    while size >> doublings > 0 and (size >> doublings) << doublings == size:
        if (base := _paley(size >> doublings)) is not None:
            matrix = base
            for _ in range(doublings):
                matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
            return matrix / math.sqrt(size)
        doublings += 1
    raise InputError(f"PHI-S needs a Hadamard matrix, and none of {size} features is built: use method='std'.")


def _paley(size: int) -> Tensor | None:
    """Return Paley's first Hadamard matrix of ``size`` = q + 1 with a prime q of the form 4 n + 3, or that of 1."""
    q = size - 1
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if q % 4 != 3 or any(q % factor == 0 for factor in range(2, math.isqrt(q) + 1)):
        return None
    squares = {n * n % q for n in range(1, q)}
    residues = torch.tensor([0.0, *(1.0 if n in squares else -1.0 for n in range(1, q))], dtype=torch.float64)
    places = torch.arange(q)
    matrix = torch.ones(size, size, dtype=torch.float64)
    matrix[1:, 1:] = residues[(places[None] - places[:, None]) % q] + torch.eye(q)
    matrix[1:, 0] = -1
    matrix[0, 1:] = 1
    return matrix
