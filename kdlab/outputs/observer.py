"""Running a network and reading what it returns: logits, embedding, tapped layers, heads and views."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.compat import is_compiled, reset_compiler, uncompiled, version_of
from kdlab.errors import InputError, form_of, nearest
from kdlab.outputs.containers import Outputs
from kdlab.outputs.factored import factored
from kdlab.outputs.features import FEATURES, ForwardTrace, as_form, only_pooled, recorded_features, split_form
from kdlab.outputs.network_layers import heads_of, layer_names, split_call
from kdlab.outputs.transformer_outputs import last_token, requested


def logits_of(raw: Any) -> Tensor:
    """Return the class scores in what a network returned."""
    if isinstance(raw, Tensor):
        return raw
    for name in ("logits", "out"):
        value = raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(raw, Sequence) and raw and isinstance(raw[0], Tensor):
        return raw[0]
    if only_pooled(raw):
        return raw["pooler_output"].flatten(1)  # type: ignore[no-any-return]
    raise InputError(
        f"The network returns {form_of(raw)}; logits must be the output itself, its first element, or named 'logits'."
    )


def class_of(network: nn.Module) -> str:
    """Return the name of a network's class, also of a compiled one."""
    return type(uncompiled(network)).__name__


def run(network: nn.Module, inputs: Any, requests: Mapping[str, bool] | None = None) -> Any:
    """Call the network on a tensor, or on a mapping of keyword arguments without those it does not take.

    With ``requests``, such as ``{"output_attentions": True}``, it is asked to return more than it would.
    """
    if not isinstance(inputs, Mapping):
        return network(inputs, **(requests or {}))
    inputs = {**inputs, **(requests or {})}
    parameters = inspect.signature(uncompiled(network).forward).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return network(**inputs)
    return network(**{name: value for name, value in inputs.items() if name in parameters})


