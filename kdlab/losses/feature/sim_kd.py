"""SimKD: the student matches the teacher's last map and reuses its classifier (Chen et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.context import Context
from kdlab.losses.feature.last_map import one_pair
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.outputs import Outputs


class SimKD(nn.Module):
    r"""Mean squared difference of the student's projected map and the teacher's last map.

    .. math:: L = \frac{1}{B C_t H W} \| g(f^s) - f^t \|^2

    A larger map of the teacher is pooled (adaptive average) to the student's; a larger one of the student is pooled
    before the projector, by the student's ``size``. 0 when both maps are equal. Computed in float32, or in float64 for
    float64 layers.

    The student is :func:`kdlab.models.projected`, which holds the projector g and whose layer ``projector`` is the one
    to tap. At the start of every fit the teacher's classifier is copied into the student's and frozen there, so the
    student is validated, saved and exported as deployed.

    Recipe: weight 1 and weight 0 on the labels, for CIFAR-100 and ImageNet (120 epochs, batch 256, learning rate 0.1).

    Shapes:
        layers: one pair of maps (B, Ct, Hs, Ws) and (B, Ct, Ht, Wt): the student's projection, the teacher's last map.
        target: not used.

    Raises:
        InputError: not one pair of maps, other channels, a larger map of the student; classifiers of other shapes.

    Paper: D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge Distillation with the Reused Teacher
    Classifier", CVPR 2022, arXiv 2203.14001. Follows the authors' code.

    >>> student = Outputs(torch.zeros(1, 2), layers=(torch.ones(1, 3, 2, 2),))
    >>> teacher = Outputs(torch.zeros(1, 2), layers=(torch.zeros(1, 3, 4, 4),))
    >>> SimKD()(student, teacher, torch.zeros(1))
    tensor(1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "teacher_classifier", "student_classifier")
    recipe_weight: ClassVar[float] = 1.0
    layer_count: ClassVar[int] = 1

    @torch.no_grad()
    def setup(self, context: Context) -> None:
        """Copy the teacher's classifier into the student and freeze it."""
        student, teacher = context.classifier("student"), context.classifier("teacher")
        if student.weight.shape != teacher.weight.shape or (student.bias is None and teacher.bias is not None):
            raise InputError(
                f"SimKD copies the teacher's classifier, {_describe(teacher)}, into the student, whose classifier is "
                f"{_describe(student)}: make the student kdlab.models.projected(..., width={teacher.in_features}, "
                f"num_classes={teacher.out_features})."
            )
        student.weight.copy_(teacher.weight)
        if student.bias is not None:
            student.bias.copy_(torch.zeros_like(student.bias) if teacher.bias is None else teacher.bias)
        student.requires_grad_(False)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the value, a scalar; gradient to the student only."""
        pair = one_pair(student, teacher)
        if pair.student.shape[1] != pair.teacher.shape[1]:
            raise InputError(
                f"SimKD compares maps of equally many channels, but {pair.shapes}: tap the layer 'projector' of "
                f"kdlab.models.projected(..., width={pair.teacher.shape[1]})."
            )
        height, width = pair.teacher.shape[2:]
        if pair.student.shape[2] > height or pair.student.shape[3] > width:
            raise InputError(
                f"SimKD pools a student's map larger than the teacher's before the projector, but {pair.shapes}: make "
                f"the student kdlab.models.projected(..., size={height if height == width else (height, width)})."
            )
        return F.mse_loss(*pool_to_smaller(pair.student, pair.teacher.detach()))


def _describe(classifier: nn.Linear) -> str:
    bias = "with" if classifier.bias is not None else "without"
    return f"{classifier.in_features} to {classifier.out_features} {bias} bias"
