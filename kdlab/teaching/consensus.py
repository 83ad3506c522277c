"""One target made of all students' logits: their mean, the best of them, the least of them (KDCL, CL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.data import SecondView, View
from kdlab.distributed import is_distributed
from kdlab.errors import InputError
from kdlab.members.ensembles import Ensemble, MeanOfLogits
from kdlab.members.member import Learner, Member, Seen
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.peers import require_several
from kdlab.teaching.plan import Edge, Plan, Teaching, Way


class Rule(nn.Module):
    """A rule that makes the logits of the target out of those of all students."""

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the target's logits (B, K) out of those of every student, given the labels (B,)."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")

    def record(self, logits: Sequence[Tensor], target: Tensor) -> None:
        """Use a validation batch."""

    def on_validation_end(self) -> None:
        """Use what was recorded of the validation set."""


class Average(Rule):
    r"""The mean of all: of their logits, :math:`z^t = \frac1M \sum_m z^m`, or of their class probabilities.

    Args:
        of: the :class:`~kdlab.teaching.Ensemble` that joins them; :class:`~kdlab.teaching.MeanOfLogits` if not given.
    """

    def __init__(self, of: Ensemble | None = None) -> None:
        super().__init__()
        self.of = of or MeanOfLogits()

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the mean."""
        return self.of.together(logits, [1 / len(logits)] * len(logits))


class Naive(Rule):
    """KDCL-Naive: for every sample the logits of the student whose cross-entropy with the label is smallest."""

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the best student's logits, sample by sample."""
        best = torch.stack([F.cross_entropy(each, target, reduction="none") for each in logits]).argmin(0)
        return torch.stack(list(logits))[best, torch.arange(len(best), device=best.device)]


class MinLogit(Rule):
    r"""KDCL-MinLogit: the elementwise least of the members' logits, each shifted so that the label's logit is 0.

    .. math:: z^t_{bk} = \min_m \left( z^m_{bk} - z^m_{b y_b} \right)
    """

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the least of the shifted logits."""
        return torch.stack([each - each.gather(1, target[:, None]) for each in logits]).amin(0)


class Linear(Rule):
    r"""KDCL-Linear: for every sample the convex combination of logits with the smallest cross-entropy.

    .. math:: z^t_b = \sum_m a_{bm} z^m_b, \qquad
              a_b = \arg\min_{a \ge 0, \sum a = 1} H\big(y_b, \operatorname{softmax}(\sum_m a_m z^m_b)\big)

    A convex problem in M numbers, solved by exponentiated gradient from equal shares; each step is halved for the
    samples that it would make worse.

    Args:
        steps: how many steps.
    """

    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        if steps < 1:
            raise InputError(f"KDCL-Linear takes at least 1 step, not {steps}.")
        self.steps = steps

    def shares(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the shares (B, M) of the students."""
        z = torch.stack(list(logits), 1)
        own = z.gather(2, target[:, None, None].expand(-1, z.shape[1], 1)).squeeze(2)
        share = z.new_full(z.shape[:2], 1 / z.shape[1])
        rate = z.new_ones(len(z), 1)

        def losses(a: Tensor) -> Tensor:
            return (torch.einsum("bm,bmk->bk", a, z).logsumexp(1) - (a * own).sum(1))[:, None]

        now = losses(share)
        for _ in range(self.steps):
            q = torch.einsum("bm,bmk->bk", share, z).softmax(1)
            slope = torch.einsum("bk,bmk->bm", q, z) - own
            tried = share * torch.exp(-rate * (slope - slope.amin(1, keepdim=True)))
            tried = tried / tried.sum(1, keepdim=True)
            then = losses(tried)
            better = then <= now
            share, now = torch.where(better, tried, share), torch.where(better, then, now)
            rate = torch.where(better, rate * 1.2, rate / 2)
        return share

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the best combination."""
        return torch.einsum("bm,bmk->bk", self.shares(logits, target), torch.stack(list(logits), 1))


class General(Rule):
    r"""KDCL-General: one share a member, from how the members' errors go together on held-out samples.

    .. math:: z^t = \sum_m w_m z^m, \quad w = \frac{C^{-1} 1}{1^\top C^{-1} 1}, \quad
              C_{ij} = \frac1N \sum_n (p^i_n - e_{y_n}) \cdot (p^j_n - e_{y_n})

    with p the class probabilities and e the one-hot label. C is measured on the validation set and w renewed after each
    validation; until the first one the shares are equal. Hold training images out for it (``data.validation``), else
    the test set is learnt from.
    """

    shares: Tensor
    products: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shares", torch.zeros(0))
        self.products = torch.zeros(0, 0)  # no buffer: its size changes while callbacks hold copies of the module
        self._is_fitted = False

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> Tensor:
        """Return the weighted mean of the logits."""
        stacked = torch.stack(list(logits))
        if not self._is_fitted:
            if len(self.shares) != len(stacked):  # sized in the dry run, before callbacks copy the module
                self.shares = torch.zeros(len(stacked), device=stacked.device)
            return stacked.mean(0)
        return (stacked * self.shares.to(stacked)[:, None, None]).sum(0)

    @torch.no_grad()
    def record(self, logits: Sequence[Tensor], target: Tensor) -> None:
        """Add the errors of a validation batch."""
        errors = torch.stack(
            [(each.double().softmax(1) - F.one_hot(target, each.shape[1])).flatten() for each in logits]
        )
        products = errors @ errors.T
        self.products = products + self.products if len(self.products) else products

    def on_validation_end(self) -> None:
        """Renew the shares."""
        usable = torch.tensor(len(self.products) and bool(torch.isfinite(self.products).all()), dtype=torch.float32)
        usable = usable.to(self.products.device)
        if is_distributed():  # all processes decide alike, else one would wait for the others forever
            torch.distributed.all_reduce(usable, torch.distributed.ReduceOp.MIN)
        if usable:
            products = self.products
            if is_distributed():
                torch.distributed.all_reduce(products)
            scale = products.diagonal().mean().clamp(min=1e-30)
            near = products / scale + 1e-9 * torch.eye(len(products), dtype=products.dtype, device=products.device)
            solved = torch.linalg.solve(near, near.new_ones(len(near)))
            self.shares = (solved / solved.sum()).float()
            self._is_fitted = True
        self.products = torch.zeros(0, 0, device=self.products.device)

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if (key := f"{prefix}shares") in state:
            self.shares = torch.zeros_like(state[key])
            self._is_fitted = bool(state[key].any())
        super()._load_from_state_dict(state, prefix, *args)


class ConsensusTarget(Member):
    """The target that a rule makes of several students' logits, detached."""

    rule: Rule

    def __init__(self, name: str, students: Sequence[str], rule: Rule) -> None:
        super().__init__(name, students)
        self.__dict__["rule"] = rule  # the teaching registers it

    def _logits(self, seen: Seen) -> list[Tensor]:
        return [seen[name].logits.detach() for name in self.sources]

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the target's logits (B, K)."""
        return {self.name: Outputs(self.rule(self._logits(seen), batch.target), index=batch.index)}

    def record(self, batch: Batch, seen: Seen) -> None:
        """Show the rule a validation batch."""
        if batch.progress is None:
            self.rule.record(self._logits(seen), batch.target)

    def on_validation_end(self) -> None:
        """Let the rule use what it recorded."""
        self.rule.on_validation_end()


