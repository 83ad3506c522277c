"""Zipf's label smoothing: soft labels for the wrong classes from Zipf's law over their ranks (Liang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, one_of
from kdlab.losses.context import Context
from kdlab.losses.feature.last_map import checked_weight, whole_number
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import sample_logits, split
from kdlab.outputs import Outputs


class ZipfLabelSmoothing(nn.Module):
    r"""Divergence of the student's probabilities among the wrong classes from Zipf's law over the classes' ranks.

    .. math:: L = \frac{1}{B} \sum_b \sum_{k \ne y_b} \zeta_{bk} \log \frac{\zeta_{bk}}{\hat q_{bk}}, \qquad
              \zeta_{bk} = \frac{r_{bk}^{-a}}{\sum_{j \ne y_b} r_{bj}^{-a}}

    with :math:`\hat q` the softmax of the student's logits over the K - 1 classes other than the label y. The rank
    r is 1 plus the number of classes that score higher, so classes with equal scores share the smallest rank; it has no
    gradient. The score of a class is

    - with no layer tapped, the student's logit;
    - with its last map (B, C, H, W) tapped, the number of positions for which it is the top class of the student's
      classifier (with bias), the votes. All classes without votes share one rank.

    Computed in float32, or in float64 for float64 logits.

    Recipe: weight 0.1 beside weight 1 on the labels for CIFAR-100 and ImageNet, 1 for TinyImageNet and iNaturalist 21;
    a = 1, votes of the last map, on CIFAR-100 and TinyImageNet enlarged by 2.

    Args:
        power: a, not negative.
        ranks: ``"all"``: ranks among all K classes, the label included; ``"others"``: among the K - 1 other classes.
        only_correct: average only over samples whose top logit is the label's; 0 where there is none.
        enlarge: factor by which the tapped map is enlarged (bilinear) before the vote, at least 1.

    Shapes:
        logits: (B, K) with K of at least 2, the same for both networks.
        layers: none, or the student's last map (B, C, H, W), C as its classifier reads.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range, another ``ranks``; networks that differ in classes or batch, labels that are
            not class indices, one class only, an empty batch; several layers tapped, or one that is no map or that the
            student's classifier does not read.

    Paper: J. Liang, L. Li, Z. Bing, B. Zhao, Y. Tang, B. Lin, H. Fan, "Efficient One Pass Self-distillation with Zipf's
    Label Smoothing", ECCV 2022, arXiv 2207.12980. Follows the authors' code as its commands run it; its option
    to count votes of earlier stages, with separate classifiers, is not implemented. Their older function has
    ``ranks="others"``.

    >>> student = Outputs(torch.tensor([[2.0, 0.0, 1.0]]))
    >>> ZipfLabelSmoothing()(student, student, torch.tensor([0]))
    tensor(0.0403)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes")
    recipe_weight: ClassVar[float] = 0.1
    minimum: ClassVar[float | None] = None

    def __init__(
        self,
        power: float = 1.0,
        ranks: Literal["all", "others"] = "all",
        only_correct: bool = False,
        enlarge: int = 1,
    ) -> None:
        super().__init__()
        self.power = at_least("power", power, 0)
        self.ranks = one_of("ranks", ranks, ("all", "others"))
        self.only_correct = only_correct
        self.enlarge = whole_number("enlarge", enlarge)
        self._classifier: tuple[nn.Linear, ...] = ()  # in a tuple: the student's, not registered here

    def setup(self, context: Context) -> None:
        """Store the student's classifier if a layer is tapped."""
        self._classifier = (context.classifier("student"),) if context.student_layers else ()

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence, a scalar; gradient to the student's logits only."""
        logits, _ = sample_logits(student, teacher)
        labels = class_labels(target, logits)
        _, others = split(logits, labels)
        with torch.no_grad():
            log_zipf = F.log_softmax(-self.power * self._ranks(student, labels).log(), 1)
        divergence = F.kl_div(F.log_softmax(others, 1), log_zipf, reduction="none", log_target=True).sum(1)
        if not self.only_correct:
            return divergence.mean()
        correct = logits.argmax(1) == labels
        return (divergence * correct).sum() / correct.sum().clamp(min=1)

    def _ranks(self, student: Outputs, labels: Tensor) -> Tensor:
        """Return the ranks of the classes other than the label, (B, K - 1)."""
        scores = self.votes(student) if student.layers else student.logits
        if self.ranks == "all":
            return split(smallest_ranks(scores), labels)[1]
        return smallest_ranks(split(scores, labels)[1])

    @torch.no_grad()
    def votes(self, student: Outputs) -> Tensor:
        """Return the number of positions of the tapped map with each class as top class, (B, K)."""
        maps, name = student.layers[0], student.names[0] if student.names else "number 0"
        if len(student.layers) != 1 or maps.dim() != 4 or len(maps) != len(student.logits) or not maps.numel():
            shapes = ", ".join(str(tuple(layer.shape)) for layer in student.layers)
            raise InputError(f"ZipfLabelSmoothing counts votes of one map (B, C, H, W) of the batch, not of {shapes}.")
        if not self._classifier:
            raise InputError("ZipfLabelSmoothing needs the student's classifier: call setup(context) before forward.")
        (classifier,) = self._classifier
        weight = checked_weight(classifier.weight, maps, "student", name)
        if weight.shape[0] != student.logits.shape[1]:
            raise InputError(
                f"The student's classifier has {weight.shape[0]} classes and its logits {student.logits.shape[1]}; tap "
                "no layer to rank by the logits."
            )
        if self.enlarge > 1:
            maps = F.interpolate(maps, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        bias = None if classifier.bias is None else classifier.bias.to(maps)
        top = F.conv2d(maps, weight[:, :, None, None], bias).argmax(1).flatten(1)
        return torch.zeros_like(student.logits).scatter_add_(1, top, torch.ones_like(top, dtype=student.logits.dtype))


def smallest_ranks(scores: Tensor) -> Tensor:
    """Return 1 plus the number of higher scores in the row for every score (B, K), in the dtype of the scores."""
    scores = scores.detach().contiguous()
    not_above = torch.searchsorted(scores.sort(1).values, scores, right=True)
    return (scores.shape[1] + 1 - not_above).to(scores.dtype)
