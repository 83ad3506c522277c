"""FRSKD: a feature pyramid on the network's stages as its self-teacher (Ji et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, same_logits
from kdlab.losses.feature.bifpn import BiFPN
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision, kl_divergence
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class FRSKD(Lazy):
    r"""Cross-entropy of a self-teacher, divergence from its logits, and distance from its attention maps.

    .. math:: L = \frac{1}{B} \sum_b \Big( -\log \mathrm{softmax}(\tilde z_b)_{y_b}
              + \alpha T^2 \, \mathrm{KL}\big( \mathrm{softmax}(\tilde z_b / T) \,\|\, \mathrm{softmax}(z_b / T) \big)
              + \beta \sum_i \frac{1}{H_i W_i} \| A(x_{ib}) - A(\tilde x_{ib}) \|^2 \Big), \qquad
              A(x) = \frac{a}{\max(\| a \|_2, 10^{-12})}, \; a_{hw} = \frac{1}{C} \sum_c x_{chw}^2

    with z the student's logits and :math:`x_i` the ReLU of its n tapped layers, from shallow to deep. The self-teacher,
    trained here and discarded afterwards, refines them to :math:`\tilde x_i` of the same height and width and of
    ``width`` times the channels:

    .. math:: d_n = e_n(x_n), \quad d_i = r_i\big( [e_i(x_i), \; u_i({\uparrow} d_{i+1}^+)] \big), \qquad
              o_1 = d_1, \quad o_i = r'_i\big( [e'_i(x_i), \; d_i^+, \; v_i({\downarrow} o_{i-1}^+)] \big)

    with + the ReLU, :math:`\tilde x_i = o_i^+` and :math:`\tilde z` a linear layer on the mean of :math:`\tilde x_n`
    over its positions. e, e', u, v are 1 x 1 convolutions, batch normalization and ReLU; r, r' are ``depth`` separable
    convolutions (3 x 3 in each channel, 1 x 1 across, batch normalization), with ReLU between them. Brackets are means
    with trained weights, initially 1, by the positive part over its sum plus 10^-6; the deepest :math:`o_n` does not
    contain :math:`d_n`. The arrow up is nearest-neighbor interpolation. The arrow down is 3 x 3 max pooling with stride
    2 where that gives the deeper map's size, else adaptive max pooling (a case that the released code lacks).

    :math:`\tilde x` is a target without gradient, and so is :math:`\tilde z` in the divergence unless
    ``detach_target=False``. The cross-entropy trains the self-teacher and the student's layers below it. No teacher is
    read. The cross-entropy of z is the task loss. In training mode the self-teacher normalizes with the batch's
    statistics. Computed in float32, or in float64 if an input or weight is float64.

    Recipe: CIFAR-100 ResNet-18 weight 1 beside weight 1 on the labels, with the defaults here, the ends of all four
    stages; batches of 128, 200 epochs.

    Args:
        alpha: weight of the divergence, not negative.
        beta: weight of the attention maps, not negative.
        temperature: T, positive.
        width: ratio of the self-teacher's channels to the student's, at least 1.
        depth: consecutive separable convolutions, at least 1.
        detach_target: detach the self-teacher's logits in the divergence.

    Shapes:
        logits: (B, K), the same for both networks.
        student_layers: two or more maps (B, C_i, H_i, W_i), from shallow to deep.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range; networks that differ in classes or batch, labels that are not class indices,
            an empty batch; fewer than two layers, or layers that are not maps; training with one value a channel.

    Paper: M. Ji, S. Shin, S. Hwang, G. Park, I.-C. Moon, "Refine Myself by Teaching Myself: Feature Refinement via
    Self-Knowledge Distillation", CVPR 2021, arXiv 2103.08273. Follows the authors' code with its defaults (BiFPNc,
    attention), where the target of the divergence is detached; in Self-KD-Lib it is not, which is
    ``detach_target=False``, and there the pyramid's maps are compared before their last ReLU.

    >>> student = Outputs(torch.zeros(2, 5), layers=(torch.rand(2, 3, 8, 8), torch.rand(2, 6, 4, 4)))
    >>> loss = FRSKD()
    >>> loss(student, student.detach(), torch.tensor([0, 1])).shape
    torch.Size([])
    >>> loss.self_teacher.classifier
    Linear(in_features=12, out_features=5, bias=True)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "student_layers", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the teacher is not read
    true_gradient: ClassVar[bool] = False  # the self-teacher's targets are detached

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 100.0,
        temperature: float = 4.0,
        width: int = 2,
        depth: int = 2,
        detach_target: bool = True,
    ) -> None:
        super().__init__()
        self.alpha = at_least("alpha", alpha, 0)
        self.beta = at_least("beta", beta, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.width = whole_number("width", width)
        self.depth = whole_number("depth", depth)
        self.detach_target = detach_target

    def build(self, classes: int, *channels: int) -> None:
        """Build the self-teacher."""
        self.self_teacher = BiFPN(classes, channels, self.width, self.depth)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum of the three parts, a scalar; gradient to the student and to the self-teacher."""
        same_logits(student, teacher)
        logits, labels = student.logits, class_labels(target, student.logits)
        stages = _stages(student)
        self.materialize(logits, logits.shape[1], *(x.shape[1] for x in stages))
        refined, scores = self.self_teacher(stages)
        target_logits = scores.detach() if self.detach_target else scores
        value = F.cross_entropy(scores, labels) + self.alpha * kl_divergence(logits, target_logits, self.temperature)
        distances = [F.mse_loss(_activity(x), _activity(y.detach())) for x, y in zip(stages, refined, strict=True)]
        return value + self.beta * torch.stack(distances).sum()


def _activity(x: Tensor) -> Tensor:
    """Return the spatial attention map (B, H W) with rows of norm 1."""
    return F.normalize(x.square().mean(1).flatten(1), eps=1e-12)


def _stages(student: Outputs) -> list[Tensor]:
    """Return the student's tapped layers after a ReLU, checked to be maps of the batch."""
    layers, shapes = student.layers, ", ".join(str(tuple(x.shape)) for x in student.layers)
    if len(layers) < 2:
        raise InputError(
            f"FRSKD needs two or more of the student's stages, but {len(layers)} layers are tapped: name the ends of "
            "its stages in student_layers."
        )
    if any(x.dim() != 4 or len(x) != len(student.logits) or not x.numel() for x in layers):
        raise InputError(f"FRSKD needs maps (B, C, H, W) of a batch of {len(student.logits)}, not {shapes}.")
    return [x.relu() for x in layers]
