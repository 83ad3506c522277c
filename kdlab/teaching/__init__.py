"""Who teaches whom: from the networks' outputs on a batch to lessons."""

from kdlab.teaching.frozen import FrozenTeacher
from kdlab.teaching.teaching import Lesson, Teaching

__all__ = ["FrozenTeacher", "Lesson", "Teaching"]
