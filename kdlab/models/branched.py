"""One network with several branches: a trunk that all share, and own layers from a fork on for each."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.models.cutting import Replay, around, cloned, has_parameters, hooked
from kdlab.models.weights import load_weights
from kdlab.outputs import Head, classifier_of, logits_of


class Branched(nn.Module):
    """A network and its branches: the students of ONE, CL and CL-ILR, OKDDip and PCL.

    ``network`` is the given network, with its own names; it is the main head, named ``""``. ``branch1``, ``branch2``,
    ... are the other heads: the same network without the layers before ``fork``, which they share with ``network``.
    Those layers run once a forward. A loss that names a layer of a branch gets the branch's own from the fork on, and
    the shared one before it, which holds all parts of the batch where the heads have ``own_inputs``.

    Recipe: ONE, CL and OKDDip fork before the last stage, with three or four branches in all; CL-ILR is
    ``average_gradient=True``; PCL is three branches with ``own_inputs=True``.

    Papers: X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv
    1806.04606. G. Song, W. Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018, arXiv 1805.11761. D.
    Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020, arXiv
    1912.00350. G. Wu, S. Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021, arXiv
    2006.04147.

    Args:
        network: any network whose layers are called one after the other as they are registered, up to the fork.
        fork: the first layer that every branch has for itself: ``"layer3"``, or inside another, ``"features.20"``.
        branches: how many heads there are, the network's own among them.
        average_gradient: whether the trunk gets the mean of the heads' gradients instead of their sum.
        own_inputs: whether a training batch holds one part for every head, one after the other, each of which is read
            by its head alone; in eval mode all heads read the whole batch.
        redraw: whether the branches start from other weights: every parameter of a copy is drawn anew from the normal
            distribution with the mean and standard deviation that it had, so constant ones (BatchNorm's) stay.
        weights: a file for :func:`kdlab.models.load_weights`, of the network with its branches.

    Shapes:
        input: (B, ...), as the network's; (branches * B, ...) in training with ``own_inputs``.
        output: a dict of logits (B, K): ``"logits"`` of the main head, then ``"branch1"``, ``"branch2"``, ...

    Raises:
        InputError: no such layer, fewer than two branches, weights that do not fit; at the first forward, a network
            that cannot be cut at the fork; a training batch that does not fall into equal parts.

    >>> from kdlab.models import resnet8
    >>> network = Branched(resnet8(num_classes=10), fork="layer3", branches=3)
    >>> {name: tuple(logits.shape) for name, logits in network(torch.zeros(2, 3, 32, 32)).items()}
    {'logits': (2, 10), 'branch1': (2, 10), 'branch2': (2, 10)}
    >>> type(network.alone("branch2")).__name__
    'ResNet'
    """

    def __init__(
        self,
        network: nn.Module,
        fork: str = "layer3",
        branches: int = 3,
        average_gradient: bool = False,
        own_inputs: bool = False,
        redraw: bool = True,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(branches, int) or isinstance(branches, bool) or branches < 2:
            raise InputError(f"branches must be a whole number of at least 2, not {branches!r}.")
        self.fork, self.branches = fork, branches
        self.average_gradient, self.own_inputs = average_gradient, own_inputs
        self.network = network
        self._around = around(network, fork)
        for number in range(1, branches):
            self.add_module(f"branch{number}", self._branch(redraw))
        if weights is not None:
            load_weights(self, weights)

    def _branch(self, redraw: bool) -> nn.Module:
        """A copy of the network with a stand-in for every layer of the trunk."""
        memo: dict[int, Any] = {}  # what deepcopy shall take instead of copying
        for name in self._around.before:
            layer = self.network.get_submodule(name)
            memo[id(layer)] = Replay(name, layer)
        # Parameters that belong to no layer (a ViT's position embedding) serve before the fork or nobody knows where.
        shared = {id(each): each for each in self._around.parameters(self.network)}
        branch = copy.deepcopy(self.network, memo | shared)
        with torch.no_grad():
            for parameter in branch.parameters():
                # Constant ones are found exactly: rounding gives them a deviation too.
                if redraw and id(parameter) not in shared and bool((parameter != parameter.flatten()[:1]).any()):
                    exact = parameter.double()
                    parameter.normal_(float(exact.mean()), float(exact.std(correction=0)))
        return branch

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """The logits of every head; the trunk runs once."""
        run = _Run(self)
        logits = {"logits": logits_of(run.main(inputs))}
        for number in range(1, self.branches):
            logits[f"branch{number}"] = logits_of(run.branch(number, inputs))
        return logits

    @property
    def heads(self) -> dict[str, Head]:
        """The heads by name, as :func:`kdlab.outputs.heads_of` finds them."""
        heads = {"": Head(classifier_of(self.network), partial(self._layer, "network"))}
        for number in range(1, self.branches):
            name = f"branch{number}"
            heads[name] = Head(classifier_of(self.get_submodule(name)), partial(self._layer, name))
        return heads

    def _layer(self, place: str, name: str) -> str:
        shared = any(name == each or name.startswith(f"{each}.") for each in self._around.before)
        return f"network.{name}" if shared else f"{place}.{name}"

    def get_classifier(self) -> nn.Module | None:
        """The main head's classifier."""
        return classifier_of(self.network)

    def alone(self, head: str = "") -> nn.Module:
        """A copy of one head as the plain network, trunk included, under the network's own names.

        Raises:
            InputError: there is no such head.
        """
        if head not in self.heads:
            raise InputError(f"There is no head {head!r}; the nearest names are {nearest(head, self.heads)}.")
        if not head:
            return copy.deepcopy(self.network)
        branch = self.get_submodule(head)
        trunk = {name: copy.deepcopy(self.network.get_submodule(name)) for name in self._around.before}
        return copy.deepcopy(branch, {id(branch.get_submodule(name)): layer for name, layer in trunk.items()})


class _Run:
    """One forward of a branched network; its hooks live no longer."""

    def __init__(self, owner: Branched) -> None:
        self.owner, self.around = owner, owner._around
        self.given: dict[str, list[Any]] = {name: [] for name in self.around.before}
        self.early: list[str] = []
        self.shared: Tensor | None = None

    def main(self, inputs: Any) -> Any:
        network = self.owner.network
        with ExitStack() as hooks:
            for name in self.around.before:
                hooks.enter_context(hooked(network, name, "forward", partial(self._give, name)))
            for name in self.around.after:
                hooks.enter_context(hooked(network, name, "forward_pre", partial(self._come, name)))
            hooks.enter_context(hooked(network, self.owner.fork, "forward_pre", self._split))
            raw = network(inputs)
        if self.shared is None:
            raise self._refusal("it did not run")
        return raw

    def branch(self, number: int, inputs: Any) -> Any:
        branch = self.owner.get_submodule(f"branch{number}")
        stands = {name: cast(Replay, branch.get_submodule(name)) for name in self.around.before}
        entered: list[bool] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if entered:
                return None
            entered.append(True)
            for stand in stands.values():
                stand.kept = []
            return (self._part(number), *args[1:])

        try:
            for name, stand in stands.items():
                given, last = self.given[name], number == self.owner.branches - 1
                stand.kept = list(given if last else cloned(given))
            with hooked(branch, self.owner.fork, "forward_pre", enter):
                raw = branch(inputs)
        finally:
            for stand in stands.values():
                stand.kept = []
        if not entered:
            raise self._refusal("a branch did not reach it")
        return raw

    def _give(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.shared is None:
            self.given[name].append(cloned(output))  # the network may overwrite its own in place

    def _come(self, name: str, module: nn.Module, args: Any) -> None:
        if self.shared is None and has_parameters(module):
            self.early.append(name)

    def _split(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.shared is not None:
            return None
        if not args or not isinstance(args[0], Tensor):
            raise self._refusal("it gets no tensor as its first argument")
        if self.early:
            raise self._refusal(f"{self.early[0]!r} runs before it, but is registered after it")
        idle = [name for name, given in self.given.items() if not given]
        idle = [name for name in idle if has_parameters(self.owner.network.get_submodule(name))]
        if idle:
            raise self._refusal(f"{idle[0]!r} is registered before it, but is not called before it")
        owner = self.owner
        # A copy, as the network may overwrite its own later.
        self.shared = (_Average.apply(args[0], owner.branches) if owner.average_gradient else args[0]).clone()
        changed = owner.average_gradient or (owner.own_inputs and owner.training)
        return (self._part(0), *args[1:]) if changed else None

    def _part(self, number: int) -> Tensor:
        """What a head reads; always a copy, as its first layer may overwrite it in place."""
        assert self.shared is not None
        if not (self.owner.own_inputs and self.owner.training):
            return self.shared.clone()
        rows, rest = divmod(len(self.shared), self.owner.branches)
        if rest:
            raise InputError(
                f"With own_inputs a training batch holds {self.owner.branches} equal parts, one for each head, which "
                f"{len(self.shared)} rows do not give: use a loader with as many views."
            )
        return self.shared[number * rows : (number + 1) * rows].clone()

    def _refusal(self, why: str) -> InputError:
        kind = type(self.owner.network).__name__
        return InputError(f"{kind} cannot be cut at {self.owner.fork!r}, as {why}: name another fork.")


class _Average(torch.autograd.Function):
    """The same values forward, a part of the gradient backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int) -> Tensor:
        ctx.count = count
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.count, None
