"""Branches or networks with a trained part between them: ONE's gate, OKDDip's attention and leader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.peers import several
from kdlab.teaching.teaching import Lesson, Teaching


class Gate(Lazy):
    """Shares of M branches for every sample: softmax(ReLU(BatchNorm(W x + b))) of the pooled trunk (B, C)."""

    def build(self, width: int, branches: int) -> None:
        """The linear layer and its normalisation."""
        self.linear = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, trunk: Tensor, branches: int) -> Tensor:
        """The shares (B, M)."""
        pooled = trunk.flatten(2).mean(2) if trunk.dim() > 2 else trunk
        self.materialize(pooled.detach(), pooled.shape[1], branches)
        shares: Tensor = self.norm(self.linear(pooled)).relu().softmax(1)
        return shares


class Gated(Teaching):
    r"""Every branch is taught by the branches' gated ensemble, which learns from the labels too (ONE).

    .. math:: L = \sum_i task(z^i) + task(z^e) + w \sum_i loss\big(i, \mathrm{sg}[e]\big), \qquad z^e = \sum_i g_i z^i,
              \quad g = \operatorname{softmax}(\mathrm{ReLU}(\mathrm{BN}(W\, \mathrm{GAP}(x) + b)))

    with x the trunk's map that the branches read. The gate learns from the ensemble's labels alone. The ensemble is a
    learner named "ensemble" in what is reported, and can be deployed.

    Recipe: a :class:`~kdlab.models.Branched` with three branches, :class:`~kdlab.losses.SoftTargets` with T = 3, weight
    1 and an :class:`~kdlab.schedules.ExponentialRamp` over 80 epochs.

    Paper: X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv
    1806.04606. The released code adds 1e-7 to the ensemble's probabilities (``SoftTargets(floor=1e-7)``).

    Args:
        layer: name of the last layer of the trunk.

    Raises:
        InputError: fewer than two learners.
    """

    ensemble = "ensemble"

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Gate()

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Refuse a single learner."""
        several(self, networks, learners)
        self._trunk = next(iter(networks))

    @property
    def reads(self) -> tuple[str, ...]:
        """The trunk's end."""
        return (self.layer,)

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with the ensemble."""
        return [(name, self.ensemble) for name in learners]

    def gather(self, outputs: Mapping[str, Outputs], batch: Batch) -> dict[str, Outputs]:
        """The branches and their ensemble."""
        (trunk,) = outputs[self._trunk].only((self.layer,)).layers
        shares = self.gate(trunk, len(outputs))
        logits = (torch.stack([each.logits for each in outputs.values()], 2) * shares[:, None]).sum(2)
        return {**outputs, self.ensemble: Outputs(logits, index=batch.index)}

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each from the ensemble."""
        teacher = outputs[self.ensemble].detach()
        return [Lesson(name, teacher, source=self.ensemble) for name in outputs if name != self.ensemble]


class Attention(Lazy):
    r"""How much each member counts for each other, sample by sample: softmax over b of (L h_a) . (E h_b)."""

    def build(self, width: int, inner: int) -> None:
        """Both projections, without bias."""
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)

    def forward(self, embeddings: Sequence[Tensor], factor: int) -> Tensor:
        """The shares (B, M, M), from the members' embeddings (B, D)."""
        widths = {each.shape[1] for each in embeddings}
        if len(widths) > 1:
            raise InputError(f"OKDDip's attention compares embeddings of one width, not of {sorted(widths)}.")
        h = torch.stack(list(embeddings), 1)
        self.materialize(h.detach(), h.shape[2], max(h.shape[2] // factor, 1))
        shares: Tensor = (self.query(h) @ self.key(h).transpose(1, 2)).softmax(2)
        return shares


class Leader(Teaching):
    r"""Peers that are taught by their own mixtures of all peers, and a leader that is taught by the group (OKDDip).

    .. math:: L = \sum_a task_a + task_{lead} + w \Big( \sum_a loss(a, t_a) + loss(lead, \tfrac1{M} \sum_a z_a) \Big),
              \qquad t_a = \sum_b \alpha_{ab} z_b,
              \quad \alpha_{ab} = \operatorname{softmax}_b\big((L h_a)^\top E h_b\big)

    over the M peers, all learners but the leader, with h their embeddings and L, E linear maps without bias to an
    eighth of the width. The targets carry gradient, which alone trains the attention: take a loss that lets it through,
    ``SoftTargets(teacher_gradient=True)``. Learners are branches or networks.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 3, weight 1 and an
    :class:`~kdlab.schedules.ExponentialRamp` over 80 epochs, three peers and the leader.

    Paper: D. Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020,
    arXiv 1912.00350. As in the released code gradient also reaches the peers through the targets.

    Args:
        leader: name of the leader among the learners; the last if not given. Deploy it.
        factor: by which the attention's width is smaller than the embedding.

    Raises:
        InputError: fewer than three learners, an unknown leader, embeddings of different widths.
    """

    def __init__(self, leader: str | None = None, factor: int = 8) -> None:
        super().__init__()
        if factor < 1:
            raise InputError(f"factor must be a whole number of at least 1, not {factor}.")
        self.leader, self.factor = leader, factor
        self.attention = Attention()

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Find the leader."""
        several(self, networks, learners)
        self.leader = learners[-1] if self.leader is None else self.leader
        if self.leader not in learners:
            raise InputError(f"There is no learner {self.leader!r} to lead, only {', '.join(learners)}.")
        if len(learners) < 3:
            raise InputError("OKDDip needs two peers at least beside the leader.")

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each peer with its mixture, the leader with the group."""
        return [(name, "group") for name in learners]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each peer from its mixture, the leader from the group's mean."""
        peers = [name for name in outputs if name != self.leader]
        embeddings = []
        for name in peers:
            if (embedding := outputs[name].embedding) is None:
                raise InputError(f"OKDDip compares embeddings, but learner {name!r} has no linear classifier.")
            embeddings.append(embedding.flatten(1))
        z = torch.stack([outputs[name].logits for name in peers], 1)
        mixed = self.attention(embeddings, self.factor) @ z
        lessons = [Lesson(name, Outputs(mixed[:, place]), source="group") for place, name in enumerate(peers)]
        assert self.leader is not None
        return [*lessons, Lesson(self.leader, Outputs(z.mean(1)), source="group")]
