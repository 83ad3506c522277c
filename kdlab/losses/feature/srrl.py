"""SRRL: features and logits of the student through the teacher's classifier (Yang et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.context import Context, copied
from kdlab.losses.feature.connectors import connector
from kdlab.losses.feature.last_map import checked_weight, one_pair
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class SRRL(Lazy):
    r"""Squared differences of pooled features and of the teacher's classifier's logits on them.

    .. math:: L = \alpha \frac{1}{B C_t} \sum_b \| \bar c(f^s_b) - \bar f^t_b \|^2
              + \beta \frac{1}{B K} \sum_b \| W_t \bar c(f^s_b) - W_t \bar f^t_b \|^2

    where c is a trained 1 x 1 convolution without bias, batch normalization and ReLU, the bar is the mean over
    positions, and W_t the teacher's classifier with its bias, frozen. Where the teacher pools and classifies its layer
    directly, the last term compares with the teacher's logits. The minimum over c is 0 only where c can express the
    teacher. Computed in float32, or in float64 for float64 layers.

    Recipe: alpha = beta = 1 and weight 1 beside weight 1 on the labels (ImageNet, 100 epochs, batch 512); CIFAR-100 the
    same in ports of it, with KD (T = 4, weight 1) beside it in SimKD's.

    Args:
        alpha: weight of the features, not negative.
        beta: weight of the logits, not negative.

    Shapes:
        layers: one pair of maps (B, Cs, Hs, Ws) and (B, Ct, Ht, Wt), each network's last.
        target: not used.

    Raises:
        InputError: a number out of range, not one pair of maps, a layer that the teacher's classifier does not fit;
            training with one value a channel.

    Paper: J. Yang, B. Martinez, A. Bulat, G. Tzimiropoulos, "Knowledge Distillation via Softmax Regression
    Representation Learning", ICLR 2021. Follows the authors' code, with its initial values.

    >>> import torch
    >>> student = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 8, 6, 6),))
    >>> teacher = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 16, 3, 3),))
    >>> loss = SRRL()
    >>> loss.setup(Context(nn.Linear(8, 5), (nn.Linear(16, 5),)))
    >>> loss(student, teacher, torch.zeros(4)).shape
    torch.Size([])
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "teacher_classifier")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # a fresh connector is not the identity
    layer_count: ClassVar[int] = 1

    classifier_weight: Tensor | None
    classifier_bias: Tensor | None

    def __init__(self, alpha: float = 1.0, beta: float = 1.0) -> None:
        super().__init__()
        self.alpha = at_least("alpha", alpha, 0)
        self.beta = at_least("beta", beta, 0)
        self.register_buffer("classifier_weight", None, persistent=False)
        self.register_buffer("classifier_bias", None, persistent=False)

    def setup(self, context: Context) -> None:
        """Copy the teacher's classifier."""
        classifier = context.classifier("teacher")
        self.classifier_weight, self.classifier_bias = copied(classifier.weight), copied(classifier.bias)

    def build(self, student: int, teacher: int) -> None:
        """Build the connector."""
        self.connector = connector(student, teacher, bias=False)
        # He's initialization by fan out: normal, variance 2 / Ct.
        nn.init.normal_(self.connector.get_parameter("conv.weight"), std=(2 / teacher) ** 0.5)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of both parts, a scalar; gradient to the student and to the connector."""
        pair = one_pair(student, teacher)
        if self.classifier_weight is None:
            raise InputError("SRRL needs the teacher's classifier: call setup(context) before the first forward.")
        teacher_features = pair.teacher.detach().mean((2, 3))
        weight = checked_weight(self.classifier_weight, teacher_features, "teacher", pair.teacher_name)
        self.materialize(pair.student, pair.student.shape[1], pair.teacher.shape[1])
        student_features = self.connector(pair.student).mean((2, 3))
        student_logits, teacher_logits = (
            F.linear(each, weight, self.classifier_bias) for each in (student_features, teacher_features)
        )
        return self.alpha * F.mse_loss(student_features, teacher_features) + self.beta * F.mse_loss(
            student_logits, teacher_logits
        )
