"""Channel-wise distillation (CWD): divergence of channel-wise spatial distributions (Shu et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, map_pairs
from kdlab.losses.feature.connectors import widened
from kdlab.losses.functional import full_precision, kl_divergence
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class CWD(Lazy):
    r"""Divergence of softmaxes over positions, averaged over samples and channels, summed over the layers.

    .. math:: L = \sum_i \frac{T^2}{B C_i} \sum_{b, c} \mathrm{KL} \left( \mathrm{softmax}_{hw}(f^t_{i,bc} / T) \,\|\,
              \mathrm{softmax}_{hw}(r_i(f^s_{i,bc}) / T) \right)

    r is a trained 1 x 1 convolution where the channels differ, else the identity. 0 when the channels agree up to a
    constant each. Computed in float32, or in float64 for float64 layers.

    Recipe: T = 4. The paper is about segmentation: weight 3 on Cityscapes for the map of logits, beside weight 1 on the
    labels; it gives no CIFAR-100 setting.

    Args:
        temperature: T, positive.

    Shapes:
        layers: pairs of maps (B, Cs, H, W) and (B, Ct, H, W).
        target: not used.

    Raises:
        InputError: a temperature out of range; no layers, unequal numbers of layers, layers that are not maps or differ
            in height or width.

    Paper: C. Shu, Y. Liu, J. Gao, Z. Yan, C. Shen, "Channel-wise Knowledge Distillation for Dense Prediction", ICCV
    2021, arXiv 2011.13256. Released code (the authors', mmrazor) has the same value but takes the logarithm of a
    softmax, which is not finite where a probability underflows.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[0.0, 0.0]]]]),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.tensor([[[[4.0, 0.0]]]]),))
    >>> CWD(temperature=4.0)(student, teacher, torch.zeros(1))
    tensor(1.7751)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 3.0

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)

    def build(self, *channels: tuple[int, int]) -> None:
        """Build the alignment of the student for every pair of channels."""
        self.aligned = nn.ModuleList(widened(*each) for each in channels)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the alignment."""
        pairs = map_pairs(student, teacher)
        for pair in pairs:
            if pair.student.shape[2:] != pair.teacher.shape[2:]:
                raise InputError(f"CWD needs maps of one height and width, but {pair.shapes}: tap other layers.")
        self.materialize(pairs[0].student, *((pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs))
        student_maps = [align(pair.student) for align, pair in zip(self.aligned, pairs, strict=True)]
        teacher_maps = [pair.teacher.detach() for pair in pairs]
        values = [
            kl_divergence(x.flatten(2).flatten(0, 1), y.flatten(2).flatten(0, 1), self.temperature)
            for x, y in zip(student_maps, teacher_maps, strict=True)
        ]
        return torch.stack(values).sum()
