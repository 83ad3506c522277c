"""SDD: a loss on the logits of image regions, with weight 2 on ambiguous ones (Wei et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import class_labels, map_pairs
from kdlab.losses.context import Context, copied
from kdlab.losses.functional import full_precision
from kdlab.losses.response.dkd import DKD
from kdlab.losses.response.logits import needs_of
from kdlab.outputs import Outputs


class ScaleDecoupled(nn.Module):
    r"""A loss on the logits of regions: both networks' last maps, pooled on grids and classified.

    .. math:: L = \frac{1}{B M} \sum_{m=1}^{M} \sum_{b=1}^{B} w_{mb} \, \mathrm{loss}_b(z^s_m, z^t_m, y), \qquad
              z_m = W \, \mathrm{pool}_m(f) + c

    with M regions: one for the full map, and g x g for each further grid g. w is 2 where the teacher is right about the
    full image and wrong about the region, or the reverse, and 1 elsewhere. The logits of the networks are not read. The
    student's classifier is trained on all regions, the teacher's is fixed. With the default loss 0 where both give the
    same probabilities everywhere; equal maps alone are no minimum, as each network has its own classifier. Computed in
    float32, or in float64 if an input is float64.

    Recipe: CIFAR-100 around DKD (alpha = 1, beta = 8, T = 4), grids 1 and 2 (resnet32x4 to resnet8x4) or 1, 2 and 4
    (most pairs of different architectures), weight 1 with weight 1 on the labels, rising linearly over the first 20
    epochs; around soft targets 1 epoch of warm-up.

    Args:
        loss: the loss on the regions' logits, averaged over samples; it may need logits and classes only. ``None`` is
            DKD with the recipe's values.
        grids: regions along each side, 1 among them; none finer than the maps.

    Shapes:
        layers: one pair of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt) whose channel averages the classifiers read.
        target: (B,) integer class labels.

    Raises:
        InputError: grids out of range, a loss that needs more than logits and classes, other than one pair of maps,
            maps that the classifiers do not fit, several teachers, labels that are not class indices, an empty batch.

    Paper: S. Wei, C. Luo, Y. Luo, "Scaled Decoupled Distillation", CVPR 2024, arXiv 2403.13512. This gives the value of
    the authors' code around DKD; there a value that is not finite is replaced by 0.

    >>> from kdlab.losses.response.soft_targets import SoftTargets
    >>> student, teacher = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> loss = ScaleDecoupled(SoftTargets(4.0))
    >>> loss.setup(Context(student, (teacher,)))
    >>> maps = Outputs(torch.zeros(1, 3), layers=(torch.rand(1, 2, 4, 4),))
    >>> loss(maps, maps, torch.tensor([0])).shape
    torch.Size([])
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "classes", "student_classifier", "teacher_classifier")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None
    layer_count: ClassVar[int] = 1

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, loss: nn.Module | None = None, grids: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        self.loss = DKD(1.0, 8.0, 4.0) if loss is None else loss
        if not set(needs_of(self.loss)) <= {"logits", "classes"}:
            raise InputError(
                f"{type(self.loss).__name__} needs more than logits and classes, the only inputs for a region: use "
                "another loss."
            )
        if 1 not in grids or not all(isinstance(each, int) and each > 0 for each in grids):
            raise InputError(f"grids must be whole numbers above 0 with 1 among them, not {grids!r}.")
        self.grids = tuple(sorted(set(grids)))
        self.register_buffer("weight", None, persistent=False)
        self.register_buffer("bias", None, persistent=False)
        self._classifier: tuple[nn.Linear, ...] = ()  # in a tuple: the student's, not registered here

    def setup(self, context: Context) -> None:
        """Find the student's classifier and copy the teacher's."""
        self._classifier = (context.classifier("student"),)
        classifier = context.classifier("teacher")
        self.weight, self.bias = copied(classifier.weight), copied(classifier.bias)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted mean over regions and samples; gradient to the student and its classifier only."""
        pairs = map_pairs(student, teacher)
        if len(pairs) != 1:
            raise InputError(
                f"ScaleDecoupled needs one pair of layers, each network's last map, not {len(pairs)} pairs."
            )
        if not self._classifier or self.weight is None:
            raise InputError("ScaleDecoupled needs both classifiers: call setup(context) before the first forward.")
        student_logits = self._region_logits(
            pairs[0].student, self._classifier[0].weight, self._classifier[0].bias, "student"
        )
        teacher_logits = self._region_logits(pairs[0].teacher.detach(), self.weight, self.bias, "teacher")
        return self.compare(student_logits, teacher_logits, target)

    def compare(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the weighted mean of the loss over the regions' logits (M, B, K), those of the full map first."""
        labels = class_labels(target, teacher[0])
        correct = teacher.argmax(-1) == labels
        ambiguous = (correct != correct[0]).flatten()
        logits, labels = (student.flatten(0, 1), teacher.flatten(0, 1)), labels.repeat(len(teacher))
        inner: Any = self.loss
        if callable(getattr(inner, "per_sample", None)):
            values: Tensor = inner.per_sample(Outputs(logits[0]), Outputs(logits[1]), labels)
            return (values * (1 + ambiguous.to(values.dtype))).mean()
        value: Tensor = inner(Outputs(logits[0]), Outputs(logits[1]), labels)
        count = int(ambiguous.sum())
        if count:  # their mean times their share adds them once more to the mean over all rows
            repeated = [Outputs(side[ambiguous]) for side in logits]
            value = value + inner(*repeated, labels[ambiguous]) * (count / len(ambiguous))
        return value

    def _region_logits(self, maps: Tensor, weight: Tensor, bias: Tensor | None, side: str) -> Tensor:
        if maps.shape[1] != weight.shape[1]:
            raise InputError(
                f"The {side}'s classifier reads {weight.shape[1]} channels, but the layer has {maps.shape[1]}: tap "
                "the layer that is pooled and classified."
            )
        if self.grids[-1] > min(maps.shape[2:]):
            raise InputError(f"A grid of {self.grids[-1]} is finer than the {side}'s maps {tuple(maps.shape)}.")
        pooled = torch.cat([F.adaptive_avg_pool2d(maps, grid).flatten(2) for grid in self.grids], 2)
        return F.linear(pooled.permute(2, 0, 1), weight.to(maps), None if bias is None else bias.to(maps))
