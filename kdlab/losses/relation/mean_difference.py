"""Mean difference: squared difference of mean embeddings, as in a port of DDGSD (Xu and Liu 2019)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdlab.losses.checks import embeddings
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs


class MeanDifference(nn.Module):
    r"""Squared difference of the means over batch and features of two embeddings.

    .. math:: L = \Big( \frac{1}{BD} \sum_{bd} e^s_{bd} - \frac{1}{BD} \sum_{bd} e^t_{bd} \Big)^2

    0 for equal means. Computed in float32, or in float64 for float64 embeddings.

    Recipe: DDGSD (Self-KD-Lib) weight 5e-4 for the two views together. :class:`~kdlab.teaching.TwoViews` compares
    them in both directions; with the teacher's side detached, weight 5e-4 gives the same gradient and twice the value.

    Args:
        teacher_gradient: keep the gradient to the teacher's side.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network.
        target: not used.

    Raises:
        InputError: no embedding, several layers, or an empty batch.

    Paper: T.-B. Xu, C.-L. Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019, whose
    term is a maximum mean discrepancy of the features. This follows Self-KD-Lib, a re-implementation, which takes
    the mean over features as well and so is weaker than the discrepancy.

    >>> import torch
    >>> one, other = (Outputs(torch.zeros(2, 3), embedding=torch.full((2, 4), each)) for each in (1.0, 3.0))
    >>> MeanDifference()(one, other, torch.zeros(2))
    tensor(4.)
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding",)
    recipe_weight: ClassVar[float] = 5e-4
    couples_samples: ClassVar[bool] = True

    def __init__(self, teacher_gradient: bool = False) -> None:
        super().__init__()
        self.teacher_gradient = teacher_gradient

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the squared difference, a scalar; gradient to the student, with ``teacher_gradient`` to both sides."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        return (
            student_embedding.mean()
            - (teacher_embedding if self.teacher_gradient else teacher_embedding.detach()).mean()
        ) ** 2
