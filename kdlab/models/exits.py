"""A network with early exits: an adapter, a pooling and a classifier after some of its layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.cutting import around, hooked
from kdlab.models.multi_head import MultiHead
from kdlab.models.resnet import BasicBlock
from kdlab.models.surgery import replace
from kdlab.models.weights import load_weights
from kdlab.outputs import Outputs, logits_of, observe


class WithExits(MultiHead):
    """A network that also classifies after some of its earlier layers: the students of BYOT and DKS.

    ``network`` is the wrapped network with unchanged layer names; it is the main head, named ``""``. ``exit1``,
    ``exit2``, ... are the other heads, one per entry of ``layers``: an ``adapter`` that brings the layer's map to the
    channels and the size of the deepest map, a global average pooling, and a linear ``classifier``.

    A loss that names the layer ``"feature"`` gets the deepest map of the network, or the adapter's output of an exit;
    ``"exit.classifier"`` is a part of the exit, and any other name is a layer of the network.

    Recipe: exits after every stage but the last. BYOT pulls the exits to the deepest head, DKS all heads to each other.

    Papers: L. Zhang, J. Song, A. Gao, J. Chen, C. Bao, K. Ma, "Be Your Own Teacher: Improve the Performance of
    Convolutional Neural Networks via Self Distillation", ICCV 2019, arXiv 1905.08094; it calls the adapters bottleneck
    layers without defining them, and ``"bottleneck"`` is that of the code by Y. Luan (pytorch-be-your-own-teacher): 1 x
    1 to a quarter of the channels, k x k with stride k, 1 x 1 to all, each with batch normalization and ReLU. That code
    compares the pooled feature; here the map is to be tapped. D. Sun, A. Yao, A. Zhou, H. Zhao, "Deeply-supervised
    Knowledge Synergy", CVPR 2019, arXiv 1906.00675; its exits repeat the network's later stages, for which ``"stages"``
    has one residual block per halving, as the BYOT of Self-KD-Lib (with pre-activation blocks, as its network's).

    Args:
        network: any convolutional network.
        layers: the layers with an exit; each returns a map (B, C, H, W).
        like: the layer that returns the deepest map.
        adapter: ``"bottleneck"``, or ``"stages"``: one residual block per halving, which doubles the channels at most
            up to the deepest map's.
        image: channels, height and width of an image, from which one forward infers the maps' sizes.
        weights: a weights file of the network with its exits, see :func:`kdlab.models.load_weights`.

    Shapes:
        input: (B, ...), as the network's.
        output: a dict of logits (B, K): ``"logits"`` of the network, then ``"exit1"``, ``"exit2"``, ...

    Raises:
        InputError: a layer or the adapter does not exist, a layer does not return a map, the adapter cannot bring a map
            to the deepest size, or the weights do not fit.

    >>> from kdlab.models import resnet8
    >>> network = WithExits(resnet8(num_classes=10), layers=["layer1", "layer2"], like="layer3")
    >>> {name: tuple(logits.shape) for name, logits in network(torch.zeros(2, 3, 32, 32)).items()}
    {'logits': (2, 10), 'exit1': (2, 10), 'exit2': (2, 10)}
    >>> type(network.alone()).__name__
    'ResNet'
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str] = ("layer1", "layer2"),
        like: str = "layer3",
        adapter: str = "bottleneck",
        image: Sequence[int] = (3, 32, 32),
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            raise InputError(f"layers must be a list of one or more different layers, not {layers!r}.")
        if adapter not in ADAPTERS:
            raise InputError(f"There is no adapter {adapter!r}; the nearest names are {nearest(adapter, ADAPTERS)}.")
        self.layers, self.like, self.image = tuple(layers), like, tuple(image)
        self.network = network
        seen = _probe(network, self.image, [*self.layers, like])
        classes, deepest = seen.logits.shape[-1], _map(seen.layers[-1], like)
        for head, layer, value in zip(self._exit_names(), self.layers, seen.layers, strict=False):
            exit_ = Exit(ADAPTERS[adapter](layer, _map(value, layer), deepest), deepest.shape[1], classes)
            self.add_module(head, exit_.to(deepest))  # the network's device and dtype
        if weights is not None:
            load_weights(self, weights)

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return the logits of every head."""
        maps: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(hooked(self.network, layer, "forward", partial(_record, maps, layer)))
            logits = {"logits": logits_of(self.network(inputs))}
        for head, layer in zip(self._exit_names(), self.layers, strict=True):
            if layer not in maps:
                raise _not_run(layer)
            logits[head] = self.get_submodule(head)(maps[layer])
        return logits

    def _exit_names(self) -> list[str]:
        return [f"exit{number}" for number in range(1, len(self.layers) + 1)]

    def _further_classifiers(self) -> dict[str, nn.Module | None]:
        return {name: self.get_submodule(f"{name}.classifier") for name in self._exit_names()}

    def _layer(self, head: str, name: str) -> str:
        if name == "feature":
            return f"{head}.adapter" if head else f"network.{self.like}"
        if head and name.startswith("exit."):
            return f"{head}.{name.removeprefix('exit.')}"
        return f"network.{name}"

    def _alone(self, head: str) -> nn.Module:
        layer = self.layers[self._exit_names().index(head)]
        early = EarlyExit(copy.deepcopy(self.network), layer, copy.deepcopy(self.get_submodule(head)))
        called: set[str] = set()
        later = around(early.network, layer).after
        with ExitStack() as hooks:
            for name in later:
                hooks.enter_context(hooked(early.network, name, "forward_pre", partial(_note, called, name)))
            _probe(early, self.image)
        for name in later:
            if name not in called:
                replace(early.network, name, nn.Identity())
        early.training = self.training  # the parts keep their modes
        return early


class Exit(nn.Module):
    """An adapter, a global average pooling and a linear classifier."""

    def __init__(self, adapter: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.classifier = nn.Linear(width, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of a map (B, C, H, W)."""
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.adapter(x), 1).flatten(1))
        return logits


