"""CAT-KD: class activation maps of both networks (Guo et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.deprecation import renamed
from kdlab.errors import InputError
from kdlab.losses.context import Context, copied
from kdlab.losses.feature.last_map import checked_weight, one_pair, whole_number
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class CATKD(nn.Module):
    r"""Mean squared difference of the two networks' class activation maps, pooled to few positions.

    .. math:: L = \frac{1}{B K r^2} \sum_b \| P(W_s * f^s_b) - P(W_t * f^t_b) \|^2

    where W * f is a network's classifier, without its bias, applied at every position of its last map: K maps, one a
    class; P is adaptive average pooling to r x r. With ``normalize`` each class's map is then divided by its Euclidean
    norm over the positions (at least 1e-12). The loss trains the student's classifier too. 0 when both networks
    have the same class activation maps. Computed in float32, or in float64 for float64 layers.

    The paper removes the bias from both classifiers (:func:`kdlab.models.without_bias`), so that the mean of a class's
    map is its logit; the loss does not use the bias.

    Recipe: CIFAR-100 beside weight 1 on the labels, r = 2: weight 15 (resnet32x4 to resnet8x4), 0.7 (resnet56 to
    resnet20), 1.8 (resnet110 to resnet32), 12 and 1.5 (wrn-40-2 to wrn-16-2 and wrn-40-1), 4.5 (vgg13 to vgg8); with
    ``normalize`` 40 (ResNet-50 to MobileNetV2), 15 (vgg13 to MobileNetV2), 600 (resnet32x4 to ShuffleNets, r = 4);
    ImageNet weight 0.5 (ResNet-34 to 18, r = 4).

    Args:
        resolution: r, at least 1.
        normalize: divide each class's map by its norm. The old name ``normalise`` is deprecated.

    Shapes:
        layers: one pair of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt), each network's last, of at least r x r.
        target: not used.

    Raises:
        InputError: a resolution below 1 or above a map's, not one pair of maps, layers that the classifiers do not
            fit, networks that differ in classes.

    Paper: Z. Guo, H. Yan, H. Li, X. Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv
    2304.12777. Follows the authors' code; pooling here comes before the classifier, which gives the same value at less
    cost.

    >>> import torch
    >>> maps = torch.eye(2).view(1, 1, 2, 2)
    >>> student, teacher = Outputs(torch.zeros(1, 3), layers=(maps,)), Outputs(torch.zeros(1, 3), layers=(maps + 1,))
    >>> loss, network = CATKD(), nn.Linear(1, 3)
    >>> loss.setup(Context(network, (network,)))
    >>> bool(torch.isclose(loss(student, teacher, torch.zeros(1)), network.weight.square().mean()))
    True
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "student_classifier", "teacher_classifier")
    recipe_weight: ClassVar[float] = 15.0
    minimum: ClassVar[float | None] = None  # equal maps with different classifiers do not give 0
    layer_count: ClassVar[int] = 1

    teacher_weight: Tensor | None

    @renamed(normalise="normalize")
    def __init__(self, resolution: int = 2, normalize: bool = False) -> None:
        super().__init__()
        self.resolution = whole_number("resolution", resolution)
        self.normalize = normalize
        self.register_buffer("teacher_weight", None, persistent=False)
        self._student: tuple[nn.Linear, ...] = ()  # in a tuple: the student's, not registered here

    def setup(self, context: Context) -> None:
        """Copy the teacher's classifier and store the student's."""
        self.teacher_weight = copied(context.classifier("teacher").weight)
        self._student = (context.classifier("student"),)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the value, a scalar; gradient to the student and to the student's classifier."""
        pair = one_pair(student, teacher)
        if self.teacher_weight is None:
            raise InputError("CATKD needs both classifiers: call setup(context) before the first forward.")
        student_maps, teacher_maps = self.pooled(pair.student), self.pooled(pair.teacher)
        student_weight = checked_weight(self._student[0].weight, student_maps, "student", pair.student_name)
        teacher_weight = checked_weight(self.teacher_weight, teacher_maps, "teacher", pair.teacher_name)
        if len(student_weight) != len(teacher_weight):
            raise InputError(
                f"The student has {len(student_weight)} classes and the teacher {len(teacher_weight)}; "
                "give both the same classes."
            )
        return self.compare(
            F.conv2d(student_maps, student_weight[:, :, None, None]),
            F.conv2d(teacher_maps, teacher_weight[:, :, None, None]),
        )

    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of two stacks of class activation maps (B, K, H, W); gradient to the student's."""
        student_maps, teacher_maps = (self.pooled(each).flatten(2) for each in (student, teacher.detach()))
        if self.normalize:
            student_maps, teacher_maps = (
                F.normalize(student_maps, dim=2, eps=1e-12),
                F.normalize(teacher_maps, dim=2, eps=1e-12),
            )
        return F.mse_loss(student_maps, teacher_maps)

    def pooled(self, maps: Tensor) -> Tensor:
        """Pool maps to the resolution of the comparison."""
        size = (self.resolution, self.resolution)
        if maps.shape[2] < self.resolution or maps.shape[3] < self.resolution:
            raise InputError(
                f"resolution must not be above that of the maps, {tuple(maps.shape[2:])}, but is {self.resolution}."
            )
        return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)
