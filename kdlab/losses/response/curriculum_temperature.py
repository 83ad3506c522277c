"""CTKD: a temperature trained adversarially to the student, by a curriculum (Li et al. 2023)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import kinds_of, needs_of, views_of
from kdlab.losses.response.soft_targets import SoftTargets
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import Kind


class CurriculumTemperature(nn.Module):
    r"""A loss on logits with a trained temperature that maximizes the loss, in the student's optimizer.

    .. math:: L = \mathrm{loss}_T(z^s, z^t), \qquad T = t_{start} + t_{end} \, \sigma(\theta), \qquad
              \frac{\partial L}{\partial \theta} \text{ times } \lambda_e = -\tfrac{1}{2} + \tfrac{1}{2}
              \cos(\pi \min(e / length, 1))

    with one number theta, 1 at first (so T starts at 15.6 and stays between 1 and 21), and e the epoch counted from 1.
    The factor goes from 0 to -1: theta climbs where everything else descends. The gradient passes through everything
    that the loss computes from its temperature: both networks' probabilities and the factor T^2. The value is that of
    the loss at T. Computed in float32, or in float64 if an input or the parameter is float64.

    Recipe: CIFAR-100 length = 10, weight 0.9, with weight 0.1 on the labels; ImageNet length = 5, weights 1 and 1. The
    optimizer's weight decay acts on theta as on all parameters.

    Args:
        loss: a loss with a temperature, which this replaces; ``None`` is soft targets.
        t_start: the smallest temperature, positive.
        t_end: what is added at most, not negative.
        length: epochs over which the factor goes to -1, at least 1.

    Shapes:
        as the loss takes them.

    Raises:
        InputError: a number out of range, a loss without a temperature, or an error of the loss.

    Paper: Z. Li, X. Li, L. Yang, B. Zhao, R. Song, L. Luo, J. Li, J. Yang, "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023, arXiv 2211.16231. This is the global temperature of the authors' code; their temperature
    for every sample, from a small network, is not implemented.

    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> CurriculumTemperature()(student, teacher, torch.tensor([0]))
    tensor(1.9973, grad_fn=<MulBackward0>)
    """

    recipe_weight: ClassVar[float] = 0.9
    true_gradient: ClassVar[bool] = False

    def __init__(
        self, loss: nn.Module | None = None, t_start: float = 1.0, t_end: float = 20.0, length: int = 10
    ) -> None:
        super().__init__()
        self.loss = SoftTargets() if loss is None else loss
        if not self._tempered_parts:
            raise InputError(f"{type(self.loss).__name__} has no temperature to train: use a loss that has one.")
        self.t_start = at_least("t_start", t_start, 0, strictly=True)
        self.t_end = at_least("t_end", t_end, 0)
        self.length = at_least("length", length, 1)
        self.theta = nn.Parameter(torch.ones(1))
        self.reversal = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the inputs that the wrapped loss needs."""
        return needs_of(self.loss)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of targets that the wrapped loss is right for."""
        return kinds_of(self.loss)

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views that the wrapped loss reads."""
        return views_of(self.loss)

    def advance(self, epoch: int, step: int) -> None:
        """Set the factor of theta's gradient for this epoch, counted from 0."""
        done = min((epoch + 1) / self.length, 1.0)
        self.reversal = (math.cos(math.pi * done) - 1) / 2

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss at the current temperature, a scalar; gradient to the student, reversed to theta."""
        detached = self.theta.detach()
        theta = detached + self.reversal * (self.theta - detached)  # the same value, with the factor on its gradient
        temperature = self.t_start + self.t_end * theta.sigmoid().squeeze()
        originals = [(part, part.temperature) for part in self._tempered_parts]
        try:  # dividing the logits instead would lose the gradient through the teacher's side, which losses detach
            for part in self._tempered_parts:
                part.temperature = temperature
            value: Tensor = self.loss(student, teacher, target)
        finally:
            for part, original in originals:
                part.temperature = original
        return value

    @property
    def _tempered_parts(self) -> list[Any]:
        return [part for part in self.loss.modules() if hasattr(part, "temperature")]
