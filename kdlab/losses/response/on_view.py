"""OnView: a loss on one view of the batch, such as the strongly augmented images, instead of the batch itself."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision
from kdlab.losses.response.labels import Labels
from kdlab.losses.response.logits import kinds_of, needs_of, views_of
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import Kind


class OnView(nn.Module):
    r"""A loss on both networks' outputs on one view, instead of those on the batch itself.

    .. math:: L = \mathrm{loss}(student_{view}, teacher_{view}, target)

    A view with V inputs a sample is a batch V times as large, with every label and index repeated. The view itself
    comes from the data (``data.views``).

    Recipe: CIFAR-100 multi-level logit distillation: the labels on the view "strong" with weight 0.1.

    Args:
        loss: the loss on the view; ``None`` is the cross-entropy with the true labels.
        view: the view's name.

    Shapes:
        as the loss takes them, on the view.

    Raises:
        InputError: the networks were not run on the view, or an error of the loss.

    Paper: none; Y. Jin, J. Wang, D. Lin, "Multi-Level Logit Distillation", CVPR 2023, trains on the labels
    of two views.

    >>> import torch
    >>> plain, strong = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[1.0, 0.0]]))
    >>> student = teacher = replace(plain, views={"strong": strong})
    >>> OnView(Labels())(student, teacher, torch.tensor([0]))
    tensor(0.3133)
    """

    method: ClassVar[str] = "a loss on a view"
    paper: ClassVar[str] = ""
    recipe_weight: ClassVar[float] = 0.1
    minimum: ClassVar[float | None] = None
    only_views: ClassVar[bool] = True

    def __init__(self, loss: nn.Module | None = None, view: str = "strong") -> None:
        super().__init__()
        self.loss = Labels() if loss is None else loss
        self.view = view

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the inputs that the wrapped loss needs, and views."""
        return tuple(dict.fromkeys((*needs_of(self.loss), "views")))

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Return the kinds of targets that the wrapped loss is right for."""
        return kinds_of(self.loss)

    @property
    def views(self) -> tuple[str, ...]:
        """Return the view, and those that the wrapped loss reads."""
        return (self.view, *views_of(self.loss))

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the wrapped loss on the view, a scalar."""
        value: Tensor = self.loss(*self._on_view(student, teacher, target))
        return value

    def _on_view(self, student: Outputs, teacher: Outputs, target: Tensor) -> tuple[Outputs, Outputs, Tensor]:
        student_view, teacher_view = view_of(student, self.view), view_of(teacher, self.view)
        count = max(len(student_view.logits) // max(len(student.logits), 1), 1)
        return (
            replace(student_view, index=_repeated(student.index, count)),
            replace(teacher_view, index=_repeated(teacher.index, count)),
            target.repeat_interleave(count, 0),
        )


def view_of(outputs: Outputs, name: str) -> Outputs:
    """Return the outputs on a view.

    Raises:
        InputError: the network was not run on it.
    """
    if name not in outputs.views:
        raise InputError(f"This loss reads the view {name!r}, which the outputs lack: add it to data.views.")
    return outputs.views[name]


def _repeated(index: Tensor | None, count: int) -> Tensor | None:
    return None if index is None else index.repeat_interleave(count)
