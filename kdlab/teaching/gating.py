"""Branches or networks with a trained part between them: ONE's gate, OKDDip's attention and leader."""

from __future__ import annotations

from kdlab.errors import InputError
from kdlab.members.member import Learner
from kdlab.members.mixtures import Attention, Gate
from kdlab.teaching.peers import require_several
from kdlab.teaching.plan import Edge, Plan, Teaching, Way


class Gated(Teaching):
    r"""Branches that are taught by their gated ensemble, which learns from the labels too (ONE).

    .. math:: L = \sum_i task(z^i) + task(z^e) + w \sum_i loss\big(i, \mathrm{sg}[e]\big), \qquad z^e = \sum_i g_i z^i,
              \quad g = \operatorname{softmax}(\mathrm{ReLU}(\mathrm{BN}(W\, \mathrm{GAP}(x) + b)))

    with x the trunk's map that the branches read. The gate learns from the ensemble's labels alone. The ensemble is
    reported as "ensemble", and can be deployed.

    Recipe: a :class:`~kdlab.models.Branched` with three branches, :class:`~kdlab.losses.SoftTargets` with T = 3, weight
    1 and an :class:`~kdlab.schedules.ExponentialRamp` over 80 epochs.

    Paper: X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv
    1806.04606. The released code adds 1e-7 to the ensemble's probabilities (``SoftTargets(floor=1e-7)``).

    Args:
        layer: name of the last layer of the trunk.

    Raises:
        InputError: fewer than two students.
    """

    ways = (Way("On-the-fly native ensemble (ONE)", "Lan et al. 2018", ("one",)),)

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each branch to the gated ensemble."""
        students = require_several(self, networks)
        self.gate = Gate("ensemble", students, next(iter(networks)), self.layer)
        edges = [Edge(name, "ensemble") for name in students]
        supervision = dict.fromkeys([*students, "ensemble"], 1.0)
        return Plan({**networks, "ensemble": self.gate}, edges, supervision, student_taps=(self.layer,))


class Leader(Teaching):
    r"""Peers that are taught by their own mixtures of all peers, and a leader that is taught by the group (OKDDip).

    .. math:: L = \sum_a task_a + task_{lead} + w \Big( \sum_a loss(a, t_a) + loss(lead, \tfrac1{M} \sum_a z_a) \Big),
              \qquad t_a = \sum_b \alpha_{ab} z_b,
              \quad \alpha_{ab} = \operatorname{softmax}_b\big((L h_a)^\top E h_b\big)

    over the M peers, all students but the leader, with h their embeddings and L, E linear maps without bias to an
    eighth of the width. The targets carry gradient, which alone trains the attention: take a loss that lets it through,
    ``SoftTargets(teacher_gradient=True)``. Students are branches or networks.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 3, weight 1 and an
    :class:`~kdlab.schedules.ExponentialRamp` over 80 epochs, three peers and the leader.

    Paper: D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
    arXiv 1912.00350. As in the released code gradient also reaches the peers through the targets.

    Args:
        leader: name of the leader among the students; the last if not given. Deploy it.
        factor: by which the attention's width is smaller than the embedding.

    Raises:
        InputError: fewer than three students, an unknown leader, embeddings of different widths.
    """

    ways = (Way("Diverse peers and a leader (OKDDip)", "Chen et al. 2020", ("okddip", "okddip_networks")),)

    def __init__(self, leader: str | None = None, factor: int = 8) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"factor must be a whole number of at least 1, not {factor}.")
        self.leader, self.factor = leader, factor

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each peer to its mixture, and from the leader to the group's mean."""
        students = require_several(self, networks)
        leader = students[-1] if self.leader is None else self.leader
        if leader not in students:
            raise InputError(f"No student is named {leader!r}, to be the leader, only {', '.join(students)}.")
        if len(students) < 3:
            raise InputError("OKDDip needs two peers at least beside the leader.")
        peers = [name for name in students if name != leader]
        self.attention = Attention("group", peers, self.factor)
        edges = [Edge(peer, f"group@{peer}", detach=False) for peer in peers]
        edges.append(Edge(leader, "group", detach=False))
        return Plan({**networks, "group": self.attention}, edges, dict.fromkeys(students, 1.0))
