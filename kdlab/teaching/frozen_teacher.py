"""A frozen teacher, or an ensemble of them, for every student."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from kdlab.data.preprocessing import Preprocessing
from kdlab.errors import InputError
from kdlab.members.ensembles import Ensemble
from kdlab.members.fast_options import Fast
from kdlab.members.frozen import Frozen
from kdlab.members.member import Learner, Member
from kdlab.members.mixtures import Ensembled
from kdlab.members.stored import Stored
from kdlab.members.teacher_cache import TeacherCache
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, heads_of_all


class FrozenTeacher(Teaching):
    r"""One or several trained networks that teach and never change.

    A list of teachers acts as its ``ensemble`` says: by default as one whose class probabilities are the weighted mean
    of theirs. Their layers are named with the number of the teacher: ``"0.layer3"`` is the first one's. Teachers by
    name stay apart: each has an edge to the student, every knowledge is compared with each of them, with a copy of its
    loss (and so of its projection) for each, or with those that ``Knowledge(teachers=[...])`` names. They need no
    classes in common. See :class:`~kdlab.members.Frozen` for what keeps a teacher unchanged, and how it runs.

    Args:
        networks: the teachers: networks, :class:`~kdlab.members.Frozen` with options of their own, or
            :class:`~kdlab.members.Stored`, a file of a teacher's outputs; a list, or a mapping by name.
        weights: one positive number per teacher, scaled to sum to 1; ``None`` counts all alike.
        batchnorm: ``"frozen"`` normalizes with the teachers' running statistics. ``"batch"`` normalizes with those of
            the batch, as the released code of OFD and ReviewKD (CIFAR) does; the running statistics still do not
            change.
        ensemble: how several teachers act together; :class:`~kdlab.teaching.Ensemble` if not given.
        fast: what may be done to make the forward cheaper; ``None`` for nothing.
        cache: where outputs are kept on disk instead of being computed again.
        preprocessing: what the teachers were trained to see, see :class:`~kdlab.members.Frozen`, which takes another
            one for each teacher.

    Raises:
        InputError: no network, or weights that are not positive or not one per teacher, or that the ensemble does not
            take; an ensemble of teachers by name, or a name that is the student's.
    """

    ways = (Way("Born-again networks (`kdlab generations`)", "Furlanello et al. 2018", ("born_again",)),)

    def __init__(
        self,
        networks: Sequence[nn.Module] | Mapping[str, nn.Module],
        weights: Sequence[float] | None = None,
        batchnorm: Literal["frozen", "batch"] = "frozen",
        ensemble: Ensemble | None = None,
        fast: Fast | None = Fast(),  # noqa: B008  # frozen
        cache: TeacherCache | None = None,
        preprocessing: Preprocessing | Literal["own"] | None = None,
    ) -> None:
        super().__init__()
        self.is_apart = isinstance(networks, Mapping)
        named = dict(networks) if isinstance(networks, Mapping) else {}
        networks = [*named.values()] if isinstance(networks, Mapping) else networks
        shares = [1.0] * len(networks) if weights is None else list(weights)
        if not networks:
            raise InputError("A frozen teacher needs at least one network.")
        if len(shares) != len(networks) or any(not 0 < w < math.inf for w in shares):
            raise InputError(
                f"Teacher weights must be one positive number per teacher ({len(networks)}), not {shares}."
            )
        self.ensemble = ensemble or Ensemble()
        if self.is_apart and ensemble is not None:
            raise InputError("Teachers by name stay apart: give a list of them to an ensemble.")
        for name in named:
            if name in ("", "student") or {".", "@"} & {*name}:
                raise InputError(f"A teacher cannot be named {name!r}: names are words without '.' and '@'.")
        if weights is not None and not self.ensemble.weighted:
            raise InputError(f"{type(self.ensemble).__name__} finds the teachers' weights itself: give none.")
        self.weights = [w / sum(shares) for w in shares]
        names = [f"teacher.{number}" for number in range(len(networks))] if len(networks) > 1 else ["teacher"]
        names = [*named] if self.is_apart else names
        self.teachers = nn.ModuleList(
            network if isinstance(network, (Frozen, Stored)) else Frozen(network, name, batchnorm, fast, preprocessing)
            for name, network in zip(names, networks, strict=True)
        )
        for name, member in zip(names, self.members, strict=True):
            member.name = name
        if cache is not None and len(self.frozen) < len(self.members):
            raise InputError("A teacher cache keeps the outputs of networks, and a stored teacher is a file: drop it.")
        self.cache = cache

    @property
    def networks(self) -> list[nn.Module]:
        """Return the teachers' networks."""
        return [teacher.network for teacher in self.frozen]

    @property
    def members(self) -> list[Frozen | Stored]:
        """Return the teachers' members."""
        return [teacher for teacher in self.teachers if isinstance(teacher, (Frozen, Stored))]

    @property
    def frozen(self) -> list[Frozen]:
        """Return the members of teachers that are networks."""
        return [teacher for teacher in self.members if isinstance(teacher, Frozen)]

    @property
    def in_evaluation(self) -> bool:
        """Return whether all teachers together answer samples that are not in the training set."""
        return len(self.frozen) == len(self.members) and not self.is_apart

    def observe(self, inputs: Any) -> Outputs:
        """Return the outputs of the only teacher on ``inputs``, as it runs in evaluation.

        Raises:
            InputError: there are several teachers, or none that is a network.
        """
        if len(self.members) > 1:
            raise InputError("There are several teachers: observe one of FrozenTeacher.networks.")
        if not self.frozen:
            raise InputError("The teacher is a file, which answers the training samples alone, by their index.")
        (teacher,) = self.frozen
        return teacher(Batch(inputs, torch.empty(0)), {})[teacher.name]  # type: ignore[no-any-return]

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan in which every head of every network learns from the teacher, or from the ensemble."""
        students = heads_of_all(networks)
        members: dict[str, Member] = {**networks, **{teacher.name: teacher for teacher in self.members}}
        if self.is_apart:
            # Weights sum to 1 by name, so that a term does not grow with the number of teachers.
            pairs = zip(self.members, self.weights, strict=True)
            apart = [Edge(name, member.name, weight, False) for member, weight in pairs for name in students]
            return Plan(members, apart, dict.fromkeys(students, 1.0))
        edges = []
        for number, student in enumerate(students):
            name = "teacher"
            if len(self.members) > 1:
                name = f"teacher@{student}" if number else name
                members[name] = Ensembled(name, self.members, student, self.ensemble, self.weights)
            # Outputs of frozen members carry no gradient that would have to be detached.
            edges.append(Edge(student, name, detach=False))
        return Plan(members, edges, dict.fromkeys(students, 1.0))
