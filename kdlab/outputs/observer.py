"""What a loss sees of one network on one view, and how it is taken without leaving anything on the network."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.outputs.batch import Batch as Batch
from kdlab.outputs.batch import Mix as Mix
from kdlab.outputs.model_output import class_of, form_of, is_compiled, tensor_of
from kdlab.outputs.model_output import logits_of as logits_of


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a loss sees of one network on one view of the batch.

    Attributes:
        logits: (B, K) class scores before softmax, or (B, L, V) for tokens.
        layers: the tapped layers' tensors, in the order in which the knowledge names them.
        embedding: (B, D), what enters the network's classifier (its last linear layer); ``None`` if it has none.
        mask: (B, L), 1 where a token counts; ``None`` for images.
        index: (B,) int64, the position of every sample in its data set; ``None`` if the loader gives none.
        names: the tapped layers' names, for messages.
        views: outputs on further views of the same samples, by name, from the same forward.
        members: of teachers that count differently for each sample: their outputs, and weights (B,).
        heads: the further outputs of a network that has several, by name, each as if of a network of its own.
        target: of a view, its labels where it shows other samples than the batch.
        mix: of a view, how its images were joined.
    """

    logits: Tensor
    layers: tuple[Tensor, ...] = ()
    embedding: Tensor | None = None
    mask: Tensor | None = None
    index: Tensor | None = None
    names: tuple[str, ...] = ()
    views: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)
    members: tuple[tuple[Outputs, Tensor], ...] = ()
    heads: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)
    target: Tensor | None = None
    mix: Mix | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> Outputs:
        """The same outputs with ``change`` applied to logits, layers and embedding, of views, members and heads too."""
        return dataclasses.replace(
            self,
            logits=change(self.logits),
            layers=tuple(map(change, self.layers)),
            embedding=None if self.embedding is None else change(self.embedding),
            views={name: each.map(change) for name, each in self.views.items()},
            members=tuple((each.map(change), change(weight)) for each, weight in self.members),
            heads={name: each.map(change) for name, each in self.heads.items()},
        )

    def tensors(self) -> Iterator[Tensor]:
        """Logits, layers and embedding, then those of views, of heads, and of members with their weights."""
        yield self.logits
        yield from self.layers
        if self.embedding is not None:
            yield self.embedding
        for each in (*self.views.values(), *self.heads.values()):
            yield from each.tensors()
        for member, weight in self.members:
            yield from member.tensors()
            yield weight

    def detach(self) -> Outputs:
        """The same values, cut from the graph."""
        return self.map(Tensor.detach)

    def only(self, names: Sequence[str]) -> Outputs:
        """The same outputs, those of the views too, with the layers ``names`` alone, in that order."""
        if tuple(names) == self.names:
            return self
        layers = tuple(self.layers[self.names.index(name)] for name in names)
        views = {view: each.only(names) for view, each in self.views.items()}
        return dataclasses.replace(self, layers=layers, names=tuple(names), views=views)


class Head(NamedTuple):
    """One of several outputs of a network, seen as if it were a network of its own.

    Attributes:
        classifier: what reads this head's embedding; ``None`` if it has none.
        layer: from a layer's name, as this head's users write it, to the network's own name for it.
    """

    classifier: nn.Module | None
    layer: Callable[[str], str]


def heads_of(network: nn.Module) -> dict[str, Head]:
    """The outputs of a network by name, the main one first and named ``""``.

    A network with several has an attribute ``heads`` of this form, and returns a mapping with the main ``logits`` and
    with the logits of every other head by its name.
    """
    given = getattr(network, "heads", None)
    if isinstance(given, Mapping) and "" in given:
        return dict(given)
    return {"": Head(classifier_of(network), str)}


def layer_names(network: nn.Module) -> dict[str, nn.Module]:
    """Every layer that can be tapped, by the name a user writes (wrappers of compile and DDP left out)."""
    names = {}
    for name, module in network.named_modules():
        parts = [part for part in name.split(".") if part != "_orig_mod"]
        if parts != [""] and parts:
            names[".".join(parts)] = module
    return names


def classifier_of(network: nn.Module) -> nn.Module | None:
    """The layer whose input is the embedding: timm's ``get_classifier()``, else the last linear layer, or none."""
    if callable(getattr(network, "get_classifier", None)):
        classifier = network.get_classifier()  # type: ignore[operator]
        if isinstance(classifier, nn.Linear):
            return classifier
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else None