class Observer:
    """A network with taps: runs it and keeps logits, embedding and the layers asked for, of all its heads.

    The hooks live for one forward only, so the network stays as it was: it can be copied, pickled, exported and
    compiled. A layer that runs several times in one forward has one name for each call, in order: ``"relu@0"``,
    ``"relu@1"``; its own name is then refused. ``"norm:tokens"`` and ``"norm:map"`` are a layer's patches, and
    ``"features"`` is what comes before pooling, see ``kdlab/outputs/features.py``. A layer whose output is overwritten
    in place afterwards (torchvision's ``bn2`` before ``out += identity``) gives the value it had when it left the
    layer. A name that is no layer is looked up in what the network returns: ``"hidden_states.6"``, see
    ``kdlab.outputs.transformer_outputs.requested``.

    Args:
        network: any module that returns a tensor, a tuple or list (logits first), a mapping or a data class with
            ``logits`` (or ``out``); with several outputs, see :func:`heads_of`.
        layers: names of the layers to keep, as in ``network.named_modules()``, or as the network's heads name them.

    Raises:
        InputError: a name is neither a layer nor part of the output (nearest names are listed), a layer did not run, or
            ran several times and no call is named.
    """

    plain = only_layers = False  # see kdlab.members.fast_inference.FastObserver
    temperatures: Sequence[float] = ()  # at which losses read the logits, see kdlab.members.fast_copy.Trial
    factors = False  # let classifiers return kdlab.outputs.factored.FactoredLogits
    checks_values = True

    def __init__(self, network: nn.Module, layers: Sequence[str] = ()) -> None:
        self.network = network
        self.layers = tuple(dict.fromkeys(layers))
        # The same function objects at every forward: a compiled network keeps calling those it was traced with.
        self._hooks: dict[str, partial[None]] = {}
        self.find_layers()
        self._kept: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._copied: set[str] = set()
        self._calls: dict[str, int] = {}  # of every hooked layer in this forward
        self._settled: dict[str, int] | None = None  # those of a forward in which every tap was found
        self._was_reset = False
        self._trace: ForwardTrace | None = ForwardTrace(network)
        self._is_headless = False

    def acts_as(self, other: Observer) -> None:
        """Take over whether the network has a classifier, which a converted copy may not show."""
        self._trace, self._is_headless = None, other._is_headless

    def find_layers(self) -> None:
        """Look the layers up again, after modules of the network were replaced."""
        modules, heads = layer_names(self.network), heads_of(self.network)
        split = [split_form(layer) for layer in self.layers]
        bases, self._forms = [base for base, _ in split], tuple(form for _, form in split)
        self._names = {
            name: tuple(head.layer(layer) + call for layer, call in map(split_call, bases))
            for name, head in heads.items()
        }
        wanted = dict.fromkeys(name for names in self._names.values() for name in names)
        self._taps = {name: layer for name in wanted if (layer := split_call(name)[0]) in modules}
        self._modules = {layer: modules[layer] for layer in self._taps.values()}
        self._method = FEATURES in wanted and FEATURES not in modules and hasattr(self.network, "forward_features")
        if self._method:
            self._taps[FEATURES] = FEATURES
        self._requests = requested(self.network, wanted.keys() - self._taps.keys())
        self._classifiers = {f"<{name}>": head.classifier for name, head in heads.items() if head.classifier}
        self._wanted = {*self._taps, *self._classifiers}
        for name in (*self._taps.values(), *self._classifiers):
            self._hooks.setdefault(name, partial(self._keep, name))
        self._is_compiled = any(map(is_compiled, self.network.modules()))

    def __call__(self, inputs: Any) -> Outputs:
        """Run the network once on ``inputs`` (a tensor, or a mapping of keyword arguments)."""
        self._kept.clear()
        self._versions.clear()
        self._calls.clear()
        hooks = [part.register_forward_pre_hook(self._hooks[name]) for name, part in self._classifiers.items()]
        hooks += [part.register_forward_hook(self._hooks[name]) for name, part in self._modules.items()]
        try:
            with ExitStack() as changes:
                for classifier in self._classifiers.values() if self.factors and not self._is_compiled else ():
                    changes.enter_context(factored(classifier))
                if self._method:
                    changes.enter_context(recorded_features(self.network, self._hooks[FEATURES]))
                if self._trace is not None:
                    changes.enter_context(self._trace.recorded())
                raw = (
                    self.network(inputs)
                    if isinstance(inputs, Tensor) and not self._requests
                    else run(self.network, inputs, self._requests)
                )
        finally:
            for hook in hooks:
                hook.remove()
        if self._calls != self._settled:
            if self._is_compiled and not self._was_reset and not self._hooks.keys() <= self._calls.keys():
                self._was_reset = True  # what was compiled without these hooks ignores them
                reset_compiler()
                return self(inputs)
            self._check_calls()
        self._was_reset = False
        overwritten = {name for name, version in self._versions.items() if version_of(self._kept[name]) != version}
        if overwritten:  # found on the first forward, copied on every later one
            self._copied |= overwritten
            return self(inputs)
        if self._trace is not None:
            self._is_headless, self._trace = self._trace.is_headless(raw, logits_of(raw)), None
        outputs = self._outputs(raw, "", inputs)
        if outputs.embedding is not None and outputs.embedding.dim() == 3 and outputs.logits.dim() == 2:
            outputs = dataclasses.replace(outputs, embedding=last_token(outputs.embedding, inputs))
        if len(self._names) > 1:
            heads = {head: self._outputs(raw[head], head, inputs) for head in self._names if head}
            outputs = dataclasses.replace(outputs, heads=heads)
        self._kept.clear()
        return outputs

    def _check_calls(self) -> None:
        """Refuse taps that this forward does not settle: of layers that did not run, or ran several times."""
        for tap, layer in self._taps.items():
            number, where = self._calls.get(layer, 0), f"in this forward of {class_of(self.network)}"
            if not number:
                raise InputError(f"Layer {layer!r} did not run {where}, so it cannot be tapped.")
            if tap not in self._kept:
                calls = ", ".join(f"'{layer}@{call}'" for call in range(number))
                times = "once" if number == 1 else f"{number} times"
                raise InputError(f"Layer {layer!r} ran {times} {where}, so {tap!r} is not one output: tap {calls}.")
        self._settled = dict(self._calls)

    def _keep(self, name: str, module: nn.Module, args: Any, *output: Any) -> None:
        """Keep what a layer returns or, before it runs, its first input."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        value = output[0] if output else args
        if not isinstance(value, Tensor):  # of a tuple or a model output the first tensor
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, Sequence) else ()
            value = next((part for part in parts if isinstance(part, Tensor)), None)
        if value is None:
            if output:
                raise InputError(f"Layer {name!r} returns {form_of(output[0])}, not a tensor, so it cannot be tapped.")
            return
        if value.is_nested:
            raise InputError(
                f"Layer {name!r} gives a nested tensor, as nn.TransformerEncoder does in eval mode where there is a "
                "padding mask: build it with enable_nested_tensor=False."
            )
        if call:  # under its own name the layer has no longer one output
            self._kept.pop(name, None)
            self._versions.pop(name, None)
        for tap in (f"{name}@{call}",) if call else (name, f"{name}@0"):
            if tap not in self._wanted:
                continue
            # A compiled network cannot tell what is overwritten, nor can inference mode.
            if tap in self._copied or torch.compiler.is_compiling() or value.is_inference():
                self._kept[tap] = value.clone()
            else:
                self._versions[tap], self._kept[tap] = version_of(value), value

    def _outputs(self, raw: Any, head: str, inputs: Any) -> Outputs:
        layers = [self._kept[name] if name in self._taps else self._part(raw, name) for name in self._names[head]]
        if any(self._forms):
            formed = zip(layers, self._forms, self.layers, strict=True)
            layers = [as_form(layer, form, self.network, inputs, tap) for layer, form, tap in formed]
        logits = raw if isinstance(raw, Tensor) else logits_of(raw)
        embedding = self._kept.get(f"<{head}>")
        if self._is_headless and not head:
            embedding = logits if logits.dim() == 2 else None
        outputs = Outputs(logits, tuple(layers), embedding, names=self.layers)
        if any(map(Tensor.is_inference, (logits, *layers))) and not torch.is_inference_mode_enabled():
            return outputs.map(torch.clone)  # a forward of its own inference mode; autograd cannot save its tensors
        return outputs

    def _part(self, raw: Any, name: str) -> Tensor:
        value = raw
        for key in ("last_hidden_state" if name == FEATURES else name).split("."):
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, Sequence) and key.lstrip("-").isdigit() and -len(value) <= int(key) < len(value):
                value = value[int(key)]
            elif hasattr(value, key) and not isinstance(value, (Tensor, Sequence)):
                value = getattr(value, key)
            elif isinstance(value, Sequence) and key.lstrip("-").isdigit():
                raise InputError(f"{class_of(self.network)} has no output {name!r}: it returns {len(value)} of them.")
            else:
                near = nearest(name, layer_names(self.network))
                raise InputError(f"{class_of(self.network)} has no layer {name!r}; the nearest names are {near}.")
        if not isinstance(value, Tensor):
            raise InputError(f"Output {name!r} of {class_of(self.network)} is {form_of(value)}, not a tensor.")
        return value


def observe(network: nn.Module, inputs: Any, layers: Sequence[str] = ()) -> Outputs:
    """Run ``network`` once on ``inputs`` and keep ``layers``; see :class:`Observer`.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> seen = observe(net, torch.zeros(2, 4), layers=["1"])
    >>> seen.logits.shape, seen.layers[0].shape, seen.embedding.shape
    (torch.Size([2, 3]), torch.Size([2, 8]), torch.Size([2, 8]))
    """
    return Observer(network, layers)(inputs)
