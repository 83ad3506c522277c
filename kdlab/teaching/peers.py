"""Networks, branches or exits that teach each other, and a network that teaches itself on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, permutations
from typing import Literal

import torch
from torch import nn

from kdlab.errors import InputError, check_word
from kdlab.members.member import Learner
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, Weight, heads_of_all, weight_at_least_zero

_ALONE = "label_smoothing, tf_kd_reg, tf_kd_reg_paper, zipf, uskd, frskd, mixskd, mixup, cutmix"


class Alone(Teaching):
    """Every network and itself: for losses that need no other teacher.

    So are label smoothing, Tf-KD's virtual teacher, Zipf's label smoothing, USKD, FRSKD, MixSKD.
    """

    ways = (Way("a loss that reads no other, or none", "", tuple(_ALONE.split(", "))),)

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan in which each output is compared with itself, detached."""
        students = heads_of_all(networks)
        return Plan(networks, [Edge(name, name) for name in students], dict.fromkeys(students, 1.0))


class Peers(Teaching):
    r"""Networks of which each learns from every other one (DML; between exits, DKS).

    .. math:: L_i = task_i + \frac{w}{K - 1} \sum_{j \ne i} loss(i, \mathrm{sg}[j])

    for K students, which may be networks of different architecture, branches or exits. With ``update="simultaneous"``
    all learn from the outputs before the step, as in most released code; with ``"sequential"``, as in the paper, one
    network is updated after another, each taught by the outputs of those before it after their update: K times the
    forwards.

    Recipe: DML :class:`~kdlab.losses.SoftTargets` with T = 1 and weight 1.

    Paper: Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.

    Args:
        update: whether networks are updated at once or one after another.

    Raises:
        InputError: fewer than two students, networks that start from the same weights, sequential updates for heads of
            one network.
    """

    ways = (
        Way("Deep mutual learning (DML)", "Zhang et al. 2018", ("dml", "dml_sequential")),
        Way("Mutual contrastive learning (MCL)", "Yang et al. 2022", ("mcl",)),
        Way("Deeply-supervised knowledge synergy (DKS)", "Sun et al. 2019", ("dks",)),
    )

    def __init__(self, update: Literal["simultaneous", "sequential"] = "simultaneous") -> None:
        super().__init__()
        check_word("update", update, ("simultaneous", "sequential"))
        self.update = update

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to each other, in the mean."""
        students = require_several(self, networks)
        if self.update == "sequential" and len(networks) < 2:
            raise InputError("Heads of one network cannot be updated one after another: update='simultaneous'.")
        edges = [Edge(a, b, 1 / (len(students) - 1)) for a, b in permutations(students, 2)]
        return Plan(networks, edges, dict.fromkeys(students, 1.0), update=self.update)


class DeepestExit(Teaching):
    r"""Exits of a network, all taught by its last one (BYOT).

    .. math:: L = task_S + \sum_{i < S} \left( a \cdot task_i + w \cdot loss(i, \mathrm{sg}[S]) \right)

    The network is a :class:`~kdlab.models.WithExits`; exits are not part of what is deployed.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 3 and weight 0.1 and ``exit_labels=0.9``, and, on the layer
    ``"feature"``, :class:`~kdlab.losses.Hint` without regressor with a small weight.

    Paper: L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance of
    Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv 1905.08094, which gives no constants. The
    re-implementations weight the labels of the deepest exit like those of the others.

    Args:
        exit_labels: a, what the labels count for every exit but the deepest.

    Raises:
        InputError: a network without exits, a negative weight.
    """

    ways = (Way("Be your own teacher (BYOT)", "Zhang et al. 2019", ("byot",)),)

    def __init__(self, exit_labels: float = 1.0) -> None:
        super().__init__()
        self.exit_labels = weight_at_least_zero(exit_labels, "exit_labels")

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each exit to the deepest of its network."""
        edges: list[Edge] = []
        supervision: dict[str, Weight] = {}
        for name, network in networks.items():
            deepest, *exits = network.heads
            if not exits:
                raise InputError(
                    f"Network {name!r} has one output alone: give it exits (kdlab.models.WithExits), to be taught by "
                    "the deepest."
                )
            edges += [Edge(head, deepest) for head in exits]
            supervision |= {deepest: 1.0, **(dict.fromkeys(exits, self.exit_labels) if self.exit_labels else {})}
        return Plan(networks, edges, supervision)


def require_several(teaching: Teaching, networks: Mapping[str, Learner]) -> list[str]:
    """Return the names of all students; refuse a single one, and networks that start alike and would never differ."""
    students = heads_of_all(networks)
    if len(students) < 2:
        raise InputError(
            f"{type(teaching).__name__} needs at least two students: several networks, or one with several outputs "
            "(kdlab.models.Branched, WithExits)."
        )
    for (other, rival), (name, learner) in combinations(networks.items(), 2):
        if _equal(learner.network, rival.network):
            raise InputError(
                f"Networks {other!r} and {name!r} start from the same weights, so they would never differ: make each "
                "anew, with another seed."
            )
    return students


def _equal(first: nn.Module, second: nn.Module) -> bool:
    one, other = dict(first.named_parameters()), dict(second.named_parameters())
    return one.keys() == other.keys() and all(
        x.shape == other[name].shape and torch.equal(x.cpu(), other[name].cpu()) for name, x in one.items()
    )
