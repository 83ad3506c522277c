"""Correlation congruence (CC): correlations between samples as in the teacher (Peng et al. 2019)."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses.checks import at_least, embeddings, one_of
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class CorrelationCongruence(Lazy):
    r"""Products of consecutive samples' errors, or the difference of both networks' kernel matrices.

    ``kernel=None`` is the loss of the benchmarks, with two trained linear maps to ``width`` features:

    .. math:: L = \frac{1}{B - 1} \sum_{i=1}^{B-1} \sum_d |e_{id}| \, |e_{i+1,d}|, \qquad
              e_i = W_s x^s_i + b_s - W_t x^t_i - b_t

    It depends on the order of the batch, both maps can reduce it to 0, and it is 0 for a batch of one, which has no
    pair. ``kernel="rbf"`` is the paper's loss, on the embeddings themselves, whose widths may differ:

    .. math:: L = \frac{1}{B^2} \sum_{i,j} (k^s_{ij} - k^t_{ij})^2, \qquad
              k_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} (\hat x_i \cdot \hat x_j)^p, \quad
              \hat x = \frac{x}{\max(\| x \|_2, 10^{-12})}

    the Gaussian kernel of normalized embeddings, by its Taylor series to order P. Computed in float32, or in float64
    for float64 embeddings.

    Recipe: CIFAR-100 weight 0.02 beside weight 1 on the labels, with ``kernel=None`` and width 128. The paper's kernel
    has gamma = 0.4 and order 2, and a sampler with several samples of each class in a batch.

    Args:
        kernel: ``None`` or ``"rbf"``.
        width: features that both embeddings are mapped to without a kernel, at least 1.
        gamma: of the kernel, positive.
        order: P of the kernel, at least 1.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        target: not used.

    Raises:
        InputError: an empty batch; several layers tapped; nothing to compare.

    Paper: B. Peng, X. Jin, J. Liu, D. Li, Y. Wu, Y. Liu, S. Zhou, Z. Zhang, "Correlation Congruence for Knowledge
    Distillation", ICCV 2019, arXiv 1904.01802. ``None`` follows RepDistiller; ``"rbf"`` follows
    Knowledge-Distillation-Zoo. torchdistill leaves the embeddings unnormalized and does not square the difference.

    >>> student, teacher = torch.eye(2), torch.tensor([[1.0], [2.0]])
    >>> sides = Outputs(student, embedding=student), Outputs(teacher, embedding=teacher)
    >>> CorrelationCongruence(kernel="rbf")(*sides, torch.zeros(2))
    tensor(0.1266)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 0.02
    minimum: ClassVar[float | None] = None  # two separate maps: equal embeddings do not give 0
    order_matters: ClassVar[bool] = True
    couples_samples: ClassVar[bool] = True

    def __init__(
        self, kernel: Literal["rbf"] | None = None, width: int = 128, gamma: float = 0.4, order: int = 2
    ) -> None:
        super().__init__()
        self.kernel = one_of("kernel", kernel, ("rbf", None))
        self.width = int(at_least("width", width, 1))
        self.gamma = at_least("gamma", gamma, 0, strictly=True)
        self.order = int(at_least("order", order, 1))

    def build(self, student: int, teacher: int) -> None:
        """Build both linear maps."""
        self.embed_student, self.embed_teacher = nn.Linear(student, self.width), nn.Linear(teacher, self.width)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return a scalar; gradient to the student and to both maps."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        if self.kernel == "rbf":
            return F.mse_loss(self._matrix(student_embedding), self._matrix(teacher_embedding.detach()))
        self.materialize(student_embedding, student_embedding.shape[1], teacher_embedding.shape[1])
        errors = (self.embed_student(student_embedding) - self.embed_teacher(teacher_embedding.detach())).abs()
        products = (errors[:-1] * errors[1:]).sum(1)
        value: Tensor = products.mean() if len(products) else products.sum()
        return value

    def _matrix(self, x: Tensor) -> Tensor:
        x = F.normalize(x, eps=1e-12)
        cosines = x @ x.T
        terms = [cosines.pow(p) * ((2 * self.gamma) ** p / math.factorial(p)) for p in range(1, self.order + 1)]
        return (1 + torch.stack(terms).sum(0)) * math.exp(-2 * self.gamma)
