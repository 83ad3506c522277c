"""Loading weights of any common file format into a network, and saving them to a safetensors file."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdlab.compat import is_lazy, uncompiled
from kdlab.errors import InputError
from kdlab.files import atomic_write
from kdlab.models.checkpoint_reader import read_tensors

Network = TypeVar("Network", bound=nn.Module)

# Names under which training codes store the student (DataParallel, Lightning, torch.compile).
_HOLDERS = {"module", "student", "model", "network", "net", "_orig_mod"}

# Names that wrappers of a part add inside a name: DataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def load_weights(network: Network, path: str | os.PathLike[str], prefix: str = "") -> Network:
    """Load the weights of a file into ``network`` and return it; unless every tensor fits, none is changed.

    Reads safetensors and what ``torch.save`` writes: a state_dict, or one under ``state_dict``, ``model`` or
    ``model_state_dict`` of a checkpoint (Lightning, kdlab, and the published CIFAR networks of RepDistiller,
    mdistiller, SSKD, ReviewKD, SimKD and Y. Idelbayev). The network's names may have any of the prefixes ``module.``,
    ``student.``, ``model.``, ``network.``, ``net.``, and the names of wrappers (``module``, ``_orig_mod``) inside;
    other entries of the file (``teacher.``, adapters) are ignored. Only BatchNorm's ``num_batches_tracked``, which
    files of PyTorch 0.4 lack, and tied weights that the file has under another name may be missing. No code in a file
    is ever run, and only tensors and plain values are created from it.

    Args:
        network: any module; its dtype and device do not change.
        path: the file; ``~`` is the home directory.
        prefix: the network's prefix in the file, if it is another one, e.g. ``"networks.a"``.

    Raises:
        InputError: the file is missing, damaged, not a weights file or contains other objects, or its tensors do not
            fit.
    """
    path = Path(path).expanduser()
    target = uncompiled(network)
    target.load_state_dict(fitting(target, read_tensors(path), prefix, f"Weights file {str(path)!r}"), strict=False)
    return network


def fitting(network: nn.Module, state: Mapping[str, Tensor], prefix: str, file: str) -> dict[str, Tensor]:
    """Return the tensors of a state for ``load_state_dict`` of the network, under the network's own names.

    Args:
        network: the network.
        state: the tensors of a file, of other networks too.
        prefix: as for :func:`load_weights`.
        file: what an error message calls the file, ``"Weights file 'a.pt'"``.

    Raises:
        InputError: a tensor of the network is missing or has another shape, or two tied ones differ.
    """
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, Tensor)}
    names = {name: name for name in expected}
    try:
        selected = _select(network, expected, state, prefix.rstrip("."), file)
    except InputError:
        other_names: Mapping[str, str] = getattr(network, "other_names", {})
        names = {_plain(name, {}): name for name in expected}
        plain = {_plain(name, other_names): value for name, value in state.items()}
        selected = {}
        if len(names) == len(expected) and len(plain) == len(state):  # else a wrapper's name separates two tensors
            with contextlib.suppress(InputError):
                targets = {name: expected[target] for name, target in names.items()}
                selected = _select(network, targets, plain, _plain(prefix.rstrip("."), other_names), file)
        if not selected:
            raise
    selected = {names[name]: value for name, value in selected.items()}
    for name, other in _tied(expected, selected).items():
        same = expected[name].shape == expected[other].shape  # else it is a part of the other
        if name in selected and same and not torch.equal(selected[name], selected[other]):
            raise InputError(
                f"{file} has different values for {name!r} and {other!r}, which are one tensor in this "
                f"{type(network).__name__}: use a network whose weights are not tied."
            )
    return selected


def _plain(name: str, other_names: Mapping[str, str]) -> str:
    """Return a name without those of wrappers inside it, and with the network's own names of layers."""
    first, *rest = (other_names.get(part, part) for part in name.split("."))
    return ".".join([first, *(part for part in rest if part not in _WRAPPERS)])


