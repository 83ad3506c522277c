"""Activation boundaries (AB): neurons active in both networks, at any magnitude (Heo et al. 2019)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, at_least, map_pairs
from kdlab.losses.feature.connectors import POINTWISE, Geometry, connector, geometry
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class ActivationBoundary(Lazy):
    r"""Squared hinge distance of pre-ReLU activations to a margin on the teacher's side of 0.

    .. math:: L = \frac{3}{1000 \, B} \sum_{i=1}^{n} 2^{i - n} \sum_{bchw} \begin{cases}
              \max(r_i(s_i) + m, 0)^2 & t_i \le 0 \\ \max(m - r_i(s_i), 0)^2 & t_i > 0 \end{cases}

    with s and t the layers BEFORE the ReLU and n layers from shallow to deep, of which the last counts 1, the one
    before it 1/2. r is the identity where both shapes agree; else a trained convolution with bias and batch
    normalization, whose kernel follows from the two sizes as in :class:`Hint`. Equal networks do not give 0: the
    student's activation must also be outside the margin. Computed in float32, or in float64 for float64 layers.

    Recipe: weight 1 for 30 epochs without labels, on the ends of all stages but the stem, before their ReLU; then 240
    epochs of CIFAR-100 on the labels alone.

    Args:
        margin: m, positive.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt), from shallow to deep.
        target: not used.

    Raises:
        InputError: a margin out of range; no layers, unequal numbers of layers, layers that are not maps or that no
            convolution matches.

    Paper: B. Heo, M. Lee, S. Yun, J. Y. Choi, "Knowledge Transfer via Distillation of Activation Boundaries Formed by
    Hidden Neurons", AAAI 2019, arXiv 1811.03233. The factor 3/1000 and the weights of the layers are those of the
    authors' code and of RepDistiller.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[0.0, -2.0, -2.0]]]]),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[3.0, -3.0, 3.0]]]]),))
    >>> ActivationBoundary(margin=1.0)(student, teacher, torch.zeros(1))
    tensor(0.0300)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # activations inside the margin count even where both networks agree

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = at_least("margin", margin, 0, strictly=True)

    def build(self, *pairs: tuple[Any, ...]) -> None:
        """Build a connector for every pair: (student channels, teacher channels, fields of :class:`Geometry`)."""
        self.connectors = nn.ModuleList(_connector(*pair) for pair in pairs)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the connectors."""
        pairs = map_pairs(student, teacher)
        self.materialize(pairs[0].student, *(_sizes(pair) for pair in pairs))
        student_maps = [connect(pair.student) for connect, pair in zip(self.connectors, pairs, strict=True)]
        values = [self._distance(x, pair.teacher.detach()) for x, pair in zip(student_maps, pairs, strict=True)]
        weighted = [value * 2.0 ** (i + 1 - len(pairs)) for i, value in enumerate(values)]
        return torch.stack(weighted).sum() * (3 / 1000 / len(student_maps[0]))

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return torch.where(teacher > 0, self.margin - student, self.margin + student).relu().square().sum()


def _sizes(pair: Pair) -> tuple[Any, ...]:
    form = geometry(pair.student.shape, pair.teacher.shape)
    if form is None:
        raise InputError(f"No convolution matches the sizes of these layers, {pair.shapes}: tap other layers.")
    return (pair.student.shape[1], pair.teacher.shape[1], *form)


def _connector(student: int, teacher: int, *form: Any) -> nn.Module:
    same = student == teacher and Geometry(*form) == POINTWISE
    return nn.Identity() if same else connector(student, teacher, Geometry(*form), relu=False)
