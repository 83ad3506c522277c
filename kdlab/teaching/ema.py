"""Networks taught by untrained copies of themselves or of each other: mean teacher, codistillation, snapshots."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kdlab.data import SecondView
from kdlab.errors import InputError, check_word
from kdlab.members.copies import EMA, Copies, Snapshot
from kdlab.members.member import Learner, Member
from kdlab.members.mixtures import MeanOfOthers
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, heads_of_all


class CopyTeaching(Teaching):
    """A teaching whose copies of the networks belong into checkpoints, with their number of updates."""

    copies: Copies

    def get_extra_state(self) -> Tensor:
        """Return the number of updates."""
        return torch.tensor(self.copies.members[0].updates)  # the same for all

    def set_extra_state(self, state: Tensor) -> None:
        """Set the number of updates."""
        for member in self.copies.members:
            member.updates = int(state)


class MovingAverage(CopyTeaching):
    r"""Networks that are taught by the moving average of their own weights (mean teacher).

    .. math:: \theta' \leftarrow a_t \theta' + (1 - a_t) \theta, \qquad a_t = \min(1 - 1 / (t + 1), a)

    after the t-th optimizer step (t = 1, 2, ...), so that the average begins as a plain mean. The averages of a network
    "net" are reported, and can be deployed, as "average_net".

    Recipe: mean teacher :class:`~kdlab.losses.Consistency` with an :class:`~kdlab.schedules.ExponentialRamp`, on two
    augmentations (``second_view=True``).

    Paper: A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", NIPS 2017, arXiv 1703.01780.

    Args:
        decay: a, from 0 (the copy equals the network) to below 1.
        buffers: what happens to BatchNorm's running statistics: ``"average"`` as the weights, or ``"copy"``.
        batchnorm: what the teacher normalizes with in training, see :class:`~kdlab.members.copies.Copy`.
        second_view: show the teacher another augmentation of the images.

    Raises:
        InputError: a decay outside [0, 1) or an unknown word.
    """

    ways = (Way("Mean teacher", "Tarvainen and Valpola 2017", ("mean_teacher",)),)

    def __init__(
        self,
        decay: float = 0.999,
        buffers: Literal["average", "copy"] = "average",
        batchnorm: Literal["batch", "frozen"] = "batch",
        second_view: bool = False,
    ) -> None:
        super().__init__()
        EMA.check(decay, buffers, batchnorm)
        self.decay, self.buffer_rule, self.batchnorm, self.second_view = decay, buffers, batchnorm, second_view

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to its own average."""
        averages = self.averages(networks)
        for average in averages if self.second_view else ():
            average.inputs = ("second",)
        students = heads_of_all(networks)
        edges = [Edge(name, f"average_{name}") for name in students]
        views = {"second": SecondView()} if self.second_view else {}
        members: dict[str, Member] = {**networks, **{average.name: average for average in averages}}
        return Plan(members, edges, dict.fromkeys(students, 1.0), views)

    def averages(self, networks: dict[str, Learner]) -> list[EMA]:
        """Return the average of each network, registered for checkpoints."""
        options = (self.decay, self.buffer_rule, self.batchnorm)
        averages = [EMA(f"average_{name}", learner, *options) for name, learner in networks.items()]
        self.copies = Copies(averages)
        return averages


class Stale(CopyTeaching):
    r"""Networks that are taught by how the others, or they themselves, were at the last exchange.

    With ``of="others"`` it is codistillation: the mean of the other networks' class probabilities, each of a copy that
    is renewed every ``every`` steps, as processes that exchange checkpoints would have it; all train on the same
    batches here. With ``of="self"`` it is snapshot distillation: each network's own copy, renewed at the end of every
    cycle of ``every`` epochs or steps. Until the first exchange no edge counts; a schedule's ``begin`` makes a
    longer burn-in.

    Recipe: codistillation the paper's loss is the cross-entropy, :class:`~kdlab.losses.SoftLabels`; snapshot
    distillation :class:`~kdlab.losses.SoftLabels` with temperature 2 to 3, which softens the teacher alone, and a
    ``CosineAnnealingWarmRestarts`` whose restarts are the cycles.

    Papers: R. Anil, G. Pereyra, A. Passos, R. Ormandi, G. E. Dahl, G. E. Hinton, "Large Scale Distributed Neural
    Network Training through Online Distillation", ICLR 2018, arXiv 1804.03235. C. Yang, L. Xie, C. Su, A. L. Yuille,
    "Snapshot Distillation: Teacher-Student Optimization in One Generation", CVPR 2019, arXiv 1812.00123.

    Args:
        every: how many units from one exchange to the next.
        unit: "step" for optimizer steps, or "epoch".
        of: whose copy teaches, "others" or "self".
        batchnorm: what the copies normalize with, see :class:`~kdlab.members.copies.Copy`.

    Raises:
        InputError: ``every`` below 1, an unknown word, a single student without others.
    """

    ways = (
        Way("Codistillation", "Anil et al. 2018", ("codistillation",)),
        Way("Snapshot distillation", "Yang et al. 2019", ("snapshot",)),
    )

    def __init__(
        self,
        every: int,
        unit: Literal["step", "epoch"] = "step",
        of: Literal["others", "self"] = "others",
        batchnorm: Literal["batch", "frozen"] = "frozen",
    ) -> None:
        super().__init__()
        Snapshot.check(every, unit, batchnorm)
        check_word("of", of, ("others", "self"))
        self.every, self.unit, self.of, self.batchnorm = every, unit, of, batchnorm

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to its own snapshot, or to the mean of the others'."""
        students = heads_of_all(networks)
        if self.of == "others" and len(students) < 2:
            raise InputError("Codistillation needs at least two networks; of='self' is snapshot distillation.")
        options = (self.every, self.unit, self.batchnorm)
        copies = [Snapshot(f"stale@{name}", learner, *options) for name, learner in networks.items()]
        self.copies = Copies(copies)
        # Copies run first: they take the networks' running statistics as they are before this step's forward.
        members: dict[str, Member] = {**{copy.name: copy for copy in copies}, **networks}
        edges = []
        for name in students:
            teachers = [f"stale@{other}" for other in students if (other == name) == (self.of == "self")]
            if len(teachers) > 1:
                mean = MeanOfOthers(f"stale@others_of_{name}", teachers)
                members[mean.name], teachers = mean, [mean.name]
            edges.append(Edge(name, teachers[0]))
        return Plan(members, edges, dict.fromkeys(students, 1.0))
