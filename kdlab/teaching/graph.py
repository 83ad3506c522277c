"""A plan as it is written in a config: frozen teachers and peers in one graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any, Literal

from torch import Tensor, nn

from kdlab.errors import InputError, check_word, nearest
from kdlab.members.frozen import Frozen
from kdlab.members.member import Learner
from kdlab.members.stored import Stored
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, Weight, heads_of_all, share_parameters

KEYS = ("student", "teacher", "weight", "gate", "detach")
GATES = ("through", "cutoff", "linear", "correct")


def linear(weight: float, seen: Mapping[str, Outputs], batch: Batch) -> float:
    """Return a weight that grows linearly with the steps, up to its value at the last one."""
    progress = batch.progress
    if progress is None or progress.total_steps is None:
        raise InputError("The gate 'linear' needs a run of known length: set trainer.max_epochs or max_steps.")
    return weight * (progress.step + 1) / progress.total_steps


def correct(weight: float, teacher: str, seen: Mapping[str, Outputs], batch: Batch) -> Tensor:
    """Return the weight for the samples that the teacher classifies correctly, and 0 for the others, (B,)."""
    logits, target = seen[teacher].logits.detach(), seen[teacher].targets(batch)
    if target.is_floating_point() or target.shape != logits.shape[:-1]:
        raise InputError("The gate 'correct' needs class indices (B,) as labels: drop mixing, or take another gate.")
    return (logits.argmax(-1) == target).to(logits.dtype) * weight


class Graph(Teaching):
    r"""A knowledge transfer graph: any directed edges between trained networks and frozen teachers.

    .. math:: L_i = a_i \cdot task_i + w \sum_{j \to i} \frac1B \sum_b g_{ij}(b, t) \cdot loss_b(i, \mathrm{sg}[j])

    An edge is a mapping with ``student`` and ``teacher``, names of networks, heads or members, and perhaps

    - ``weight``: a number of at least 0, by default 1;
    - ``gate``: ``through`` (the weight as it is, by default), ``cutoff`` (the edge does not count), ``linear`` (the
      weight grows linearly with the steps, up to its value at the last one), or ``correct`` (only samples that the
      teacher classifies correctly count, in the mean over the whole batch; for losses that have ``per_sample``);
    - ``detach``: whether the teacher's side is detached, by default true.

    A :class:`~kdlab.Knowledge` uses all edges, or those of the ``teachers`` that it names.

    Paper: S. Minami, T. Hirakawa, T. Yamashita, H. Fujiyoshi, "Knowledge Transfer Graph for Deep Collaborative
    Learning", ACCV 2020, arXiv 1909.04286, where the graph and its gates are searched for; the paper's edges are KL
    divergences at T = 1.

    Args:
        edges: the edges, as above.
        members: frozen teachers by name: networks, :class:`~kdlab.members.Frozen` with options, or
            :class:`~kdlab.members.Stored`.
        supervision: how much the labels count for a network or head; 1 for each if not given.
        update: whether networks are updated at once or one after another.

    Raises:
        InputError: an edge with an unknown key, gate or name, with a weight that is no number of at least 0, from a
            network to itself, or that counts twice.
    """

    ways = (Way("Knowledge transfer graph (KTG)", "Minami et al. 2020", ("knowledge_transfer_graph",)),)

    def __init__(
        self,
        edges: Sequence[Mapping[str, Any]],
        members: dict[str, nn.Module] | None = None,
        supervision: dict[str, float] | None = None,
        update: Literal["simultaneous", "sequential"] = "simultaneous",
    ) -> None:
        super().__init__()
        check_word("update", update, ("simultaneous", "sequential"))
        self.update, self.supervision = update, supervision
        self.edges = [_parsed(edge, number) for number, edge in enumerate(edges)]
        numbers: dict[tuple[str, str], int] = {}
        for number, edge in enumerate(self.edges):
            if edge.student == edge.teacher:
                raise InputError(f"edges[{number}] leads from {edge.student!r} to itself: drop it.")
            if edge.weight != 0 and (first := numbers.setdefault(edge[:2], number)) != number:
                raise InputError(f"edges[{number}] has the student and the teacher of edges[{first}]: keep one.")
        networks = [id(member) for member in (members or {}).values()]
        if len(set(networks)) < len(networks):
            raise InputError("Two members of a graph are one object: make one for each name.")
        self.teachers = nn.ModuleDict()
        for name, member in (members or {}).items():
            if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in ("ensemble", "deployed"):
                raise InputError(
                    "A member's name must be a plain word other than 'ensemble', 'deployed' and the methods of a dict, "
                    f"not {name!r}."
                )
            self.teachers[name] = frozen = member if isinstance(member, (Frozen, Stored)) else Frozen(member)
            frozen.name = name

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return the plan as it is written."""
        students = heads_of_all(networks)
        supervision: dict[str, Weight] = dict.fromkeys(students, 1.0)
        if self.supervision is not None:
            if unknown := [name for name in self.supervision if name not in students]:
                raise InputError(
                    f"supervision names {unknown[0]!r}; the nearest names are {nearest(unknown[0], students)}."
                )
            for name, weight in self.supervision.items():
                _check_weight(f"supervision of {name!r}", weight)
            supervision = {name: weight for name, weight in self.supervision.items() if weight}
        frozen = {name: member for name, member in self.teachers.items() if isinstance(member, (Frozen, Stored))}
        if clash := sorted(frozen.keys() & networks.keys()):
            raise InputError(f"{clash[0]!r} is both a network and a member of the graph: rename one.")
        if taught := [edge.student for edge in self.edges if edge.student in frozen]:
            raise InputError(f"An edge has the frozen member {taught[0]!r} as its student.")
        for name, learner in networks.items():
            learns = {*supervision, *(edge.student for edge in self.edges if edge.weight != 0)}
            if not learns & {*learner.heads}:
                raise InputError(f"The network {name!r} learns from nothing: give it supervision, or an edge.")
        for (name, learner), (other, member) in product(networks.items(), frozen.items()):
            if isinstance(member, Frozen) and share_parameters(learner.network, member.network):
                raise InputError(f"The member {other!r} and the network {name!r} share parameters: copy them.")
        return Plan({**networks, **frozen}, self.edges, supervision, update=self.update)


def _parsed(edge: Mapping[str, Any], number: int) -> Edge:
    """Return an edge; one that is cut off weighs 0."""
    what = f"edges[{number}]"
    if not isinstance(edge, Mapping) or not {"student", "teacher"} <= edge.keys():
        raise InputError(f"{what} is a mapping with 'student' and 'teacher', not {edge!r}.")
    if unknown := [key for key in edge if key not in KEYS]:
        raise InputError(f"{what} has no key {unknown[0]!r}; the nearest are {nearest(str(unknown[0]), KEYS)}.")
    weight, gate = edge.get("weight", 1.0), edge.get("gate") or "through"
    _check_weight(f"{what}.weight", weight)
    detach = edge.get("detach", True)
    if not isinstance(detach, bool):
        raise InputError(f"{what}.detach is true or false, not {detach!r}.")
    check_word(f"{what}.gate", gate, GATES)
    student, teacher = str(edge["student"]), str(edge["teacher"])
    gates: dict[str, Weight] = {"linear": partial(linear, weight), "correct": partial(correct, weight, teacher)}
    gates["cutoff"] = 0.0
    return Edge(student, teacher, gates.get(gate, float(weight)) if weight else 0.0, detach)


def _check_weight(what: str, weight: Any) -> None:
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
        raise InputError(f"{what} is a finite number of at least 0, not {weight!r}.")
