"""MLKD: predictions, sample and class similarities at several temperatures on two views (Jin et al. 2023)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import divergence, sample_logits, split
from kdlab.losses.response.on_view import view_of
from kdlab.outputs import Outputs


class MLKD(nn.Module):
    r"""Soft targets and Gram matrices of probabilities, on the batch (w) and on its strongly augmented view (s).

    .. math:: L = \sum_T \Big( \frac{1}{B} \sum_b m_b K^w_{T b} + \frac{1}{B} \sum_b K^{s(T)}_{T b}
              + \frac{\bar m}{B} \| P P^\top - Q Q^\top \|_F^2 + \frac{\bar c}{K} \| P^\top P - Q^\top Q \|_F^2 \Big)

    with :math:`P, Q` (B, K) the softmax of :math:`z / T` of teacher and student on the batch and
    :math:`K_{T b} = T^2 \, \mathrm{KL}(P_b \| Q_b)`. The masks m and c select the samples on which the teacher's
    confidence (largest probability at T = 1) is at most the median, and the classes whose total probability is at most
    the median; :math:`\bar m, \bar c` are the selected shares. 0 when both networks agree on both views. Computed in
    float32, or in float64 for float64 logits.

    As released (the default), :math:`m_b` is :math:`\bar m` too, so that nothing is selected, and the second term uses
    the strong view for all temperatures but the last two, for which it uses the batch. Otherwise the masks select:
    samples in the first term, rows of the Gram matrices in the last two; the second term uses the strong view
    throughout; and the Gram terms are added for the strong view, with the same masks.

    Recipe: CIFAR-100 weight 0.9, with weight 0.1 on the labels of either view (:class:`~kdlab.losses.OnView`), learning
    rate 0.025, 240 epochs (480 and more for pairs of different architectures), strong view by RandAugment(2, 10).

    Args:
        temperatures: T, positive; of the released code's five, the first is the base temperature.
        view: name of the strong view.
        as_released: compute what the released code computes; ``False``: what it means to compute.

    Shapes:
        logits: (B, K), the same for both networks and on the view.
        target: not used.

    Raises:
        InputError: temperatures out of range, networks or views that differ in classes or batch, no such view, an empty
            batch.

    Paper: Y. Jin, J. Wang, D. Lin, "Multi-Level Logit Distillation", CVPR 2023. This follows the authors' code as
    described above.

    >>> from dataclasses import replace
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> student, teacher = (replace(each, views={"strong": each}) for each in (student, teacher))
    >>> MLKD(temperatures=(2.0, 4.0))(student, teacher, torch.tensor([0]))
    tensor(7.7524)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "views")
    recipe_weight: ClassVar[float] = 0.9
    couples_samples: ClassVar[bool] = True

    def __init__(
        self,
        temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0),
        view: str = "strong",
        as_released: bool = True,
    ) -> None:
        super().__init__()
        if not temperatures:
            raise InputError("temperatures must have at least one entry.")
        self.temperatures = tuple(at_least("temperatures", each, 0, strictly=True) for each in temperatures)
        self.view = view
        self.as_released = as_released

    @property
    def views(self) -> tuple[str, ...]:
        """Return the strong view."""
        return (self.view,)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum of all terms, a scalar; gradient to the student only."""
        weak, strong = (
            sample_logits(student, teacher),
            sample_logits(view_of(student, self.view), view_of(teacher, self.view)),
        )
        if weak[0].shape != strong[0].shape:
            raise InputError(
                f"MLKD needs one input for each sample on the view {self.view!r}, but logits are "
                f"{tuple(weak[0].shape)} on the batch and {tuple(strong[0].shape)} on the view."
            )
        samples, classes = _masks(weak[1])
        if self.as_released:
            samples, classes = samples.mean().expand_as(samples), classes.mean().expand_as(classes)
        terms = []
        for number, temperature in enumerate(self.temperatures):
            last_two = number >= len(self.temperatures) - 2
            second = weak if self.as_released and last_two else strong
            terms.append(temperature**2 * (samples * divergence(*weak, temperature)).mean())
            terms.append(temperature**2 * divergence(*second, temperature).mean())
            for view in (weak,) if self.as_released else (weak, strong):
                q, p = (F.softmax(logits / temperature, 1) for logits in view)
                terms += [_gram_difference(q, p, samples), _gram_difference(q.T, p.T, classes)]
        return torch.stack(terms).sum()


def _masks(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks of the half of the samples with the least confidence and of the classes with the least mass."""
    # Both compared by monotone functions of probabilities, which still differ where float32 probabilities round to 1.
    surest, mass = split(teacher, teacher.argmax(1))[0], F.log_softmax(teacher, 1).logsumexp(0)
    return (surest <= surest.median()).to(teacher.dtype), (mass <= mass.median()).to(teacher.dtype)


def _gram_difference(q: Tensor, p: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over rows of the squared difference of both Gram matrices; rows masked out count 0."""
    return (mask * (p @ p.T - q @ q.T).square().sum(1)).mean()
