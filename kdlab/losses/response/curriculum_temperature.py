"""CTKD: the temperature is learnt against the student, harder from epoch to epoch (Li et al. 2023)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import needs_of, views_of
from kdlab.losses.response.soft_targets import SoftTargets
from kdlab.outputs import Outputs


class CurriculumTemperature(nn.Module):
    r"""A loss on logits over a temperature that is trained, by the student's optimiser, to make the loss larger.

    .. math:: L = \mathrm{loss}_T(z^s, z^t), \qquad T = t_{start} + t_{end} \, \sigma(\theta), \qquad
              \frac{\partial L}{\partial \theta} \text{ times } \lambda_e = -\tfrac{1}{2} + \tfrac{1}{2}
              \cos(\pi \min(e / length, 1))

    with one number theta, 1 at first (so T starts at 15.6 and stays between 1 and 21), and e the epoch counted from 1.
    The factor goes from 0 to -1: theta climbs where everything else descends. The gradient passes through everything
    that the loss does with its temperature: both networks' probabilities and the factor T^2. The value is the loss' own
    at T. Computed in float32, or in float64 if an input or the parameter is float64.

    Recipe: CIFAR-100 length = 10, weight 0.9, with weight 0.1 on the labels; ImageNet length = 5, weights 1 and 1. The
    optimiser's weight decay acts on theta as on all parameters.

    Args:
        loss: a loss with a temperature, which is replaced; ``None`` is soft targets.
        t_start: the smallest temperature, positive.
        t_end: what is added at most, not negative.
        length: epochs over which the factor goes to -1, at least 1.

    Shapes:
        as the loss takes them.

    Raises:
        InputError: a number out of range, a loss without a temperature, and whatever the loss refuses.

    Paper: Z. Li, X. Li, L. Yang, B. Zhao, R. Song, L. Luo, J. Li, J. Yang, "Curriculum Temperature for Knowledge
    Distillation", AAAI 2023, arXiv 2211.16231. This is the global temperature of the authors' code; the temperature of
    every sample by a small network is not here.

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
        if not self._softened:
            raise InputError(f"{type(self.loss).__name__} has no temperature to learn: give a loss that has one.")
        self.t_start = at_least("t_start", t_start, 0, strictly=True)
        self.t_end = at_least("t_end", t_end, 0)
        self.length = at_least("length", length, 1)
        self.theta = nn.Parameter(torch.ones(1))
        self.reversal = 0.0

    @property
    def needs(self) -> tuple[str, ...]:
        """What the loss inside needs."""
        return needs_of(self.loss)

    @property
    def views(self) -> tuple[str, ...]:
        """The views that the loss inside reads."""
        return views_of(self.loss)

    def advance(self, epoch: int, step: int) -> None:
        """Set the factor of theta's gradient for this epoch, counted from 0."""
        done = min((epoch + 1) / self.length, 1.0)
        self.reversal = (math.cos(math.pi * done) - 1) / 2

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """The loss at the present temperature, a scalar; gradient to the student, and reversed to theta."""
        held = self.theta.detach()
        theta = held + self.reversal * (self.theta - held)  # the same value, with the factor on its gradient
        temperature = self.t_start + self.t_end * theta.sigmoid().squeeze()
        own = [(part, part.temperature) for part in self._softened]
        try:  # dividing the logits here would lose the teacher's part, which losses cut from the graph
            for part in self._softened:
                part.temperature = temperature
            value: Tensor = self.loss(student, teacher, target)
        finally:
            for part, before in own:
                part.temperature = before
        return value

    @property
    def _softened(self) -> list[Any]:
        return [part for part in self.loss.modules() if hasattr(part, "temperature")]
