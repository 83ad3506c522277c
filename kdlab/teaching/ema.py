"""Frozen copies of the learners: their moving average, or how they were some time ago."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdlab.data import SecondView, View
from kdlab.errors import InputError
from kdlab.members.batchnorm import batch_statistics
from kdlab.members.ensembles import Ensemble
from kdlab.outputs import Batch, Observer, Outputs, headed, heads_of
from kdlab.outputs.see import see
from kdlab.teaching.consensus import view_of
from kdlab.teaching.teaching import Lesson, Teaching


class Copies(nn.Module):
    """Copies of networks that are never trained: in eval mode, without gradient, in checkpoints.

    Args:
        networks: what is copied, by name.
        batchnorm: ``"batch"`` normalises with the batch's statistics, as the released mean teacher does in training;
            ``"frozen"`` with the copies' running ones.
    """

    def __init__(self, networks: Mapping[str, nn.Module], batchnorm: Literal["batch", "frozen"]) -> None:
        super().__init__()
        self.batchnorm = batchnorm
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()})
        self.listen(())

    def train(self, mode: bool = True) -> Copies:
        """Stay in eval mode, whatever ``mode`` says."""
        super().train(False)
        return self

    def listen(self, layers: Sequence[str]) -> None:
        """Keep ``layers`` from now on."""
        self.eval().requires_grad_(False)
        self.observers = {name: Observer(network, layers) for name, network in self.networks.items()}

    @torch.no_grad()
    def observe(
        self, batch: Batch, inputs: Mapping[str, Any] | None = None, views: Sequence[str] = ()
    ) -> dict[str, Outputs]:
        """What each copy gives on a training batch, by the learners' names.

        Args:
            batch: the batch.
            inputs: what each copy sees instead of the batch's inputs.
            views: names of further views to run with it.
        """
        outputs: dict[str, Outputs] = {}
        with batch_statistics(self) if self.batchnorm == "batch" else nullcontext():
            for name, observer in self.observers.items():
                seen = batch if inputs is None else batch._replace(inputs=inputs[name])
                outputs |= headed(name, see(observer, seen, views))
        return outputs

    @torch.no_grad()
    def evaluate(self, inputs: Any) -> dict[str, Outputs]:
        """What each copy gives in evaluation, by the learners' names."""
        outputs: dict[str, Outputs] = {}
        for name, observer in self.observers.items():
            outputs |= headed(name, observer(inputs))
        return outputs

    @torch.no_grad()
    def follow(self, networks: Mapping[str, nn.Module], decay: float = 0.0, buffers: bool = False) -> None:
        """Move each weight to ``decay * copy + (1 - decay) * network``; buffers too, or copy them.

        Args:
            networks: what was copied, as it is now.
            decay: 0 to copy.
            buffers: whether floating-point buffers, BatchNorm's running statistics, are averaged as well.
        """
        for name, own in self.networks.items():
            pairs: list[tuple[Tensor, Tensor]] = list(zip(own.parameters(), networks[name].parameters(), strict=True))
            states = list(zip(own.buffers(), networks[name].buffers(), strict=True))
            floating = [(a, b) for a, b in states if a.is_floating_point()]
            if decay and buffers:
                pairs += floating
            if decay:
                torch._foreach_lerp_([a for a, _ in pairs], [b.to(a.dtype) for a, b in pairs], 1 - decay)
            else:
                pairs += floating
            copied = [(a, b) for a, b in states if not a.is_floating_point() or not (decay and buffers)]
            for mine, theirs in copied if decay else [*pairs, *copied]:
                mine.copy_(theirs)


def seen_by(outputs: Mapping[str, Outputs]) -> list[str]:
    """The names of the further views that learners ran."""
    return list(next(iter(outputs.values())).views)


class Copied(Teaching):
    """Learners that are taught by copies of themselves or of each other."""

    def __init__(self, batchnorm: Literal["batch", "frozen"]) -> None:
        super().__init__()
        if batchnorm not in ("batch", "frozen"):
            raise InputError(f"batchnorm is 'batch' or 'frozen', not {batchnorm!r}.")
        self.batchnorm = batchnorm

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Copy the networks."""
        self.copies = Copies(networks, self.batchnorm)
        self._heads = {name: list(heads_of(network)) for name, network in networks.items()}

    @property
    def observers(self) -> Sequence[Observer]:
        """One a copy."""
        return list(self.copies.observers.values())

    def listen(self, layers: Sequence[str], only_layers: bool = False) -> None:
        """Tap the copies' layers."""
        self.copies.listen(layers)


