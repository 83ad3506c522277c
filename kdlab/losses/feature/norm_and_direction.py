"""Norm and direction (KD++): long embeddings along the teacher's class means (Wang et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.distributed import is_distributed
from kdlab.errors import InputError
from kdlab.losses.checks import class_labels, embeddings
from kdlab.losses.context import Context
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class NormAndDirection(Lazy):
    r"""One minus the projection on the teacher's class mean, in units of the larger of both norms.

    .. math:: L = \frac{1}{B} \sum_b \Bigl( 1 - \frac{\langle h^s_b, e_{y_b} \rangle}
              {\max(\| h^s_b \|, \| h^t_b \|)} \Bigr), \qquad e_k = \frac{m_k}{\| m_k \|}

    where m_k is the mean of the teacher's embeddings over the training samples of class k (norms are at least 1e-12).
    It aligns the embedding with its class and, while it is shorter than the teacher's, increases its norm; 0 where it
    has the direction of the class and at least the teacher's norm. It is added to any other knowledge: KD++ is KD with
    it. Computed in float32, or in float64 for float64 embeddings.

    The means are computed at the start of a fit over all batches of the training set, augmented as in training
    (:meth:`precompute`), summed over processes, and saved in the checkpoint. Before that, in evaluation mode, the
    teacher's embedding of the sample replaces the class mean.

    Recipe: CIFAR-100 beside weight 1 on the labels and KD (T = 4, warm-up over 20 epochs): weight 2 (resnet56 to
    resnet20, KD 1; resnet32x4 to resnet8x4, KD 3.5), 1.5 (wrn-40-2 to wrn-40-1, KD 1; resnet32x4 to ShuffleNetV1, KD
    2.5), 0.5 (ResNet-50 to MobileNetV2, KD 3; resnet32x4 to ShuffleNetV2, KD 4).

    Shapes:
        embeddings (B, D), of the same width on both sides (:func:`kdlab.models.embedded` widens a student's), or one
        tapped layer on each side, flattened.
        target: (B,) integer class labels.

    Raises:
        InputError: no embedding, several layers, other widths, an empty batch, labels that are not class indices or
            are outside of the precomputed classes; training before ``precompute``.

    Paper: Y. Wang, L. Cheng, M. Duan, Y. Wang, Z. Feng, S. Kong, "Improving Knowledge Distillation via Regularizing
    Feature Norm and Direction", 2023, arXiv 2305.17007. Follows the authors' code, which reads the means from a file
    (rounded to 4 digits).

    >>> student, teacher = (Outputs(torch.zeros(1, 2), embedding=torch.tensor([[x, 0.0]])) for x in (1.0, 2.0))
    >>> loss = NormAndDirection()
    >>> loss.precompute([(teacher, torch.tensor([1]))])
    >>> loss(student, teacher, torch.tensor([1]))
    tensor(0.5000)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding", "classes")
    recipe_weight: ClassVar[float] = 2.0
    minimum: ClassVar[float | None] = None  # the teacher's embedding differs in direction from its class mean

    def __init__(self) -> None:
        super().__init__()
        self._layers: tuple[str, ...] = ()
        self._computed = False

    @property
    def is_known(self) -> bool:
        """Return whether the means are computed or restored, not only sized by the dry run."""
        return self._computed or (self.sizes is not None and not bool(self.means.values.isnan().any()))

    def setup(self, context: Context) -> None:
        """Delete the means of an earlier fit, whose teacher may differ; a checkpoint restores its means."""
        self._layers = context.teacher_layers if len(context.teacher_layers) == 1 else ()
        self._computed = False
        if self.sizes is not None:
            self.sizes = None
            del self.means

    def build(self, classes: int, width: int) -> None:
        """Build the table of class means."""
        self.means = _Means(classes, width)

    def precompute(self, batches: Iterable[tuple[Outputs, Tensor]]) -> None:
        """Compute the class means over all batches and all processes, unless a checkpoint restored them."""
        if self.is_known:
            self._computed = True
            return
        total: Tensor | None = None  # (K, D + 1): sums, and counts in the last column
        for outputs, target in batches:
            values, one_hot = _embeddings_and_classes(outputs.only(self._layers) if outputs.names else outputs, target)
            batch = one_hot.T @ torch.cat([values, values.new_ones(len(values), 1)], 1)
            total = batch if total is None else total + batch
        if total is None:
            raise InputError("The training loader yields no batch to compute class means from.")
        if is_distributed():
            torch.distributed.all_reduce(total)
        sums, counts = total[:, :-1], total[:, -1:]
        self.materialize(sums, *sums.shape)
        self.means.values.copy_(sums / counts.clamp_min(1))
        self._computed = True

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples, a scalar; gradient to the student only."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        teacher_embedding = teacher_embedding.detach()
        if student_embedding.shape[1] != teacher_embedding.shape[1]:
            raise InputError(
                f"The student's embedding has {student_embedding.shape[1]} entries and the teacher's "
                f"{teacher_embedding.shape[1]}: make the student kdlab.models.embedded(..., "
                f"width={teacher_embedding.shape[1]})."
            )
        labels, classes = class_labels(target, student.logits), student.logits.shape[1]
        centers = self._centers(teacher_embedding, labels, classes, teacher.logits.shape[1])
        projections = (student_embedding * F.normalize(centers, dim=1, eps=1e-12)).sum(1)
        norms = torch.maximum(student_embedding.norm(dim=1), teacher_embedding.norm(dim=1)).clamp_min(1e-12)
        return 1 - (projections / norms).mean()

    def _centers(self, teacher: Tensor, labels: Tensor, classes: int, num_classes: int) -> Tensor:
        if not self.is_known:
            if self.training:
                raise InputError("NormAndDirection needs the teacher's class means: call precompute(batches) first.")
            self.materialize(teacher, num_classes, teacher.shape[1])
            return teacher
        num_classes, width = self.means.values.shape
        if classes > num_classes or width != teacher.shape[1]:
            raise InputError(
                f"The class means are of {num_classes} classes and {width} entries, but the networks have {classes} "
                f"classes and embeddings of {teacher.shape[1]}: use the teacher's classes and layer for the student."
            )
        return self.means.values[labels]


class _Means(nn.Module):
    """A table of class means; NaN until they are computed."""

    values: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("values", torch.full((classes, width), torch.nan))


def _embeddings_and_classes(outputs: Outputs, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return embeddings (B, D) and one-hot classes (B, K)."""
    _, values = embeddings(outputs, outputs)
    labels = class_labels(target, outputs.logits)
    classes = outputs.logits.shape[1]
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise InputError(
            f"The training labels go from {int(labels.min())} to {int(labels.max())}, but the teacher has {classes} "
            "classes: use a teacher with the classes of the data."
        )
    values = values.detach() if values.dtype is torch.float64 else values.detach().float()
    return values, F.one_hot(labels, classes).to(values)
