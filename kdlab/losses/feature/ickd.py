"""ICKD: inter-channel correlations of maps (Liu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, map_pairs, one_of
from kdlab.losses.feature.connectors import connector
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class ICKD(Lazy):
    r"""Squared difference of the normalized channel-by-channel correlations, summed over the layers.

    .. math:: L = \frac{1}{n} \sum_b \| R(f^s_b f_b^{s\,T}) - R(f^t_b f_b^{t\,T}) \|_F^2

    where f is a map as a C x HW matrix and R divides each row by its Euclidean norm (at least 1e-12). ``scale`` selects
    n:

    - ``"torchdistill"``: C B^2, the batch size twice, as in torchdistill and the authors' ImageNet code;
    - ``"sample"``: C B, as in the authors' CIFAR-100 code;
    - ``"paper"``: C^2 B, the mean over all correlations.

    Map sizes may differ; channels may only with ``embed``, which puts a trained 1 x 1 convolution without bias and
    batch normalization on the student. Without it, 0 when both networks have the same correlations. Computed in
    float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 (resnet32x4 to resnet8x4) weight 2.5 with ``scale="sample"`` and ``embed=True`` on the last map,
    beside weight 1 on the labels, or also weight 1 on KD with T = 4.

    Args:
        scale: ``"torchdistill"``, ``"sample"`` or ``"paper"``.
        embed: embed the student's map first.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt).
        target: not used.

    Raises:
        InputError: an unknown scale, no layers, unequal numbers of layers, layers that are not maps, other channels
            without ``embed``; training an embedding with one value a channel.

    Paper: L. Liu, Q. Huang, S. Lin, H. Xie, B. Wang, X. Chang, X. Liang, "Exploring Inter-Channel Correlation for
    Diversity-preserved Knowledge Distillation", ICCV 2021, arXiv 2202.03680.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.ones(1, 2, 2, 2),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.eye(2).view(1, 2, 2, 1),))
    >>> ICKD()(student, teacher, torch.zeros(1))
    tensor(0.5858)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 2.5
    couples_samples: ClassVar[bool] = True

    def __init__(self, scale: Literal["torchdistill", "sample", "paper"] = "torchdistill", embed: bool = False) -> None:
        super().__init__()
        self.scale = one_of("scale", scale, ("torchdistill", "sample", "paper"))
        self.embed = embed

    def build(self, *channels: tuple[int, int]) -> None:
        """Build an embedding for every pair."""
        self.embeddings = nn.ModuleList([connector(*each, bias=False, relu=False) for each in channels])

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the embeddings."""
        pairs = map_pairs(student, teacher)
        student_maps = [pair.student for pair in pairs]
        if self.embed:
            self.materialize(student_maps[0], *((pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs))
            student_maps = [embedding(x) for embedding, x in zip(self.embeddings, student_maps, strict=True)]
        return torch.stack([self._compare(x, pair) for x, pair in zip(student_maps, pairs, strict=True)]).sum()

    def _compare(self, student: Tensor, pair: Pair) -> Tensor:
        if student.shape[1] != pair.teacher.shape[1]:
            raise InputError(f"ICKD compares maps of equally many channels, but {pair.shapes}: use ICKD(embed=True).")
        batch, channels = student.shape[:2]
        count = {"torchdistill": channels * batch**2, "sample": channels * batch, "paper": channels**2 * batch}
        difference = _correlations(student) - _correlations(pair.teacher.detach())
        return difference.square().sum() / count[self.scale]


def _correlations(maps: Tensor) -> Tensor:
    """Return the channel correlations (B, C, C), rows of norm 1."""
    rows = maps.flatten(2)
    return F.normalize(rows @ rows.mT, dim=2, eps=1e-12)
