"""Plans: who teaches whom, as named members and edges between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from kdlab.data import View
from kdlab.errors import InputError, nearest
from kdlab.members.member import Learner, Member
from kdlab.outputs import Batch, Outputs

Weight = float | Callable[[Mapping[str, Outputs], Batch], "float | Tensor"]
"""A number, or a function of the step's outputs and batch that gives one; for an edge perhaps one a sample (B,)."""


class Edge(NamedTuple):
    """One directed transfer of knowledge.

    Attributes:
        student: name of the outputs that learn.
        teacher: name of the outputs that teach.
        weight: how much the edge counts.
        detach: whether the teacher's side is detached from the graph.
    """

    student: str
    teacher: str
    weight: Weight = 1.0
    detach: bool = True


def source_of(name: str) -> str:
    """Return the name of an output without its variant: ``"net"`` of ``"net@second"``."""
    return name.partition("@")[0]


@dataclass(frozen=True)
class Plan:
    """The graph of one way of teaching; drawn once, run at every step.

    Attributes:
        members: the sources of outputs, in the order in which they run.
        edges: the transfers of knowledge.
        supervision: names of outputs that the task loss compares with labels, and how much each counts (a number).
        views: the views that the data must make, by name.
        student_taps: layers of the learners that members read.
        rewrite: what a training step's batch becomes before the members run; ``None`` for what it is.
        update: whether all learners take a step at once, or one after another with new forwards.

    Raises:
        InputError: two members give outputs of one name; an edge or the supervision names an output that nobody gives.
    """

    members: Mapping[str, Member]
    edges: Sequence[Edge]
    supervision: Mapping[str, Weight]
    views: Mapping[str, View] = field(default_factory=dict)
    student_taps: tuple[str, ...] = ()
    rewrite: Callable[[Batch], Batch] | None = None
    update: Literal["simultaneous", "sequential"] = "simultaneous"

    def __post_init__(self) -> None:
        owners: dict[str, Member] = {}
        for member in self.members.values():
            for name in member.names:
                if owners.setdefault(name, member) is not member:
                    raise InputError(f"Two members give outputs named {name!r}: rename one.")
        named = [(name, "supervision") for name in self.supervision]
        for number, edge in enumerate(self.edges):
            named += [(edge.student, f"edges[{number}].student"), (edge.teacher, f"edges[{number}].teacher")]
        for name, place in named:
            if name not in owners:
                near = nearest(name, owners)
                raise InputError(f"No member gives an output {name!r}; the nearest names are {near} (see {place}).")
        students = [*heads_of_all(self.learners), *(name for name in self.supervision if "@" not in name)]
        turns = tuple(self.learners) if self.update == "sequential" else (None,)
        self.__dict__.update(owners=owners, students=tuple(dict.fromkeys(students)), turns=turns)

    owners: Mapping[str, Member] = field(init=False, repr=False)
    """The member that gives each output."""
    students: tuple[str, ...] = field(init=False, repr=False)
    """The outputs of learners, of all heads, and of mixtures that learn from labels."""
    turns: tuple[str | None, ...] = field(init=False, repr=False)
    """The learners that take a step one after another; ``(None,)`` if all do at once."""

    @property
    def learners(self) -> dict[str, Learner]:
        """Return the members that are trained networks, by name."""
        return {name: member for name, member in self.members.items() if isinstance(member, Learner)}

    @property
    def frozen(self) -> list[Member]:
        """Return the members whose outputs do not change in training, in order."""
        return [member for member in self.members.values() if member.is_frozen]

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the networks behind an output, each with the name of its head; none of a mixture or unknown name."""
        return self.owners[name].networks_of(name) if name in self.owners else ()


class Way(NamedTuple):
    """A published method that a teaching carries out, for ``kdlab methods``; recipes are files in configs/recipes."""

    method: str
    paper: str
    recipes: tuple[str, ...]


class Teaching(nn.Module):
    """Who teaches whom: draws the plan of a run.

    A subclass defines :meth:`plan`. Parameters and buffers that belong into checkpoints are registered here.
    """

    ways: ClassVar[tuple[Way, ...]] = ()
    """The published methods that it carries out."""

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return members, edges and supervision for networks that are to be trained, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define plan().")


class Supervised(Teaching):
    """Plain training on the labels."""

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan without edges."""
        return Plan(networks, [], dict.fromkeys(heads_of_all(networks), 1.0))


def heads_of_all(networks: Mapping[str, Learner]) -> list[str]:
    """Return the names of the outputs of all networks and their heads."""
    return [head for network in networks.values() for head in network.heads]


def share_parameters(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two networks, of which one is trained and one frozen, have a parameter in common."""
    return not {*map(id, one.parameters())}.isdisjoint(map(id, other.parameters()))


def weight_at_least_zero(weight: float, what: str) -> float:
    """Return ``weight`` as a float; refuse what is negative, infinite or not a number."""
    if not 0 <= weight < math.inf:
        raise InputError(f"{what} must be a finite number of at least 0, not {weight}.")
    return float(weight)
