"""Frozen teachers whose outputs are kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from kdlab.members.frozen import Frozen
from kdlab.members.member import Member, Seen
from kdlab.members.teacher_cache import Store
from kdlab.outputs.containers import Batch, Outputs
from kdlab.outputs.observer import inputs_with_views, with_views


class Cached(Member):
    """A frozen teacher and its store: in training it runs only for what the store lacks.

    Args:
        teacher: the teacher.
        store: its store, whose views run with the batch.
        index_of: the positions (B,) of a batch's samples, on the host: to read them on the device would be to wait.
    """

    is_frozen: ClassVar[bool] = True
    in_evaluation: ClassVar[bool] = True
    teacher: Frozen

    def __init__(self, teacher: Frozen, store: Store, index_of: Callable[[Batch], Tensor]) -> None:
        super().__init__(teacher.name)
        self.__dict__["teacher"] = teacher
        self.store, self.index_of = store, index_of

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the teacher's network."""
        return self.teacher.networks_of(name)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the teacher's outputs: from the store, or from a forward if anything is missing."""
        if batch.progress is None:
            return self.teacher(batch, seen)  # type: ignore[no-any-return]
        views = [view for view in self.store.rows if view]

        def live() -> Outputs:
            return self.teacher.observe(inputs_with_views(batch, ("",), views), batch)

        outputs = self.store.look(batch.progress.epoch, self.index_of(batch), live, batch.target.device)
        return {self.name: with_views(outputs, batch, views)}
