"""BatchNorm folding: which BatchNorms fold into the layers before them, and a copy of a network with that done."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.weak import WeakTensorKeyDictionary

from kdlab.compat import BatchNorm, TorchDispatchMode, convert, has_hooks, tree_leaves
from kdlab.outputs import Outputs

SOURCES: dict[type[nn.Module], int] = {nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}  # with what dimensions
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
IMAGES = (nn.Conv2d, nn.ConvTranspose2d)
LAST = torch.channels_last


def converted(value: Tensor, dtype: torch.dtype | None, channels_last: bool) -> Tensor:
    """Return a floating tensor in another dtype and, if it is 4-D, in another memory format."""
    if not value.is_floating_point():
        return value
    value = value if dtype is None else value.to(dtype)
    return value.contiguous(memory_format=LAST) if channels_last and value.dim() == 4 else value


def altered(network: nn.Module, pairs: Mapping[str, str], dtype: torch.dtype | None, channels_last: bool) -> nn.Module:
    """Copy a network with BatchNorms folded into the layers before them, by name, and its weights converted."""
    with torch.inference_mode(False), torch.no_grad():
        made = copy.deepcopy(network)
        for source, norm in pairs.items():
            before: Any = made.get_submodule(source)
            bn: Any = made.get_submodule(norm)
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight, before.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
            )  # right for linear layers too, where fuse_linear_bn_weights wants an affine part
            made.set_submodule(norm, nn.Identity())
        for part in made.modules():
            lower = None if isinstance(part, BatchNorm) else dtype  # its statistics need the digits
            images = channels_last and isinstance(part, IMAGES)
            convert(part, partial(converted, dtype=lower, channels_last=images), recurse=False)
    return made.eval().requires_grad_(False)


class Flow(TorchDispatchMode):
    """The data flow of one forward: which layers feed one BatchNorm and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        names = defaultdict(list)
        for name, part in network.named_modules(remove_duplicate=False):
            names[part].append(name)
        # Under one name, and without hooks of a user, who would see another value or none.
        own = {m: n[0] for m, n in names.items() if len(n) == 1 and not has_hooks(m)}
        self.sources = {part: name for part, name in own.items() if type(part) in SOURCES}
        self.norms = {part: name for part, name in own.items() if type(part) in NORMS and part.running_var is not None}
        self.made: Any = WeakTensorKeyDictionary()  # weakly: not all activations at once
        self.runs: Counter[nn.Module] = Counter()
        self.fed: defaultdict[nn.Module, set[nn.Module]] = defaultdict(set)
        self.read: set[nn.Module] = set()
        self.inside = False  # a BatchNorm that was fed

    def source(self, value: Any) -> Any:
        """Return the layer that made this very tensor, or none."""
        return self.made.get(value) if isinstance(value, Tensor) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.read |= {source for each in tree_leaves((args, kwargs)) if (source := self.source(each))}
        return func(*args, **(kwargs or {}))

    def before(self, part: nn.Module, args: Any) -> None:
        """Record that a module starts."""
        self.runs[part] += 1
        if part in self.norms and args and (source := self.source(args[0])):
            self.fed[source].add(part)
            self.inside = True

    def after(self, part: nn.Module, args: Any, output: Any) -> None:
        """Record that a module has run."""
        self.inside = self.inside and part not in self.norms
        if part in self.sources and output.dim() == SOURCES[type(part)]:
            self.made[output] = part

    def pairs(self, network: nn.Module, seen: Outputs, tapped: Iterable[nn.Module]) -> tuple[dict[str, str], int]:
        """Return the names of BatchNorms to fold by those of the layers before, and how many a tap prevents."""
        passes = self.runs[network]  # two, if the observer found something overwritten
        free = {a: b for a, (b, *more) in self.fed.items() if not more and self.runs[a] == self.runs[b] == passes}
        # Also where a tap has another name: a container's output, the embedding.
        needed = {*tapped, *map(self.source, seen.tensors())}
        names = {self.sources[a]: self.norms[b] for a, b in free.items() if a not in self.read | needed}
        return names, len(needed & free.keys() - self.read)
