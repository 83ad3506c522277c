"""Branches on their own views, an ensemble of their features, and their moving averages as teachers (PCL)."""

from __future__ import annotations

from itertools import permutations

from kdlab.errors import InputError
from kdlab.members.member import Learner, Member
from kdlab.members.mixtures import EnsembleClassifier
from kdlab.teaching.consensus import see_own_views
from kdlab.teaching.ema import MovingAverage
from kdlab.teaching.peers import require_several
from kdlab.teaching.plan import Edge, Plan, Way


class PeerEnsemble(MovingAverage):
    r"""Peers taught by a classifier of all their features and by the moving averages of the other peers (PCL).

    .. math:: L = task(z^e) + \sum_j \Big( task_j + w \big( loss(j, \mathrm{sg}[e])
              + \frac{1}{M - 1} \sum_{l \ne j} loss(j, \mathrm{sg}[l']) \big) \Big)

    for M branches of one :class:`~kdlab.models.Branched` with ``own_inputs``, each on its own augmentation, or M
    networks; e classifies the peers' concatenated embeddings, and l' is peer l with averaged weights
    (:class:`MovingAverage`).

    Recipe: three branches, :class:`~kdlab.losses.SoftTargets` with T = 3, weight 1 and an
    :class:`~kdlab.schedules.ExponentialRamp` over 80 epochs, decay 0.999; deploy the average of the first peer.

    Paper: G. Wu, S. Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021, arXiv 2006.04147.
    A re-implementation's ramp divides by 1 instead of 80 and its averages keep running statistics of their own; neither
    is followed.

    Args:
        decay: of the moving averages.

    Raises:
        InputError: fewer than two peers; branches that do not take their inputs apart.
    """

    ways = (Way("Peer collaborative learning (PCL)", "Wu and Gong 2021", ("pcl",)),)

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay)

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with edges from each peer to the ensemble, and to the others' averages in the mean."""
        peers = require_several(self, networks)
        for name, learner in networks.items():
            if len(learner.heads) > 1 and not getattr(learner.network, "own_inputs", False):
                raise InputError(f"The branches of {name!r} must each see their own view: Branched(own_inputs=True).")
        views = see_own_views(networks)
        averages = self.averages(networks)
        self.classifier = EnsembleClassifier("ensemble", peers)
        members: dict[str, Member] = {**networks, "ensemble": self.classifier}
        members |= {average.name: average for average in averages}
        share = 1 / (len(peers) - 1)
        edges = [Edge(name, "ensemble") for name in peers]
        edges += [Edge(a, f"average_{b}", share) for a, b in permutations(peers, 2)]
        return Plan(members, edges, dict.fromkeys([*peers, "ensemble"], 1.0), views)
