"""Consistency: mean squared difference of class probabilities, as in mean teacher (Tarvainen and Valpola 2017)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, sample_logits
from kdlab.outputs import Outputs


class Consistency(PerSample):
    r"""Mean squared difference of the two networks' class probabilities.

    .. math:: L = \frac{1}{BK} \sum_{b=1}^{B} \sum_{k=1}^{K} (q_{bk} - p_{bk})^2, \qquad
              p = \mathrm{softmax}(z^t), \quad q = \mathrm{softmax}(z^s)

    0 when both give the same probabilities. Computed in float32, or in float64 for float64 logits.

    Recipe: mean teacher with :class:`~kdlab.teaching.MovingAverage` and an :class:`~kdlab.schedules.ExponentialRamp`
    of the weight; weight 100 in the authors' CIFAR-10 runs with few labels was not verified, so the default here is 1.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: logits of another shape, networks that differ in classes or batch, an empty batch.

    Paper: A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", NIPS 2017, arXiv 1703.01780; the mean over classes follows the formula's
    mean squared error.

    >>> import torch
    >>> one, other = Outputs(torch.tensor([[50.0, 0.0]])), Outputs(torch.tensor([[0.0, 50.0]]))
    >>> Consistency()(one, other, torch.tensor([0]))
    tensor(1.)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.0

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean squared difference over the classes for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        return (student_logits.softmax(1) - teacher_logits.softmax(1)).square().mean(1)
