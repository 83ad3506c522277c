"""Weight schedules over epochs or steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, NamedTuple

from kdlab.errors import InputError


class Progress(NamedTuple):
    """Finished epochs and optimizer steps, and all steps of the training; ``None`` if it has no known end."""

    epoch: int
    step: int
    total_steps: int | None = None


Unit = Literal["epoch", "step"]


class Schedule:
    r"""A factor on a weight: 0 outside of :math:`[begin, until)`, and the subclass's curve inside.

    With ``now`` the epoch or step (plus ``offset``), the curve is evaluated at
    :math:`x = \min((now - begin) / length, 1)`.

    Args:
        begin: epoch (or step) at which the schedule begins; the factor is 0 before.
        until: epoch (or step) at which it ends; the factor is 0 from there on; ``None`` for never.
        unit: unit of ``begin``, ``until`` and ``length``.
        offset: added to the epoch (or step) before the curve is evaluated; 1 for papers that count epochs from 1.
    """

    def __init__(self, begin: int = 0, until: int | None = None, unit: Unit = "epoch", offset: int = 0) -> None:
        if until is not None and until <= begin:
            raise InputError(f"A schedule must end after it begins, but until={until} is not above begin={begin}.")
        if unit not in ("epoch", "step"):
            raise InputError(f"A schedule's unit is 'epoch' or 'step', not {unit!r}.")
        self.begin, self.until, self.unit, self.offset = begin, until, unit, offset

    def __call__(self, progress: Progress) -> float:
        """Return the factor at ``progress``."""
        now = progress.epoch if self.unit == "epoch" else progress.step
        if now < self.begin or (self.until is not None and now >= self.until):
            return 0.0
        return self.curve(now - self.begin + self.offset)

    def curve(self, elapsed: float) -> float:
        """Return the factor ``elapsed`` units after ``begin``."""
        raise NotImplementedError(f"{type(self).__name__} must define curve().")


class Constant(Schedule):
    """The factor 1 from ``begin`` until ``until``.

    >>> hint_first = Constant(until=30)
    >>> hint_first(Progress(epoch=29, step=0)), hint_first(Progress(epoch=30, step=0))
    (1.0, 0.0)
    """

    def curve(self, elapsed: float) -> float:
        """Return 1."""
        return 1.0


class Steps(Schedule):
    """A piecewise constant factor: ``values[i]`` until ``milestones[i]``.

    Args:
        values: the factors, one more than milestones.
        milestones: epochs (or steps) since ``begin`` at which the next value begins, ascending.
        begin, until, unit, offset: see :class:`Schedule`.

    >>> halved = Steps([1.0, 0.5], [180])
    >>> halved(Progress(epoch=179, step=0)), halved(Progress(epoch=180, step=0))
    (1.0, 0.5)
    """

    def __init__(
        self,
        values: Sequence[float],
        milestones: Sequence[int],
        begin: int = 0,
        until: int | None = None,
        unit: Unit = "epoch",
        offset: int = 0,
    ) -> None:
        super().__init__(begin, until, unit, offset)
        if len(values) != len(milestones) + 1 or list(milestones) != sorted(set(milestones)):
            raise InputError(
                f"Steps needs ascending milestones and one value more, not values {list(values)} and milestones "
                f"{list(milestones)}."
            )
        self.values, self.milestones = tuple(values), tuple(milestones)

    def curve(self, elapsed: float) -> float:
        """Return the value of the current stage."""
        return self.values[sum(elapsed >= milestone for milestone in self.milestones)]


class _Ramp(Schedule):
    """A monotonic factor from ``start`` to ``end`` over ``length`` epochs (or steps)."""

    def __init__(
        self,
        length: int,
        start: float = 0.0,
        end: float = 1.0,
        begin: int = 0,
        until: int | None = None,
        unit: Unit = "epoch",
        offset: int = 0,
        hold: int = 1,
    ) -> None:
        super().__init__(begin, until, unit, offset)
        if length <= 0 or hold < 1:
            raise InputError(f"A schedule's length must be above 0 and hold at least 1, not {length} and {hold}.")
        self.length, self.start, self.end, self.hold = length, start, end, hold

    def curve(self, elapsed: float) -> float:
        elapsed = elapsed // self.hold * self.hold
        return self.start + (self.end - self.start) * self._rise(min(max(elapsed / self.length, 0.0), 1.0))

    @abstractmethod
    def _rise(self, x: float) -> float: ...


class Linear(_Ramp):
    r"""A linear ramp from ``start`` to ``end``: :math:`start + (end - start)\,x`.

    ``hold`` is the number of epochs (or steps) for which each value is kept. DKD's warm-up
    :math:`\min(epoch / 20, 1)`, with epochs counted from 1:

    >>> warm_up = Linear(length=20, offset=1)
    >>> [warm_up(Progress(epoch, 0)) for epoch in (0, 1, 9, 19, 29)]
    [0.05, 0.1, 0.5, 1.0, 1.0]
    """

    def _rise(self, x: float) -> float:
        return x


class Cosine(_Ramp):
    r"""A ramp from ``start`` to ``end`` along half a cosine: :math:`start + (end - start)\,(1 - \cos \pi x) / 2`.

    >>> [round(Cosine(length=10, end=-1)(Progress(epoch, 0)), 8) for epoch in (0, 1, 5, 20)]
    [0.0, -0.02447174, -0.5, -1.0]
    """

    def _rise(self, x: float) -> float:
        return (1.0 - math.cos(math.pi * x)) / 2.0


class ExponentialRamp(_Ramp):
    r"""A ramp from about 0 to 1 as :math:`\exp(-5 (1 - x)^2)`: the ramp-up of mean teacher, ONE and OKDDip.

    ``start`` and ``end`` rescale it: :math:`start + (end - start) \exp(-5 (1 - x)^2)`.

    >>> [round(ExponentialRamp(length=80)(Progress(epoch, 0)), 6) for epoch in (0, 40, 80, 100)]
    [0.006738, 0.286505, 1.0, 1.0]
    """

    def _rise(self, x: float) -> float:
        return math.exp(-5.0 * (1.0 - x) ** 2)
