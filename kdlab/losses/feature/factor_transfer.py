"""Factor transfer (FT): the student's translated layer matches the teacher's factor (Kim et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import map_pairs
from kdlab.losses.context import Context
from kdlab.losses.feature.connectors import BatchNorm
from kdlab.losses.feature.paraphraser import Paraphraser
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class FactorTransfer(Lazy):
    r"""Mean absolute difference of the normalized factors of both networks; the second stage of factor transfer.

    .. math:: L = \frac{1}{B H W} \sum_b \| A(T(f^s_b)) - A(E(f^t_b)) \|_1, \qquad
              A(x) = \frac{a}{\max(\| a \|_2, 10^{-12})}, \quad a_{hw} = \frac{1}{F} \sum_c x_{chw}^2

    E is the encoder of a :class:`Paraphraser`, trained before and frozen here; T is trained: three 3 x 3
    convolutions with bias (Cs to Cs, F, F channels), each followed by batch normalization and a LeakyReLU of slope 0.1.
    The larger factor is first pooled (adaptive average) to the smaller height and width. With ``whole``, A(x) is the
    factor itself divided by its norm, and the mean is over B * F * H * W. Computed in float32, or in float64 for
    float64 layers.

    Recipe: CIFAR-100 weight 200 beside weight 1 on the labels, the end of the last stage, for 240 epochs after the 30
    of the paraphraser.

    Args:
        paraphraser: name of the knowledge whose loss is the :class:`Paraphraser`, of the same teacher layer.
        whole: compare full factors, as in the paper, instead of their spatial attention maps.

    Shapes:
        layers: one pair of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: no such paraphraser, or one of another layer; not one pair of layers, or layers that are not maps.

    Paper: J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS
    2018, arXiv 1802.04977, which compares full factors. The default follows RepDistiller, which compares spatial
    attention maps as attention transfer does.

    >>> import torch
    >>> student = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 3, 4, 4),))
    >>> teacher = Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 8, 4, 4),))
    >>> loss = FactorTransfer("before")
    >>> loss.setup(Context(nn.Identity(), (nn.Identity(),), losses={"before": Paraphraser(rate=0.5)}))
    >>> loss(student, teacher, torch.zeros(2)).shape
    torch.Size([])
    >>> loss.translator[0].weight.shape, loss.translator[6].weight.shape
    (torch.Size([3, 3, 3, 3]), torch.Size([4, 4, 3, 3]))
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 200.0
    minimum: ClassVar[float | None] = None  # a fresh translator is not the paraphraser
    layer_count: ClassVar[int] = 1

    def __init__(self, paraphraser: str = "paraphraser", whole: bool = False) -> None:
        super().__init__()
        self.paraphraser = paraphraser
        self.whole = whole
        self._paraphraser: tuple[Paraphraser, ...] = ()

    def setup(self, context: Context) -> None:
        """Store the paraphraser of the run."""
        self._paraphraser = (context.loss(self.paraphraser, Paraphraser),)  # in a tuple: part of its own knowledge

    def build(self, student: int, factors: int) -> None:
        """Build the translator."""
        sizes = ((student, student), (student, factors), (factors, factors))
        parts = [(nn.Conv2d(*size, 3, padding=1), BatchNorm(size[1]), nn.LeakyReLU(0.1)) for size in sizes]
        self.translator = nn.Sequential(*(each for part in parts for each in part))

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean absolute difference, a scalar; gradient to the student and to the translator."""
        pairs = map_pairs(student, teacher)
        if len(pairs) != 1:
            raise InputError(f"FactorTransfer compares one pair of layers, but {len(pairs)} are tapped.")
        if not self._paraphraser:
            raise InputError(
                f"FactorTransfer has no paraphraser yet: call setup(context) with the knowledge {self.paraphraser!r}."
            )
        (paraphraser,), (pair,) = self._paraphraser, pairs
        teacher_factor = paraphraser.encode(pair.teacher.detach())
        self.materialize(pair.student, pair.student.shape[1], teacher_factor.shape[1])
        return self.distance(self.translator(pair.student), teacher_factor)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the mean absolute difference of two factors (B, F, H, W), normalized."""
        student, teacher = pool_to_smaller(student, teacher)
        return F.l1_loss(self._normalized(student), self._normalized(teacher))

    def _normalized(self, factor: Tensor) -> Tensor:
        return F.normalize((factor if self.whole else factor.square().mean(1)).flatten(1), eps=1e-12)