class MovingAverage(Copied):
    r"""Every learner is taught by the moving average of its own weights (mean teacher).

    .. math:: \theta' \leftarrow a_t \theta' + (1 - a_t) \theta, \qquad a_t = \min(1 - 1 / (t + 1), a)

    after the t-th optimiser step (t = 1, 2, ...), so that the average begins as a plain mean. The averages of a network
    "net" are reported, and can be deployed, as "average_net".

    Recipe: mean teacher :class:`~kdlab.losses.Consistency` with an :class:`~kdlab.schedules.ExponentialRamp`, on two
    augmentations (``second_view=True``).

    Paper: A. Tarvainen, H. Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
    semi-supervised deep learning results", NIPS 2017, arXiv 1703.01780.

    Args:
        decay: a, from 0 (the copy equals the learner) to below 1.
        buffers: what happens to BatchNorm's running statistics: ``"average"`` as the weights, or ``"copy"``.
        batchnorm: what the teacher normalises with in training, see :class:`Copies`.
        second_view: show the teacher another augmentation of the images.

    Raises:
        InputError: a decay outside [0, 1) or an unknown word.
    """

    def __init__(
        self,
        decay: float = 0.999,
        buffers: Literal["average", "copy"] = "average",
        batchnorm: Literal["batch", "frozen"] = "batch",
        second_view: bool = False,
    ) -> None:
        super().__init__(batchnorm)
        if not 0 <= decay < 1:
            raise InputError(f"A moving average's decay is at least 0 and below 1, not {decay}.")
        if buffers not in ("average", "copy"):
            raise InputError(f"buffers is 'average' or 'copy', not {buffers!r}.")
        self.decay, self.buffer_rule, self.second_view = decay, buffers, second_view
        self.updates = 0

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with its own average."""
        return [(name, f"average_{name}") for name in learners]

    def network(self, source: str) -> nn.Module | None:
        """An average."""
        return self.deployable.get(source)

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """Another augmentation for the teacher, if it is to have one."""
        return {"second": SecondView()} if self.second_view else {}

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each from its own average."""
        inputs = dict.fromkeys(self.copies.networks, view_of(batch, "second")) if self.second_view else None
        seen = self.copies.observe(batch, inputs, seen_by(outputs))
        return [Lesson(name, each, source=f"average_{name}") for name, each in seen.items()]

    def after_step(self, networks: Mapping[str, nn.Module]) -> None:
        """Move the averages."""
        self.updates += 1
        decay = min(1 - 1 / (self.updates + 1), self.decay)
        self.copies.follow(networks, decay, self.buffer_rule == "average")

    def get_extra_state(self) -> Tensor:
        """The number of updates."""
        return torch.tensor(self.updates)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting."""
        self.updates = int(state)

    def observe_own(self, inputs: Any) -> dict[str, Outputs]:
        """What the averages give."""
        return {f"average_{name}": each for name, each in self.copies.evaluate(inputs).items()}

    @property
    def deployable(self) -> dict[str, nn.Module]:
        """The averages."""
        return {f"average_{name}": network for name, network in self.copies.networks.items()}


class Stale(Copied):
    r"""Learners are taught by how the others, or they themselves, were at the last exchange.

    With ``of="others"`` it is codistillation: the mean of the other networks' class probabilities, each of a copy that
    is renewed every ``every`` steps, as processes that exchange checkpoints would have it; all train on the same
    batches here. With ``of="self"`` it is snapshot distillation: each network's own copy, renewed at the end of every
    cycle of ``every`` epochs or steps. Until the first exchange there are no lessons; a schedule's ``begin`` makes a
    longer burn-in.

    Recipe: codistillation the paper's loss is the cross-entropy, :class:`~kdlab.losses.SoftLabels`; snapshot
    distillation :class:`~kdlab.losses.SoftLabels` with temperature 2 to 3, which softens the teacher alone, and a
    ``CosineAnnealingWarmRestarts`` whose restarts are the cycles.

    Papers: R. Anil, G. Pereyra, A. Passos, R. Ormandi, G. E. Dahl, G. E. Hinton, "Large Scale Distributed Neural
    Network Training through Online Distillation", ICLR 2018, arXiv 1804.03235. C. Yang, L. Xie, C. Su, A. L. Yuille,
    "Snapshot Distillation: Teacher-Student Optimization in One Generation", CVPR 2019, arXiv 1812.00123.

    Args:
        every: how many units from one exchange to the next.
        unit: "step" for optimiser steps, or "epoch".
        of: whose copy teaches, "others" or "self".
        batchnorm: what the copies normalise with, see :class:`Copies`.

    Raises:
        InputError: ``every`` below 1, an unknown word, a single learner without others.
    """

    def __init__(
        self,
        every: int,
        unit: Literal["step", "epoch"] = "step",
        of: Literal["others", "self"] = "others",
        batchnorm: Literal["batch", "frozen"] = "frozen",
    ) -> None:
        super().__init__(batchnorm)
        if every < 1:
            raise InputError(f"Copies are exchanged every 1 or more {unit}s, not {every}.")
        if unit not in ("step", "epoch") or of not in ("others", "self"):
            raise InputError(f"unit is 'step' or 'epoch' and of is 'others' or 'self', not {unit!r} and {of!r}.")
        self.every, self.unit, self.of = every, unit, of
        self.exchanges = 0

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """Copy the networks; of others there must be some."""
        if self.of == "others" and len(learners) < 2:
            raise InputError("Codistillation needs at least two networks; of='self' is snapshot distillation.")
        super().adopt(networks, learners)
        self._networks = dict(networks)

    def __setattr__(self, name: str, value: Any) -> None:
        # The learners are only looked at: they are not parts of the teaching.
        if name == "_networks":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with the stale copies."""
        return [(name, "stale") for name in learners]

    def advance(self, epoch: int, step: int) -> None:
        """Exchange, where it is time."""
        due = (epoch if self.unit == "epoch" else step) // self.every
        if due > self.exchanges:
            self.exchanges = due
            self.copies.follow(self._networks)

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each from its stale copy, or from those of the others."""
        if not self.exchanges and not self.is_rehearsing:
            return []
        seen = self.copies.observe(batch, views=seen_by(outputs))
        if self.of == "self":
            return [Lesson(name, each, source="stale") for name, each in seen.items()]
        return [Lesson(name, self._others(name, seen), source="stale") for name in seen]

    @staticmethod
    def _others(name: str, seen: Mapping[str, Outputs]) -> Outputs:
        others = [each for other, each in seen.items() if other != name]
        if len(others) == 1:
            return others[0]
        return Outputs(Ensemble().together([each.logits for each in others], [1 / len(others)] * len(others)))

    def get_extra_state(self) -> Tensor:
        """The number of exchanges."""
        return torch.tensor(self.exchanges)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on counting."""
        self.exchanges = int(state)
