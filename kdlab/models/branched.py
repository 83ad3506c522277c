"""A network with several branches, which share the trunk before a fork."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.cutting import Replay, around, cloned, has_parameters, hooked
from kdlab.models.multi_head import MultiHead
from kdlab.models.weights import load_weights
from kdlab.outputs import classifier_of, logits_of


class Branched(MultiHead):
    """A network and its branches: the students of ONE, CL and CL-ILR, OKDDip and PCL.

    ``network`` is the wrapped network with unchanged layer names; it is the main head, named ``""``. ``branch1``,
    ``branch2``, ... are the other heads: the same network without the layers before ``fork``, which they share with
    ``network`` and which run once per forward. A loss that names a layer of a branch gets the branch's copy from the
    fork on, and the shared layer before it, whose output holds all parts of the batch if the heads have ``own_inputs``.

    Recipe: ONE, CL and OKDDip fork before the last stage, with three or four branches in all; CL-ILR is
    ``average_gradient=True``; PCL is three branches with ``own_inputs=True``.

    Papers: X. Lan, X. Zhu, S. Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv
    1806.04606. G. Song, W. Chai, "Collaborative Learning for Deep Neural Networks", NeurIPS 2018, arXiv 1805.11761. D.
    Chen, J.-P. Mei, C. Wang, Y. Feng, C. Chen, "Online Knowledge Distillation with Diverse Peers", AAAI 2020, arXiv
    1912.00350. G. Wu, S. Gong, "Peer Collaborative Learning for Online Knowledge Distillation", AAAI 2021, arXiv
    2006.04147.

    Args:
        network: any network that calls its layers up to the fork in the order in which they are registered.
        fork: the first layer that every branch has a copy of: ``"layer3"``, or a nested one, ``"features.20"``.
        branches: number of heads, including the network's.
        average_gradient: whether the trunk receives the mean of the heads' gradients instead of their sum.
        own_inputs: whether a training batch is the concatenation of one part per head, and each head reads only its
            part; in eval mode all heads read the full batch.
        redraw: whether the branches start from other weights: every parameter of a copy is redrawn from the normal
            distribution with its mean and standard deviation, so constant ones (BatchNorm's) stay.
        weights: a weights file of the network with its branches, see :func:`kdlab.models.load_weights`.

    Shapes:
        input: (B, ...), as the network's; (branches * B, ...) in training with ``own_inputs``.
        output: a dict of logits (B, K): ``"logits"`` of the main head, then ``"branch1"``, ``"branch2"``, ...

    Raises:
        InputError: the layer does not exist, there are fewer than two branches, or the weights do not fit; at the first
            forward, the network cannot be cut at the fork, or a training batch cannot be split into equal parts.

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
        for name in self._branch_names():
            self.add_module(name, self._branch(redraw))
        if weights is not None:
            load_weights(self, weights)

    def _branch_names(self) -> list[str]:
        return [f"branch{number}" for number in range(1, self.branches)]

    def _branch(self, redraw: bool) -> nn.Module:
        """Return a copy of the network with a :class:`Replay` for every layer of the trunk."""
        memo: dict[int, Any] = {}  # objects that deepcopy uses instead of copying
        for name in self._around.before:
            layer = self.network.get_submodule(name)
            memo[id(layer)] = Replay(name, layer)
        # Parameters outside all layers (a ViT's position embedding) may be used before the fork, so they are shared.
        shared = {id(parameter): parameter for parameter in self._around.parameters(self.network)}
        branch = copy.deepcopy(self.network, memo | shared)
        with torch.no_grad():
            for parameter in branch.parameters():
                # Constant parameters are compared exactly: rounding gives them a standard deviation above 0.
                if redraw and id(parameter) not in shared and bool((parameter != parameter.flatten()[:1]).any()):
                    exact = parameter.double()
                    parameter.normal_(float(exact.mean()), float(exact.std(correction=0)))
        return branch

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return the logits of every head; the trunk runs once."""
        run = _Forward(self)
        logits = {"logits": logits_of(run.main(inputs))}
        for number, name in enumerate(self._branch_names(), 1):
            logits[name] = logits_of(run.branch(number, name, inputs))
        return logits

    def _further_classifiers(self) -> dict[str, nn.Module | None]:
        return {name: classifier_of(self.get_submodule(name)) for name in self._branch_names()}

    def _layer(self, head: str, name: str) -> str:
        shared = any(name == layer or name.startswith(f"{layer}.") for layer in self._around.before)
        return f"{head}.{name}" if head and not shared else f"network.{name}"

    def _alone(self, head: str) -> nn.Module:
        branch = self.get_submodule(head)
        trunk = {name: copy.deepcopy(self.network.get_submodule(name)) for name in self._around.before}
        return copy.deepcopy(branch, {id(branch.get_submodule(name)): layer for name, layer in trunk.items()})


class _Forward:
    """One forward of a branched network; its hooks are removed at the end."""

    def __init__(self, owner: Branched) -> None:
        self.owner, self.around = owner, owner._around
        self.trunk_outputs: dict[str, list[Any]] = {name: [] for name in self.around.before}
        self.early: list[str] = []  # layers that are registered after the fork and ran before it
        self.shared: Tensor | None = None  # the input of the fork

    def main(self, inputs: Any) -> Any:
        """Run the network and record what the branches need."""
        network = self.owner.network
        with ExitStack() as hooks:
            for name in self.around.before:
                hooks.enter_context(hooked(network, name, "forward", partial(self._record, name)))
            for name in self.around.after:
                hooks.enter_context(hooked(network, name, "forward_pre", partial(self._note_early, name)))
            hooks.enter_context(hooked(network, self.owner.fork, "forward_pre", self._split))
            raw = network(inputs)
        if self.shared is None:
            raise self._error("it did not run")
        return raw

    def branch(self, number: int, name: str, inputs: Any) -> Any:
        """Run a branch on the recorded outputs of the trunk."""
        branch = self.owner.get_submodule(name)
        replays = {layer: cast(Replay, branch.get_submodule(layer)) for layer in self.around.before}
        entered: list[bool] = []

        def enter(module: nn.Module, args: tuple[Any, ...]) -> Any:
            if entered:
                return None
            entered.append(True)
            for replay in replays.values():
                replay.kept = []
            return (self._input_of(number), *args[1:])

        try:
            for layer, replay in replays.items():
                outputs, last = self.trunk_outputs[layer], number == self.owner.branches - 1
                replay.kept = list(outputs if last else cloned(outputs))
            with hooked(branch, self.owner.fork, "forward_pre", enter):
                raw = branch(inputs)
        finally:
            for replay in replays.values():
                replay.kept = []
        if not entered:
            raise self._error("a branch did not reach it")
        return raw

    def _record(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        if self.shared is None:
            self.trunk_outputs[name].append(cloned(output))  # the network may overwrite the output in place

    def _note_early(self, name: str, module: nn.Module, args: Any) -> None:
        if self.shared is None and has_parameters(module):
            self.early.append(name)

    def _split(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.shared is not None:
            return None
        if not args or not isinstance(args[0], Tensor):
            raise self._error("it gets no tensor as its first argument")
        if self.early:
            raise self._error(f"{self.early[0]!r} runs before it, but is registered after it")
        idle = [name for name, outputs in self.trunk_outputs.items() if not outputs]
        idle = [name for name in idle if has_parameters(self.owner.network.get_submodule(name))]
        if idle:
            raise self._error(f"{idle[0]!r} is registered before it, but is not called before it")
        owner = self.owner
        # A copy: the network may overwrite the original later.
        self.shared = (_Average.apply(args[0], owner.branches) if owner.average_gradient else args[0]).clone()
        changed = owner.average_gradient or (owner.own_inputs and owner.training)
        return (self._input_of(0), *args[1:]) if changed else None

    def _input_of(self, number: int) -> Tensor:
        """Return what a head reads; always a copy, because its first layer may overwrite it in place."""
        assert self.shared is not None
        if not (self.owner.own_inputs and self.owner.training):
            return self.shared.clone()
        rows, rest = divmod(len(self.shared), self.owner.branches)
        if rest:
            raise InputError(
                f"With own_inputs a training batch must hold {self.owner.branches} equal parts, one per head, but it "
                f"has {len(self.shared)} rows: use data with as many views."
            )
        return self.shared[number * rows : (number + 1) * rows].clone()

    def _error(self, why: str) -> InputError:
        kind = type(self.owner.network).__name__
        return InputError(f"{kind} cannot be cut at {self.owner.fork!r} because {why}: choose another fork.")


class _Average(torch.autograd.Function):
    """The identity, whose backward divides the gradient by ``count``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int) -> Tensor:
        ctx.count = count
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] / ctx.count, None