class Consensus(Teaching):
    r"""One target for every student, which a rule makes out of all students' logits (KDCL, CL, DML_e).

    .. math:: L = \sum_i \left( task_i + w \cdot loss\big(i, \mathrm{sg}[rule(z^1 .. z^M)]\big) \right)

    With ``others`` each student's target is made of the others' logits alone (Collaborative Learning's
    :math:`\frac{1}{M-1} \sum_{j \ne i} z_j`; DML's variant with the mean of the others' probabilities). With
    ``own_views`` each network sees its own random augmentation of the same images, the first the batch itself.

    Recipe: KDCL ``own_views=True``, any rule, :class:`~kdlab.losses.SoftTargets`; the re-implementation takes the mean
    of logits, T = 4 and weights 0.5 and 0.5. Collaborative Learning ``others=True`` on a
    :class:`~kdlab.models.Branched` with ``average_gradient``.

    Papers: Q. Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. G. Song, W. Chai,
    "Collaborative Learning for Deep Neural Networks", NeurIPS 2018, arXiv 1805.11761.

    Args:
        rule: how the target is made; the mean of the logits if not given.
        others: leave the student out of its own target.
        own_views: give each network another augmentation.

    Raises:
        InputError: fewer than two students, networks that start from the same weights; own views of heads of one
            network; ``others`` with a rule that is fitted to all students (:class:`General`).
    """

    ways = (
        Way("KDCL", "Guo et al. 2020", ("kdcl", "kdcl_naive", "kdcl_linear", "kdcl_minlogit", "kdcl_general")),
        Way("Collaborative learning (CL, CL-ILR)", "Song and Chai 2018", ("cl", "cl_ilr")),
    )

    def __init__(self, rule: Rule | None = None, others: bool = False, own_views: bool = False) -> None:
        super().__init__()
        self.rule = rule or Average()
        if others and isinstance(self.rule, General):
            raise InputError("KDCL-General is fitted to the logits of all students: drop others=True.")
        self.others, self.own_views = others, own_views

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to the target, or to a target of its own."""
        students = require_several(self, networks)
        if self.own_views and len(networks) < len(students):
            raise InputError("own_views is for networks that each make a forward, not for heads of one network.")
        views = see_own_views(networks) if self.own_views else {}
        target_of = {name: f"consensus@{name}" if self.others else "consensus" for name in students}
        targets = {}
        for student, name in target_of.items():
            sources = [other for other in students if not self.others or other != student]
            targets[name] = ConsensusTarget(name, sources, self.rule)
        edges = [Edge(*pair) for pair in target_of.items()]
        return Plan({**networks, **targets}, edges, dict.fromkeys(students, 1.0), views)


def see_own_views(networks: Mapping[str, Learner]) -> dict[str, View]:
    """Give each network, or each head of one, an augmentation of its own, the first the batch itself; return them."""
    count = 0
    for network in networks.values():
        first, count = count, count + len(network.heads)
        network.inputs = tuple(f"view{number}" if number else "" for number in range(first, count))
    return {f"view{number}": SecondView(number) for number in range(1, count)}
