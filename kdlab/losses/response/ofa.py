"""OFA: target-enhanced cross-entropy for different architectures, at the output and at exits (Hao et al. 2023)."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class OFA(PerSample, Lazy):
    r"""Cross-entropy with the teacher's probabilities, that of the label raised.

    .. math:: \ell(z) = -\frac{1}{B} \sum_b \sum_k \big( (p_{bk} + [k = y_b])^\gamma - [k = y_b] \big) \log q_{bk},
              \qquad L = \ell(z^s) + w \sum_i \ell(z_i)

    with :math:`p, q` the softmax of :math:`z / T` of teacher and student, without T^2. gamma = 1 is the cross-entropy
    with the teacher's probabilities; above 1 the label counts more and the rest less, the more so the more confident
    the teacher. With ``exits`` a trained branch, discarded after the training, gives logits for each of the student's
    layers i: separable convolutions that halve the map until it is as small as the smallest layer's, global average
    pooling, a linear layer. Equal networks are no minimum. Computed in float32, or in float64 if an input or weight is
    float64.

    Recipe: CIFAR-100 gamma = 1, T = 1, weight 1 with weight 1 on the labels, exits at all stages with weight 1;
    ImageNet gamma 1 to 1.5 by pair (1.5 for DeiT-T to ResNet-18), exits with weight 0.1 for MobileNetV2.

    Args:
        gamma: the power, not negative.
        temperature: T, positive.
        exits: whether the student's layers have exits.
        exit_weight: w, not negative.

    Shapes:
        logits: (B, K), the same for both networks.
        student_layers: with ``exits``, maps (B, C, H, W), any number; the smallest last stage should be among them.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range, networks that differ in classes or batch, labels that are not class indices,
            layers that are not maps or none, an empty batch.

    Paper: Z. Hao, J. Guo, K. Han, Y. Tang, H. Hu, Y. Wang, C. Xu, "One-for-All: Bridge the Gap Between Heterogeneous
    Architectures in Knowledge Distillation", NeurIPS 2023, arXiv 2310.19444. This gives the value of the authors' code,
    which takes the logarithm of a softmax and underflows. The branches follow its convolutional ones but are as wide as
    the student's widest layer, there as the wider network's embedding; branches for transformers are not implemented.

    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> OFA(gamma=1.5)(student, teacher, torch.tensor([0]))
    tensor(0.7179)
    """

    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None

    def __init__(
        self, gamma: float = 1.0, temperature: float = 1.0, exits: bool = False, exit_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.gamma = at_least("gamma", gamma, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.exits = exits
        self.exit_weight = at_least("exit_weight", exit_weight, 0)

    @property
    def needs(self) -> tuple[str, ...]:
        """Return logits and labels, and the student's layers if there are exits."""
        return ("logits", "classes", *(["student_layers"] if self.exits else []))

    def build(self, classes: int, layers: tuple[tuple[int, int], ...]) -> None:
        """Build one branch for each layer, given by its channels and how often it is halved."""
        width = max(channels for channels, _ in layers)
        self.branches = nn.ModuleList(_branch(channels, halvings, width, classes) for channels, halvings in layers)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the output and the exits for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        label = F.one_hot(class_labels(target, student_logits), student_logits.shape[1]).to(teacher_logits.dtype)
        weights = (F.softmax(teacher_logits / self.temperature, 1) + label).pow(self.gamma) - label

        def cross_entropy(logits: Tensor) -> Tensor:
            return -(weights * F.log_softmax(logits / self.temperature, 1)).sum(1)

        value = cross_entropy(student_logits)
        if self.exits:
            self._materialize_exits(student)
            exit_logits = [branch(layer) for branch, layer in zip(self.branches, student.layers, strict=True)]
            value = value + self.exit_weight * torch.stack([cross_entropy(logits) for logits in exit_logits]).sum(0)
        return value

    def _materialize_exits(self, student: Outputs) -> None:
        if not student.layers:
            raise InputError("OFA with exits reads the student's layers and none is tapped: set student_layers.")
        for layer in student.layers:
            if layer.dim() != 4 or len(layer) != len(student.logits):
                raise InputError(f"OFA's exits read maps (B, C, H, W) of the batch, not {tuple(layer.shape)}.")
        smallest = min(layer.shape[-1] for layer in student.layers)
        layers = tuple((x.shape[1], round(math.log2(x.shape[-1] / smallest))) for x in student.layers)
        self.materialize(student.layers[0], student.logits.shape[1], layers)


def _branch(channels: int, halvings: int, width: int, classes: int) -> nn.Module:
    steps = [*(channels * 2**i for i in range(max(halvings, 1))), width]
    blocks = [
        _halving_block(inputs, outputs) if halvings else nn.Conv2d(inputs, outputs, 1)
        for inputs, outputs in itertools.pairwise(steps)
    ]
    branch = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return branch


def _halving_block(channels: int, outputs: int) -> nn.Module:
    """Return two separable convolutions, the first with stride 2."""
    layers: list[nn.Module] = []
    for stride, width in ((2, channels), (1, outputs)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
