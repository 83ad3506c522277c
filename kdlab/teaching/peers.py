"""Networks, branches or exits that teach each other, and a network that teaches itself on the spot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Outputs, heads_of
from kdlab.teaching.teaching import Answer, Lesson, Teaching


class Alone(Teaching):
    """Every learner's lesson is with itself, cut from the graph: for losses that need no other teacher.

    So are label smoothing, Tf-KD's virtual teacher, Zipf's label smoothing, USKD, FRSKD, MixSKD.
    """

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with itself."""
        return [(name, name) for name in learners]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each with itself."""
        return [Lesson(name, each.detach(), source=name) for name, each in outputs.items()]


class Peers(Teaching):
    r"""Every learner is taught by every other one (DML; between exits, DKS).

    .. math:: L_i = task_i + \frac{w}{K - 1} \sum_{j \ne i} loss(i, \mathrm{sg}[j])

    for K learners, which may be networks of different architecture, branches or exits. With ``update="simultaneous"``
    all learn from what the others say before the step, as in most released code; with ``"sequential"``, as in the
    paper, one network is updated after another, each taught by what those before it say after their update: K times
    the forwards.

    Recipe: DML :class:`~kdlab.losses.SoftTargets` with T = 1 and weight 1.

    Paper: Y. Zhang, T. Xiang, T. M. Hospedales, H. Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384.

    Args:
        update: when a network learns of another's update.

    Raises:
        InputError: fewer than two learners, networks that start from the same weights, turns for heads of one network.
    """

    def __init__(self, update: Literal["simultaneous", "sequential"] = "simultaneous") -> None:
        super().__init__()
        if update not in ("simultaneous", "sequential"):
            raise InputError(f"Peers update 'simultaneous' or 'sequential', not {update!r}.")
        self.update = update
        self._turns: tuple[tuple[str, ...], ...] = ()

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Refuse what cannot be taught, and note whose turn comes when."""
        several(self, networks, learners)
        if self.update == "sequential":
            if len(networks) < 2:
                raise InputError("Heads of one network cannot be updated one after another: update='simultaneous'.")
            self._turns = tuple((name,) for name in networks)

    @property
    def turns(self) -> tuple[tuple[str, ...], ...]:
        """One network after another, or all at once."""
        return self._turns

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with each other."""
        return [(one, other) for one in learners for other in learners if one != other]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each from each other, in the mean."""
        cut = {name: each.detach() for name, each in outputs.items()}
        return [
            Lesson(learner, cut[source], 1 / (len(outputs) - 1), source)
            for learner, source in self.pairs(list(outputs))
        ]


class DeepestExit(Teaching):
    r"""Every exit of a network is taught by its last one (BYOT).

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

    def __init__(self, exit_labels: float = 1.0) -> None:
        super().__init__()
        if not 0 <= exit_labels < float("inf"):
            raise InputError(f"exit_labels must be a finite number of at least 0, not {exit_labels}.")
        self.exit_labels = exit_labels
        self._deepest: dict[str, str] = {}

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Find every network's exits."""
        self._deepest = {}
        for name, network in networks.items():
            exits = [head for head in heads_of(network) if head]
            if not exits:
                raise InputError(
                    f"Network {name!r} has one output alone: give it exits (kdlab.models.WithExits), to be taught by "
                    "the deepest."
                )
            self._deepest |= {f"{name}_{head}": name for head in exits}

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each exit with the deepest of its network."""
        return list(self._deepest.items())

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """All exits, all but the deepest with their weight."""
        weights = {name: self.exit_labels if name in self._deepest else 1.0 for name in outputs}
        return [Answer(n, x.logits, batch.target, weights[n]) for n, x in outputs.items() if weights[n]]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each exit from the deepest."""
        return [Lesson(name, outputs[deepest].detach(), source=deepest) for name, deepest in self._deepest.items()]


def several(teaching: Teaching, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
    """Refuse a single learner, and networks that start alike: they would stay alike and teach each other nothing."""
    if len(learners) < 2:
        raise InputError(
            f"{type(teaching).__name__} needs at least two learners: several networks, or one with several outputs "
            "(kdlab.models.Branched, WithExits)."
        )
    named = list(networks.items())
    for number, (name, network) in enumerate(named):
        for other, rival in named[:number]:
            if network is rival or _same(network, rival):
                raise InputError(
                    f"Networks {other!r} and {name!r} start from the same weights, so they would never differ: make "
                    "each anew, with another seed."
                )


def _same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return ours.keys() == theirs.keys() and all(
        x.shape == theirs[n].shape and torch.equal(x.cpu(), theirs[n].cpu()) for n, x in ours.items()
    )
