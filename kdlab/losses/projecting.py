"""Base of losses that compare a projection of the student's features with the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import one_of
from kdlab.losses.lazy import Lazy

Projection = Literal["linear", "mlp"]


class Projecting(Lazy):
    """A loss with a trained projection from the student's width to the teacher's.

    Args:
        projection: ``"linear"``, ``"mlp"`` (linear to the teacher's width, layer normalization, GELU, linear), or
            ``None`` for equal widths.
    """

    def __init__(self, projection: Projection | None) -> None:
        super().__init__()
        self.projection = one_of("projection", projection, ("linear", "mlp", None))

    def build(self, student: int, teacher: int) -> None:
        """Build the projection."""
        if self.projection == "mlp":
            inner, outer = nn.Linear(student, teacher), nn.Linear(teacher, teacher)
            self.head: nn.Module = nn.Sequential(inner, nn.LayerNorm(teacher), nn.GELU(), outer)
        else:
            self.head = nn.Linear(student, teacher) if self.projection else nn.Identity()

    def project(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the student's features (..., Ds) as (..., Dt), the width of the teacher's.

        Raises:
            InputError: the widths differ and there is no projection, or the widths are others than before.
        """
        if self.projection is None and student.shape != teacher.shape:
            widths = f"The student's features are {student.shape[-1]} wide and the teacher's {teacher.shape[-1]}"
            raise InputError(f"{widths}: set projection to 'linear'.")
        self.materialize(student, student.shape[-1], teacher.shape[-1])
        projected: Tensor = self.head(student)
        return projected
