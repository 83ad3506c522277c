"""Soft targets (KD): divergence from the teacher's softened class probabilities (Hinton et al. 2015)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, same_logits
from kdlab.losses.context import Context
from kdlab.losses.functional import full_precision, kl_divergence
from kdlab.losses.response.logits import ONE_CLASS, sample_logits
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import ALL_KINDS, Kind, TaskFormat, task_format


class SoftTargets(nn.Module):
    r"""Kullback-Leibler divergence from the teacher's to the student's softened class probabilities.

    .. math:: L = T^2 \, \frac{1}{N} \sum_{n=1}^{N} \sum_{k=1}^{K} p_{nk} \log \frac{p_{nk}}{q_{nk}}, \qquad
              p = \mathrm{softmax}(z^t / T), \quad q = \mathrm{softmax}(z^s / T)

    Summed over classes and averaged over every other position n: samples, or tokens and pixels whose label is not
    ignored and whose mask is 1. 0 when both give the same probabilities. For one logit, or one a label, it is the
    divergence of Bernoulli distributions with sigmoids in place of the softmax, summed over the labels; for regression
    the mean squared difference, without T. Which one holds follows from the task loss (``Context.form``); used alone
    the loss takes logits as class scores. Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 (RepDistiller) T = 4, weight 0.9, with weight 0.1 on the labels; ImageNet (mdistiller) T = 1,
    weights 0.5 and 0.5.

    Args:
        temperature: T, positive; the factor T^2 keeps the gradient's size when T changes.
        floor: added to each of the teacher's probabilities, at least 0. They then sum to more than 1; 1e-7 in the
            released code of ONE and OKDDip, 0 in the formula.
        teacher_gradient: keep the gradient to the teacher's side, for targets with trained parts
            (:class:`~kdlab.teaching.Leader`).

    Shapes:
        logits: (B, K); or (B, K, ...) or (B, ..., K), with class indices (B, ...) or a mask of that shape that show
            which axis is the class axis. The same for both networks.
        target: not used but for this.

    Raises:
        InputError: a number out of range; the networks differ in classes or positions; the mask excludes all positions.

    Paper: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning
    Workshop, arXiv 1503.02531. Released code: RepDistiller, mdistiller and mmrazor give this value. torchdistill
    without labels drops T^2, Tf-KD and DeiT also divide by K, cls_KD gives the cross-entropy (same gradient); this
    follows none of these.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> SoftTargets(temperature=2.0)(student, teacher, torch.tensor([0]))
    tensor(1.8485)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    kinds: ClassVar[tuple[Kind, ...]] = ALL_KINDS[:-1]
    recipe_weight: ClassVar[float] = 0.9

    def __init__(self, temperature: float = 4.0, floor: float = 0.0, teacher_gradient: bool = False) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.floor = at_least("floor", floor, 0)
        self.teacher_gradient = teacher_gradient
        self.form = TaskFormat()

    def setup(self, context: Context) -> None:
        """Take the form of the divergence from the task."""
        self.form = context.form
        if not self.form.has_classes and (self.floor or self.teacher_gradient):
            raise InputError("floor and teacher_gradient are for class probabilities alone.")

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence, a scalar; gradient to the student, and to the teacher with ``teacher_gradient``."""
        same_logits(student, teacher)
        if student.logits.dim() > 2:
            form = task_format(None, student.logits, target, student.mask)
            student, teacher, target = form.select(student, teacher, target)
        if not self.form.has_classes:
            return self.per_sample(student, teacher, target).mean()
        if student.logits.shape[1] < 2:
            raise InputError(ONE_CLASS)
        target_logits = teacher.logits if self.teacher_gradient else teacher.logits.detach()
        return kl_divergence(student.logits, target_logits, self.temperature, floor=self.floor)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence for every sample, (B,), of logits (B, K) only."""
        if self.floor or self.teacher_gradient:
            raise InputError("Teacher weights for each sample do not support floor and teacher_gradient.")
        pair = sample_logits(student, teacher, least=2 if self.form.has_classes else 1)
        value = self.form.divergence(*pair, self.temperature)
        return value if self.form.kind == "regression" else value * self.temperature**2