class Observer:
    """Runs one network and keeps its logits, its embedding and the layers asked for, of all its heads.

    The hooks live for one forward only, so the network stays as it was: it can be copied, pickled, exported and
    compiled. A layer that runs several times in one forward gives its last output. A layer whose output is overwritten
    in place afterwards (torchvision's ``bn2`` before ``out += identity``) gives the value it had when it left the
    layer. A name that is no layer is looked for in what the network returns: ``"hidden_states.6"``.

    Args:
        network: any module that returns a tensor, a tuple or list (logits first), a mapping or a data class with
            ``logits`` (or ``out``); with several outputs, see :func:`heads_of`.
        layers: names of the layers to keep, as in ``network.named_modules()``, or as the network's heads name them.

    Raises:
        InputError: a name is neither a layer nor part of the output (nearest names are listed), or a layer did not run.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str] = ()) -> None:
        self.network = network
        self.layers = tuple(dict.fromkeys(layers))
        self.find_layers()
        self._kept: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        # The same function objects at every forward: a compiled network keeps calling those it was traced with.
        self._hooks = {name: partial(self._keep, name) for name in self._modules}
        self._entries = {name: partial(self._keep_input, name) for name in self._classifiers}

    def find_layers(self) -> None:
        """Look the layers up again, after modules of the network were replaced."""
        modules, heads = layer_names(self.network), heads_of(self.network)
        self._names = {head: tuple(map(each.layer, self.layers)) for head, each in heads.items()}
        wanted = dict.fromkeys(name for names in self._names.values() for name in names)
        self._modules = {name: modules[name] for name in wanted if name in modules}
        self._traced = False
        self._classifiers = {f"<{head}>": each.classifier for head, each in heads.items() if each.classifier}

    def _keep(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        value = tensor_of(output)
        if value is None:
            raise InputError(f"Layer {name!r} returns {form_of(output)}, not a tensor, so it cannot be tapped.")
        if name in self._copied or torch.compiler.is_compiling():  # a compiled network cannot tell what is overwritten
            value = value.clone()
        elif not value.is_inference():
            self._versions[name] = value._version
        self._kept[name] = value

    def _keep_input(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            self._kept[name] = args[0]

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = []
        try:
            for name, classifier in self._classifiers.items():
                handles.append(classifier.register_forward_pre_hook(self._entries[name]))
            handles += [module.register_forward_hook(self._hooks[name]) for name, module in self._modules.items()]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, inputs: Any) -> Outputs:
        """One forward of the network on ``inputs`` (a tensor, or a mapping of keyword arguments)."""
        self._kept.clear()
        self._versions.clear()
        with self._hooked():
            raw = run(self.network, inputs)
        if self._untraced():
            return self(inputs)
        overwritten = {name for name, version in self._versions.items() if self._kept[name]._version != version}
        if overwritten:  # found on the first forward, copied on every later one
            self._copied |= overwritten
            return self(inputs)
        self._check_ran()
        heads = {head: self._outputs(raw[head], head) for head in self._names if head}
        outputs = self._outputs(raw, "")
        self._kept.clear()
        return dataclasses.replace(outputs, heads=heads) if heads else outputs

    def _outputs(self, raw: Any, head: str) -> Outputs:
        layers = (self._kept[name] if name in self._modules else self._part(raw, name) for name in self._names[head])
        return Outputs(logits_of(raw), tuple(layers), self._kept.get(f"<{head}>"), names=self.layers)

    def _untraced(self) -> bool:
        """Whether to run again because the network was compiled before, without these hooks: it then ignores them."""
        wanted = {*self._modules, *self._classifiers}
        again = not self._traced and not wanted <= self._kept.keys() and any(map(is_compiled, self.network.modules()))
        if again:
            torch._dynamo.reset()
        self._traced = True
        return again

    def _check_ran(self) -> None:
        for name in self._modules:
            if name not in self._kept:
                raise InputError(
                    f"Layer {name!r} did not run in this forward of {class_of(self.network)}, so it cannot be tapped."
                )

    def _part(self, raw: Any, name: str) -> Tensor:
        value = raw
        for key in name.split("."):
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, Sequence) and key.lstrip("-").isdigit() and -len(value) <= int(key) < len(value):
                value = value[int(key)]
            elif hasattr(value, key) and not isinstance(value, (Tensor, Sequence)):
                value = getattr(value, key)
            else:
                near = nearest(name, layer_names(self.network))
                raise InputError(f"{class_of(self.network)} has no layer {name!r}; the nearest names are {near}.")
        if not isinstance(value, Tensor):
            raise InputError(f"Output {name!r} of {class_of(self.network)} is {form_of(value)}, not a tensor.")
        return value


def run(network: nn.Module, inputs: Any) -> Any:
    """The network's own output on a tensor, or on a mapping of keyword arguments, without those it does not take."""
    if not isinstance(inputs, Mapping):
        return network(inputs)
    parameters = inspect.signature(getattr(network, "_orig_mod", network).forward).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return network(**inputs)
    return network(**{name: value for name, value in inputs.items() if name in parameters})


def observe(network: nn.Module, inputs: Any, layers: Sequence[str] = ()) -> Outputs:
    """One forward of ``network`` on ``inputs``, with ``layers`` kept; see :class:`Observer`.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> seen = observe(net, torch.zeros(2, 4), layers=["1"])
    >>> seen.logits.shape, seen.layers[0].shape, seen.embedding.shape
    (torch.Size([2, 3]), torch.Size([2, 8]), torch.Size([2, 8]))
    """
    return Observer(network, layers)(inputs)


def headed(name: str, seen: Outputs) -> dict[str, Outputs]:
    """The outputs of a network's heads by the learners' names: the main one ``name``, others ``name_HEAD``."""
    if not seen.heads:
        return {name: seen}
    further = {f"{name}_{head}": dataclasses.replace(each, index=seen.index) for head, each in seen.heads.items()}
    for head in seen.heads:
        views = {
            view: dataclasses.replace(each.heads[head], index=each.index, target=each.target, mix=each.mix)
            for view, each in seen.views.items()
        }
        further[f"{name}_{head}"] = dataclasses.replace(further[f"{name}_{head}"], views=views)
    views = {view: dataclasses.replace(each, heads={}) for view, each in seen.views.items()}
    return {name: dataclasses.replace(seen, heads={}, views=views), **further}
