"""Hints (FitNet): regressed student layers match the teacher's (Romero et al. 2015)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, layer_pairs, one_of
from kdlab.losses.feature.connectors import POINTWISE, Geometry, connector, geometry
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class Hint(Lazy):
    r"""Mean squared difference of the regressed student layer and the teacher layer, summed over the layers.

    .. math:: L = \sum_i \frac{1}{|f^t_i|} \| r_i(f^s_i) - f^t_i \|^2

    where :math:`|f|` counts all B * C * H * W elements. ``regressor`` selects r:

    - ``"conv"``: convolution with bias, batch normalization, ReLU. The convolution follows from the two sizes: 3 x 3
      with stride 2 if the student's map is twice as large, 4 x 4 transposed with stride 2 if half as large, else valid
      with kernel 1 + Hs - Ht (1 x 1 for equal sizes). The teacher layer is taken after its ReLU.
    - ``"1x1"``: 1 x 1 convolution without bias, for equal sizes.
    - ``None``: the layers are compared as they are.

    Regressors are trained; their sizes follow from the first forward or from a loaded state dict; in training mode
    they normalize with the batch's statistics. The minimum over the regressors is 0 only where r can express the
    teacher. Computed in float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 weight 100 beside weight 1 on the labels, one layer, the end of the second stage.

    Args:
        regressor: ``"conv"``, ``"1x1"`` or ``None``.

    Shapes:
        layers: pairs of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt), or of vectors (B, Ds) and (B, Dt).
        target: not used.

    Raises:
        InputError: no layers, unequal numbers of layers, shapes that the regressor cannot match.

    Paper: A. Romero, N. Ballas, S. Ebrahimi Kahou, A. Chassang, C. Gatta, Y. Bengio, "FitNets: Hints for Thin Deep
    Nets", ICLR 2015, arXiv 1412.6550, which trains the hint first (1/2 of the squared norm) and distills afterwards.
    Released code: ``"conv"`` follows RepDistiller and mdistiller, which train both at once with the element mean;
    ``"1x1"`` follows lenscloth/RKD, with its initial values.

    >>> student = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 8, 6, 6),))
    >>> teacher = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 16, 3, 3),))
    >>> hint = Hint()
    >>> hint(student, teacher, torch.zeros(4)).shape
    torch.Size([])
    >>> [(name, tuple(value.shape)) for name, value in hint.named_parameters()][:2]
    [('regressors.0.conv.weight', (16, 8, 3, 3)), ('regressors.0.conv.bias', (16,))]
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 100.0
    minimum: ClassVar[float | None] = None  # a fresh regressor is not the identity: equal layers do not give 0

    def __init__(self, regressor: Literal["conv", "1x1"] | None = "conv") -> None:
        super().__init__()
        self.regressor = one_of("regressor", regressor, ("conv", "1x1", None))

    def build(self, *pairs: tuple[Any, ...]) -> None:
        """Build a regressor for every pair: (student channels, teacher channels, fields of :class:`Geometry`)."""
        self.regressors = nn.ModuleList(self._regressor(*pair) for pair in pairs)

    def _regressor(self, student: int, teacher: int, *form: Any) -> nn.Module:
        if self.regressor == "conv":
            return connector(student, teacher, Geometry(*form))
        convolution = nn.Conv2d(student, teacher, 1, bias=False)
        nn.init.uniform_(convolution.weight, -0.005, 0.005)
        return convolution

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the regressors."""
        maps = [self._maps(pair) for pair in layer_pairs(student, teacher)]
        student_maps, teacher_maps = (
            [student_maps for student_maps, _ in maps],
            [teacher_maps for _, teacher_maps in maps],
        )
        if self.regressor is not None:
            forms = [geometry(x.shape, y.shape) or POINTWISE for x, y in maps]
            sizes = [(x.shape[1], y.shape[1], *form) for (x, y), form in zip(maps, forms, strict=True)]
            self.materialize(student_maps[0], *sizes)
            student_maps = [regressor(x) for regressor, x in zip(self.regressors, student_maps, strict=True)]
        return torch.stack([F.mse_loss(x, y) for x, y in zip(student_maps, teacher_maps, strict=True)]).sum()

    def _maps(self, pair: Pair) -> tuple[Tensor, Tensor]:
        """Return both layers as maps (B, C, H, W), checked to match through this regressor."""
        if pair.student.dim() != pair.teacher.dim() or pair.student.dim() not in (2, 4):
            raise InputError(f"Hint compares maps (B, C, H, W) or vectors (B, D), but {pair.shapes}.")
        student_map, teacher_map = (
            x if x.dim() == 4 else x[:, :, None, None] for x in (pair.student, pair.teacher.detach())
        )
        form = geometry(student_map.shape, teacher_map.shape)
        joined = {
            "conv": form is not None,
            "1x1": student_map.shape[2:] == teacher_map.shape[2:],
            None: student_map.shape == teacher_map.shape,
        }
        if not joined[self.regressor]:
            advice = (
                "Hint(regressor='conv') joins them" if form is not None else "no regressor joins them: tap other layers"
            )
            raise InputError(f"Hint(regressor={self.regressor!r}) cannot compare these, {pair.shapes}; {advice}.")
        return student_map, teacher_map
