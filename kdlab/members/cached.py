"""Frozen teachers whose outputs are kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdlab.members.frozen import Frozen
from kdlab.members.member import Member, Seen
from kdlab.members.teacher_cache import TeacherCache
from kdlab.outputs.containers import Batch, Outputs, inputs_of
from kdlab.outputs.observer import inputs_with_views, with_views


class Cached(Member):
    """Frozen teachers behind an open cache: in training they run only for what it lacks.

    Args:
        teachers: the teachers, in the order in which the cache was opened for them.
        cache: an open cache.
        index_of: the positions (B,) of a batch's samples, on the host: to read them on the device would be to wait.
        views: names of the views that run with the batch.
    """

    is_frozen: ClassVar[bool] = True
    in_evaluation: ClassVar[bool] = True
    teachers: tuple[Frozen, ...]

    def __init__(
        self,
        teachers: Sequence[Frozen],
        cache: TeacherCache,
        index_of: Callable[[Batch], Tensor],
        views: Sequence[str] = (),
    ) -> None:
        super().__init__("cached")
        self.__dict__["teachers"] = tuple(teachers)
        self.cache, self.index_of, self.views = cache, index_of, tuple(views)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all teachers' outputs."""
        return tuple(name for teacher in self.teachers for name in teacher.names)

    def networks_of(self, name: str) -> tuple[tuple[torch.nn.Module, str], ...]:
        """Return the network of a teacher."""
        return next(teacher for teacher in self.teachers if name in teacher.names).networks_of(name)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return each teacher's outputs: from the cache, or from a forward of all if anything is missing."""
        if batch.progress is None:
            return {name: outputs for teacher in self.teachers for name, outputs in teacher(batch, seen).items()}
        self.cache.advance(batch.progress.epoch)
        index = self.index_of(batch)
        parts = [("", index, self.cache.rows)]
        for view in self.views:
            count = len(inputs_of(batch.view(view))) // len(index)
            places = index[:, None] * count + torch.arange(count, device=index.device)
            parts.append((view, places.flatten(), self.cache.rows * count))
        inputs = inputs_with_views(batch, ("",), self.views)
        outputs = self.cache.look(parts, lambda: [t.observe(inputs, batch) for t in self.teachers], inputs.device)
        named = zip(self.teachers, outputs, strict=True)
        return {teacher.name: with_views(each, batch, self.views) for teacher, each in named}