def _tied(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return tensors of a network that lie within the memory of another one, which ``state`` has, by name."""
    stored = {x: v for x, v in expected.items() if not is_lazy(v) and v.numel() and v.device.type != "meta"}
    places = {name: value.untyped_storage().data_ptr() for name, value in stored.items()}
    whole = {
        places[name]: name
        for name, value in stored.items()
        if name in state and value.untyped_storage().nbytes() == value.nbytes
    }
    return {name: whole[place] for name, place in places.items() if place in whole and whole[place] != name}


def with_weights(network: nn.Module, weights: str, prefix: str = "") -> nn.Module:
    """Return any network (torchvision's, timm's, a user's) with the weights of a file: :func:`load_weights` in YAML.

    In a config, as ``configs/teacher/torchvision.yaml`` has it::

        teacher:
          class_path: kdlab.models.with_weights
          init_args:
            network: {class_path: torchvision.models.resnet34, init_args: {num_classes: 100}}
            weights: teacher.pth

    On the command line: ``--model.teacher=kdlab.models.with_weights --model.teacher.network=torchvision.models.resnet34
    --model.teacher.network.num_classes=100 --model.teacher.weights=teacher.pth``.

    Args:
        network: the network.
        weights: the file.
        prefix: the network's prefix in the file, if it is an unusual one.

    Raises:
        InputError: as for :func:`load_weights`.
    """
    return load_weights(network, weights, prefix)


def save_weights(network: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write the network's weights to a safetensors file, under the names of its state_dict.

    The write is atomic. Tensors that share memory are written separately; a compiled network is written under the names
    of the original one.

    Args:
        network: any module.
        path: the file to write or replace; folders are created.
        metadata: text for the file's header (commit, accuracy, ...).

    Raises:
        InputError: ``path`` is a folder, or the network has state that is not an initialized tensor.
    """
    tensors = {}
    for name, value in uncompiled(network).state_dict().items():
        if not isinstance(value, Tensor) or is_lazy(value):
            raise InputError(
                f"State {name!r} of {type(network).__name__} is not an initialized tensor and cannot be saved: run a "
                "forward first."
            )
        tensors[name] = value
    save_tensors(tensors, path, metadata)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file atomically.

    Raises:
        InputError: ``path`` is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give the path of the file to write.")
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with atomic_write(path) as file:
        file.write(save(tensors, {"format": "pt", **(metadata or {})}))


class _Mismatch(NamedTuple):
    """How a file's tensors differ from a network's."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    matched: int


def _mismatch(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> _Mismatch:
    tied = _tied(expected, state)
    missing = [x for x in expected if x not in state and x not in tied and not x.endswith("num_batches_tracked")]
    both = [name for name in expected if name in state]
    reshaped = [name for name in both if not is_lazy(expected[name]) and expected[name].shape != state[name].shape]
    return _Mismatch(missing, [name for name in state if name not in expected], reshaped, len(both))


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with a prefix, without the prefix."""
    if not prefix:
        return dict(state)
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _prefixes(name: str) -> list[str]:
    """Return the usual prefixes of a name: module and module.student of module.student.conv1.weight."""
    parts = list(itertools.takewhile(_HOLDERS.__contains__, name.split(".")[:-1]))
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _prefixes_of(name: str, state: Mapping[str, Tensor]) -> list[str]:
    """Return every prefix under which ``state`` has ``name``."""
    return [key[: -len(name) - 1] for key in state if key.endswith(f".{name}")]


def _select(
    network: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], prefix: str, file: str
) -> dict[str, Tensor]:
    """Return the part of ``state`` under the only usual prefix where every tensor fits the network."""
    if prefix:
        candidates = [prefix]
        if not _under(state, prefix):
            tops = dict.fromkeys(name.partition(".")[0] for name in state)
            raise InputError(f"{file} has nothing under {prefix!r}; its first names are {_few(map(repr, tops))}.")
    else:
        candidates = ["", *dict.fromkeys(usual for name in state for usual in _prefixes(name))]
    mismatches = {name: _mismatch(expected, _under(state, name)) for name in candidates}
    fits = [name for name, mismatch in mismatches.items() if not any(mismatch[:3])]
    if len(fits) == 1:
        return _under(state, fits[0])
    if not fits and not prefix:
        others = _prefixes_of(next(iter(expected), ""), state)
        fits = [other for other in others if not any(_mismatch(expected, _under(state, other))[:3])]
    if fits:
        raise InputError(
            f"{file} holds weights that fit under {_few(map(repr, fits))}: "
            "choose one with the prefix of load_weights or with_weights."
        )
    best = max(candidates, key=lambda name: mismatches[name].matched)
    raise InputError(_describe(network, expected, _under(state, best), mismatches[best], file))


def _describe(
    network: nn.Module, expected: Mapping[str, Tensor], state: Mapping[str, Tensor], mismatch: _Mismatch, file: str
) -> str:
    """Return the error message for a mismatch."""
    name = type(network).__name__
    heads = [head for head, module in network.named_modules() if isinstance(module, nn.Linear)]
    head = f"{heads[-1]}." if heads and heads[-1] else ""
    weight = f"{head}weight"
    if weight in mismatch.reshaped and set(mismatch.reshaped) <= {weight, f"{head}bias"} and not any(mismatch[:2]):
        old, new = state[weight].shape, expected[weight].shape
        if old[1:] == new[1:]:
            return (
                f"{file} is for {old[0]} classes and this {name} has {new[0]} "
                f"({weight} is {tuple(old)} in the file, {tuple(new)} in the network): "
                f"build it with num_classes={old[0]} or use other weights."
            )
    shapes = [f"{key!r} is {tuple(state[key].shape)}, here {tuple(expected[key].shape)}" for key in mismatch.reshaped]
    parts = [
        f"{len(names)} {kind} ({_few(names)})"
        for kind, names in (
            ("missing in the file", list(map(repr, mismatch.missing))),
            ("not in the network", list(map(repr, mismatch.unexpected))),
            ("of another shape", shapes),
        )
        if names
    ]
    return f"{file} does not fit this {name}, so nothing was loaded. Tensors: {'; '.join(parts)}."


def _few(names: Iterable[str], count: int = 3) -> str:
    """Return the first names, and how many more there are, as text."""
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
