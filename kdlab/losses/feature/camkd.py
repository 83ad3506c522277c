"""CA-MKD features: maps match those of each teacher, weighted by its confidence (Zhang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import Pair, class_labels, map_pairs
from kdlab.losses.context import Context, copied
from kdlab.losses.feature.connectors import connector
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class CAMKDFeatures(Lazy):
    r"""Mean squared difference to each teacher's map, weighted by how well it classifies the student's map.

    .. math:: L = \frac{1}{M B} \sum_{m,b} w_{mb} \, \mathrm{mse}(r_m(f^s)_b, f^m_b), \qquad
              w_{mb} = \frac{1 - \mathrm{softmax}_m(CE_{mb})}{M - 1}, \quad
              CE_{mb} = -\log \mathrm{softmax}(C_m(\overline{r_m(f^s)_b}))_{y_b}

    with M teachers, r a trained 1 x 1 convolution, batch normalization and ReLU, the bar the mean over height and
    width, C the m-th teacher's classifier and mse the mean over the elements of one sample. The weights have
    a gradient too. The student's map is first resized to the height and width of the teacher's (adaptive average
    pooling, or bilinear interpolation if it is smaller). Computed in float32, or in float64 for float64 layers.

    Recipe: CIFAR-100 weight 50 from the second epoch on, beside weight 1 on the labels and on the soft targets (T = 4)
    of an ensemble ``kdlab.teaching.CAMKD``; the last map of the student and of three teachers.

    Shapes:
        layers: for each teacher, in their order, one pair of maps (B, Cs, Hs, Ws) and (B, Cm, Hm, Wm): the student's
            last map, named once for each teacher, and the teacher's, named with its number ("0.layer3", "1.layer3").
        target: (B,) integer class labels.

    Raises:
        InputError: fewer than two teachers; not one pair for each; layers whose pooled map does not fit the classifier;
            labels that are not class indices; training with one value a channel.

    Paper: H. Zhang, D. Chen, C. Wang, "Confidence-Aware Multi-Teacher Knowledge Distillation", ICASSP 2022, arXiv
    2201.00007. Follows the authors' code, whose factor 1 / M the paper lacks.

    >>> maps, labels = [torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)], torch.tensor([0])
    >>> weighted(maps, [x + 1 for x in maps], [torch.tensor([[0.0, 9.0]]), torch.tensor([[9.0, 0.0]])], labels)
    tensor(0.5000)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers", "classes", "teacher_classifier")
    recipe_weight: ClassVar[float] = 50.0
    minimum: ClassVar[float | None] = None  # a fresh projection is not the identity
    several_teachers: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.teachers = 0

    def setup(self, context: Context) -> None:
        """Copy each teacher's classifier."""
        names, self.teachers = context.teacher_layers, len(context.teachers)
        if self.teachers < 2:
            raise InputError("CAMKDFeatures weights several teachers and needs at least two.")
        prefixes = [name.partition(".")[0] for name in names]
        numbers = [int(each) for each in prefixes if each.isdecimal()]
        if len(names) != self.teachers or (numbers and numbers != list(range(self.teachers))):
            raise InputError(
                f"CAMKDFeatures needs one layer of each of the {self.teachers} teachers in teacher_layers, in their "
                f"order, not {list(names)}."
            )
        for number in range(self.teachers):
            classifier = context.classifier("teacher", number)
            self.register_buffer(f"weight_{number}", copied(classifier.weight), persistent=False)
            self.register_buffer(f"bias_{number}", copied(classifier.bias), persistent=False)

    def build(self, *widths: tuple[int, int]) -> None:
        """Build one projection for each teacher."""
        self.projections = nn.ModuleList(connector(student, teacher) for student, teacher in widths)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; gradient to the student and to the projections."""
        pairs, labels = map_pairs(student, teacher), class_labels(target, student.logits)
        if len(pairs) != self.teachers:
            raise InputError(f"CAMKDFeatures was set up for {self.teachers} teachers, but meets {len(pairs)} layers.")
        self.materialize(pairs[0].student, *((pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs))
        maps = [project(_resized(pair)) for project, pair in zip(self.projections, pairs, strict=True)]
        logits = [self._classified(number, pair) for number, pair in enumerate(maps)]
        return weighted(maps, [pair.teacher for pair in pairs], logits, labels)

    def _classified(self, number: int, x: Tensor) -> Tensor:
        weight = self.get_buffer(f"weight_{number}")
        if weight.shape[1] != x.shape[1]:
            raise InputError(
                f"The classifier of teacher {number} reads {weight.shape[1]} features, but the layer has {x.shape[1]} "
                "channels: tap the last map of each teacher."
            )
        bias: Tensor | None = getattr(self, f"bias_{number}")
        return F.linear(x.mean((2, 3)), weight, bias)


def weighted(maps: Sequence[Tensor], targets: Sequence[Tensor], logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Return the loss from projected maps, teachers' maps, and the teachers' logits on the projected maps."""
    cross_entropy = torch.stack([F.cross_entropy(each, labels, reduction="none") for each in logits])
    weights = (1 - cross_entropy.softmax(0)) / (len(maps) - 1)
    errors = torch.stack([(x - y.detach()).square().flatten(1).mean(1) for x, y in zip(maps, targets, strict=True)])
    return (weights * errors).mean()


def _resized(pair: Pair) -> Tensor:
    """Return the student's map with the teacher's height and width."""
    size = (pair.teacher.shape[2], pair.teacher.shape[3])
    if pair.student.shape[2] >= size[0]:
        return F.adaptive_avg_pool2d(pair.student, size)
    return F.interpolate(pair.student, size=size, mode="bilinear")
