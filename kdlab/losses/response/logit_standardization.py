"""Logit standardization (LSKD): a loss on logits with mean 0 and deviation 1 in every sample (Sun et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import needs_of, views_of
from kdlab.losses.response.soft_targets import SoftTargets
from kdlab.outputs import Outputs


class LogitStandardization(nn.Module):
    r"""A loss on z-scores: the student need not match the scale and the shift of the teacher's logits.

    .. math:: L = \mathrm{loss}(\tilde z^s, \tilde z^t), \qquad
              \tilde z = \frac{z - \mathrm{mean}_k z}{\mathrm{std}_k z + 10^{-7}}

    with the mean and the unbiased standard deviation (K - 1) over the classes of each sample, on both sides and on
    every view that the loss reads; the gradient goes through both. With 2 classes only the sign is left. The other
    inputs of the loss are unchanged. Computed in float32, or in float64 for float64 logits.

    Recipe: CIFAR-100 soft targets with T = 2, weight 9, with weight 0.1 on the labels (T = 2 or 3 and weights 1 to 18
    by pair); ImageNet T = 1, weights 0.5 and 1. Around DKD the weight multiplies alpha and beta.

    Args:
        loss: the loss on the standardized logits; ``None`` is soft targets with T = 2.

    Shapes:
        logits: (..., K) with K of at least 2; the rest as the loss takes it.

    Raises:
        InputError: logits of one class, an empty batch, or an error of the loss.

    Paper: S. Sun, W. Ren, J. Li, R. Wang, X. Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv
    2403.01427. This gives the value of the authors' code, whose variant of multi-level distillation standardizes only
    its soft targets.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0, 1.0]])), Outputs(torch.tensor([[3.0, 1.0, 0.0]]))
    >>> LogitStandardization()(student, teacher, torch.tensor([0]))
    tensor(0.1636)
    >>> bool(LogitStandardization()(Outputs(7 * teacher.logits + 1), teacher, torch.tensor([0])) < 1e-6)
    True
    """

    recipe_weight: ClassVar[float] = 9.0

    def __init__(self, loss: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = SoftTargets(2.0) if loss is None else loss
        if needs_of(self.loss) and "logits" not in needs_of(self.loss):
            raise InputError(
                f"{type(self.loss).__name__} does not read logits, which LogitStandardization changes; use another."
            )

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the inputs that the wrapped loss needs, and logits."""
        return tuple(dict.fromkeys(("logits", *needs_of(self.loss))))

    @property
    def views(self) -> tuple[str, ...]:
        """Return the views that the wrapped loss reads."""
        return views_of(self.loss)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the wrapped loss on standardized logits, a scalar."""
        value: Tensor = self.loss(_standardize(student), _standardize(teacher), target)
        return value

    @property
    def per_sample(self) -> Callable[[Outputs, Outputs, Tensor], Tensor]:
        """Return the ``per_sample`` of the wrapped loss, on standardized logits."""
        inner: Any = self.loss.per_sample
        return lambda student, teacher, target: inner(_standardize(student), _standardize(teacher), target)


def _standardize(outputs: Outputs) -> Outputs:
    z = outputs.logits
    if z.shape[-1] < 2 or not z.numel():
        raise InputError(f"Logits {tuple(z.shape)} cannot be standardized: at least 2 classes and 1 sample are needed.")
    z = (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-7)
    return replace(outputs, logits=z, views={name: _standardize(view) for name, view in outputs.views.items()})