class EarlyExit(nn.Module):
    """A network up to one of its layers, and the exit that reads that layer."""

    def __init__(self, network: nn.Module, layer: str, exit_: nn.Module) -> None:
        super().__init__()
        self.network, self.layer, self.exit = network, layer, exit_

    def forward(self, inputs: Any) -> Tensor:
        """Return the exit's logits (B, K); no later layer runs."""
        maps: dict[str, Tensor] = {}

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            _record(maps, self.layer, module, args, output)
            raise _Reached

        with hooked(self.network, self.layer, "forward", leave):
            try:
                self.network(inputs)
            except _Reached:
                logits: Tensor = self.exit(maps[self.layer])
                return logits
        raise _not_run(self.layer)


class _Reached(Exception):  # noqa: N818
    """Ends a forward once the layer of the exit has run."""


def _bottleneck(name: str, value: Tensor, like: Tensor) -> nn.Module:
    """Return the released BYOT adapter from the map ``value`` of layer ``name`` to the shape of ``like``."""
    width = like.shape[1]
    steps = [max(1, size // target) for size, target in zip(value.shape[2:], like.shape[2:], strict=True)]
    if [size // step for size, step in zip(value.shape[2:], steps, strict=True)] != list(like.shape[2:]):
        raise _mismatch("bottleneck", name, value, like)
    middle, step = max(1, width // 4), (steps[0], steps[1])
    parts: list[nn.Module] = []
    for before, after, kernel in ((value.shape[1], middle, (1, 1)), (middle, middle, step), (middle, width, (1, 1))):
        parts += [nn.Conv2d(before, after, kernel, stride=kernel), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*parts)


def _stages(name: str, value: Tensor, like: Tensor) -> nn.Module:
    """Return one residual block per halving from the map ``value`` of layer ``name`` to the shape of ``like``."""
    size, channels, count = value.shape[2:], value.shape[1], 0
    while max(size) > max(like.shape[2:]):
        size, count = torch.Size((length + 1) // 2 for length in size), count + 1
    if size != like.shape[2:]:
        raise _mismatch("stages", name, value, like)
    blocks = []
    for left in range(max(count, 1), 0, -1):
        after = like.shape[1] if left == 1 else min(2 * channels, like.shape[1])
        blocks.append(BasicBlock(channels, after, 2 if count else 1))
        channels = after
    return nn.Sequential(*blocks)


ADAPTERS: dict[str, Callable[[str, Tensor, Tensor], nn.Module]] = {"bottleneck": _bottleneck, "stages": _stages}


def _mismatch(adapter: str, name: str, value: Tensor, like: Tensor) -> InputError:
    size, target = (" x ".join(map(str, tensor.shape[2:])) for tensor in (value, like))
    return InputError(
        f"The adapter {adapter!r} cannot bring the map of layer {name!r} from {size} to {target}: set image to the "
        "size of your images, or choose another layer or adapter."
    )


def _not_run(layer: str) -> InputError:
    return InputError(f"Layer {layer!r} did not run in this forward, so its exit has no input: choose another layer.")


def _map(value: Tensor, name: str) -> Tensor:
    """Return ``value`` if it is a map."""
    if value.dim() != 4:
        raise InputError(f"Layer {name!r} gives {tuple(value.shape)}, but an exit needs a map (B, C, H, W).")
    return value


def _probe(network: nn.Module, image: Sequence[int], layers: Sequence[str] = ()) -> Outputs:
    """Return the outputs of one forward in eval mode, which does not change the network."""
    if len(image) != 3 or not all(isinstance(length, int) and length > 0 for length in image):
        raise InputError(f"image must be channels, height and width, not {tuple(image)!r}.")
    like = next(network.parameters(), torch.zeros(1))
    with _evaluated(network), torch.no_grad():
        return observe(network, torch.zeros(1, *image, device=like.device, dtype=like.dtype), layers)


@contextmanager
def _evaluated(network: nn.Module) -> Iterator[None]:
    """Put the network in eval mode while the block runs."""
    modes = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _record(maps: dict[str, Tensor], layer: str, module: nn.Module, args: Any, output: Any) -> None:
    if not isinstance(output, Tensor):
        raise InputError(f"Layer {layer!r} gives a {type(output).__name__}, but an exit needs a map (B, C, H, W).")
    maps[layer] = output.clone()  # the next layer may overwrite it in place


def _note(names: set[str], name: str, module: nn.Module, args: Any) -> None:
    names.add(name)
