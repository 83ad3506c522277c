"""Branches on their own views, an ensemble of their features, and their moving averages as teachers (PCL)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.data import SecondView, View
from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.consensus import view_of
from kdlab.teaching.ema import MovingAverage
from kdlab.teaching.peers import several
from kdlab.teaching.teaching import Lesson


class EnsembleClassifier(Lazy):
    """A linear classifier of all members' embeddings side by side."""

    def build(self, width: int, classes: int) -> None:
        """The classifier."""
        self.classifier = nn.Linear(width, classes)

    def forward(self, embeddings: Sequence[Tensor], classes: int) -> Tensor:
        """Logits (B, K) from embeddings (B, D)."""
        both = torch.cat([each.flatten(1) for each in embeddings], 1)
        self.materialize(both.detach(), both.shape[1], classes)
        logits: Tensor = self.classifier(both)
        return logits


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

    ensemble = "ensemble"

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay)
        self.classifier = EnsembleClassifier()

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Copy the networks, and see whether one holds all peers."""
        several(self, networks, learners)
        super().adopt(networks, learners)
        for name, network in networks.items():
            if len(self._heads[name]) > 1 and not getattr(network, "own_inputs", False):
                raise InputError(f"The branches of {name!r} must each see their own view: Branched(own_inputs=True).")

    def _parts(self, name: str) -> int:
        return len(self._heads[name])

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """An augmentation for each peer but the first."""
        return {f"view{n}": SecondView(n) for n in range(1, sum(map(self._parts, self._heads)))}

    def views(self, batch: Batch, learners: Iterable[str]) -> dict[str, Any]:
        """Each network's views one after the other."""
        inputs, number = {}, 0
        for name in learners:
            parts = []
            for _ in range(self._parts(name)):
                parts.append(view_of(batch, f"view{number}") if number else batch.inputs)
                number += 1
            inputs[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        return inputs

    def gather(self, outputs: Mapping[str, Outputs], batch: Batch) -> dict[str, Outputs]:
        """The peers and their ensemble."""
        embeddings = []
        for name, each in outputs.items():
            if each.embedding is None:
                raise InputError(f"PCL joins embeddings, but peer {name!r} has no linear classifier.")
            embeddings.append(each.embedding)
        logits = self.classifier(embeddings, next(iter(outputs.values())).logits.shape[1])
        return {**outputs, self.ensemble: Outputs(logits, index=batch.index)}

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with the ensemble and with the others' averages."""
        averages = [(one, f"average_{other}") for one in learners for other in learners if one != other]
        return [*((name, self.ensemble) for name in learners), *averages]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each from the ensemble, and from the others' averages in the mean."""
        together = outputs[self.ensemble].detach()
        peers = [name for name in outputs if name != self.ensemble]
        inputs = self.views(batch, self._heads)
        for network in self.copies.networks.values():
            network.training = True  # the copy takes its inputs apart as the learner does
        seen = self.copies.observe(batch, inputs)
        self.copies.eval()
        lessons = [Lesson(name, together, source=self.ensemble) for name in peers]
        share = 1 / (len(peers) - 1)
        return lessons + [Lesson(a, seen[b], share, f"average_{b}") for a in peers for b in peers if a != b]
