"""Weights into a network from any common file, and out of it into a safetensors file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlab.errors import InputError
from kdlab.files import atomic_write
from kdlab.models.checkpoint_reader import read_tensors

Network = TypeVar("Network", bound=nn.Module)

# Names under which training codes hold the network that is meant (DataParallel, Lightning, torch.compile).
_HOLDERS = {"module", "student", "model", "network", "net", "_orig_mod"}


def load_weights(network: Network, path: str | os.PathLike[str], prefix: str = "") -> Network:
    """Put the weights of a file into ``network`` and return it; every tensor has to fit, or none is changed.

    Reads safetensors and what ``torch.save`` writes: a state_dict, or one under ``state_dict``, ``model`` or
    ``model_state_dict`` of a checkpoint (Lightning, kdlab, and the published CIFAR teachers of RepDistiller,
    mdistiller, SSKD, ReviewKD, SimKD). The network may stand under any of ``module.``, ``student.``, ``model.``,
    ``network.``, ``net.``; what stands beside it (``teacher.``, adapters) is left out. Only BatchNorm's
    ``num_batches_tracked``, which files of PyTorch 0.4 lack, may be missing. No code in a file is ever run, and no
    object but tensors and plain values is made from it.

    Args:
        network: any module; its dtype and device stay.
        path: the file; ``~`` is the home folder.
        prefix: where the network stands in the file, if under another name, e.g. ``"networks.a"``.

    Raises:
        InputError: the file is missing, damaged, no weights file or holds other objects, or its tensors do not fit.
    """
    path = Path(path).expanduser()
    target: nn.Module = getattr(network, "_orig_mod", network)
    wanted = {name: value for name, value in target.state_dict().items() if isinstance(value, Tensor)}
    state = _choose(target, wanted, read_tensors(path), prefix.rstrip("."), path)
    target.load_state_dict(state, strict=False)  # _choose was stricter
    return network


def with_weights(network: nn.Module, weights: str, prefix: str = "") -> nn.Module:
    """Any network (torchvision's, timm's, your own) with the weights of a file: :func:`load_weights` as a class path.

    In YAML: ``{class_path: kdlab.models.with_weights, init_args: {network: {class_path: torchvision.models.resnet18},
    weights: teacher.pt}}``.

    Args:
        network: the network.
        weights: the file.
        prefix: where the network stands in the file, if under an unusual name.

    Raises:
        InputError: as for :func:`load_weights`.
    """
    return load_weights(network, weights, prefix)


def save_weights(network: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write the network's weights to a safetensors file, under the names of its state_dict.

    The file appears whole or not at all: it is written beside ``path`` and then renamed. Tensors that share memory are
    written once each; a compiled network is written as the network that was compiled.

    Args:
        network: any module.
        path: the file to write or replace; folders are created.
        metadata: text to keep in the file's header (commit, accuracy, ...).

    Raises:
        InputError: ``path`` is a folder, or the network has state that is no tensor.
    """
    tensors = {}
    for name, value in getattr(network, "_orig_mod", network).state_dict().items():
        if not isinstance(value, Tensor) or is_lazy(value):
            raise InputError(
                f"State {name!r} of {type(network).__name__} is no tensor with values yet, so it cannot be saved."
            )
        tensors[name] = value
    save_tensors(tensors, path, metadata)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file, whole or not at all: :func:`save_weights` without a network.

    Raises:
        InputError: ``path`` is a folder.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give the name of the file to write.")
    tensors = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    with atomic_write(path) as file:
        save_file(tensors, Path(file.name), metadata={"format": "pt", **(metadata or {})})


class _Misfit(NamedTuple):
    """What keeps a file's tensors from being a network's."""

    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    matched: int


def _misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> _Misfit:
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    both = [name for name in wanted if name in given]
    reshaped = [name for name in both if not is_lazy(wanted[name]) and wanted[name].shape != given[name].shape]
    return _Misfit(missing, [name for name in given if name not in wanted], reshaped, len(both))


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not prefix:
        return dict(state)
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def _holders(name: str) -> list[str]:
    """The usual places that ``name`` stands under: module and module.student for module.student.conv1.weight."""
    parts = list(itertools.takewhile(_HOLDERS.__contains__, name.split(".")[:-1]))
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _places_of(name: str, state: Mapping[str, Tensor]) -> list[str]:
    return [key[: -len(name) - 1] for key in state if key.endswith(f".{name}")]


def _choose(
    network: nn.Module, wanted: Mapping[str, Tensor], state: dict[str, Tensor], prefix: str, path: Path
) -> dict[str, Tensor]:
    """The part of ``state`` that is this network's: the one place under a usual name where every tensor fits."""
    if prefix:
        places = [prefix]
        if not _under(state, prefix):
            tops = dict.fromkeys(name.partition(".")[0] for name in state)
            raise InputError(
                f"Weights file {str(path)!r} has nothing under {prefix!r}; its first names are {_few(map(repr, tops))}."
            )
    else:
        places = ["", *dict.fromkeys(place for name in state for place in _holders(name))]
    misfits = {place: _misfit(wanted, _under(state, place)) for place in places}
    fits = [place for place, misfit in misfits.items() if not any(misfit[:3])]
    if len(fits) == 1:
        return _under(state, fits[0])
    where = f"Weights file {str(path)!r}"
    anchor = next(iter(wanted), "")
    if not fits and not prefix:
        fits = [place for place in _places_of(anchor, state) if not any(_misfit(wanted, _under(state, place))[:3])]
    if fits:
        raise InputError(
            f"{where} holds weights that fit under {_few(map(repr, fits))}: "
            "say which with the prefix of load_weights or with_weights."
        )
    best = max(places, key=lambda place: misfits[place].matched)
    raise InputError(_complaint(network, wanted, _under(state, best), misfits[best], where))


def _complaint(
    network: nn.Module, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], misfit: _Misfit, where: str
) -> str:
    name = type(network).__name__
    heads = [head for head, module in network.named_modules() if isinstance(module, nn.Linear)]
    head = f"{heads[-1]}." if heads and heads[-1] else ""
    weight = f"{head}weight"
    if weight in misfit.reshaped and set(misfit.reshaped) <= {weight, f"{head}bias"} and not any(misfit[:2]):
        old, new = given[weight].shape, wanted[weight].shape
        if old[1:] == new[1:]:
            return (
                f"{where} is for {old[0]} classes and this {name} has {new[0]} "
                f"({weight} is {tuple(old)} in the file, {tuple(new)} in the network): "
                f"build it with num_classes={old[0]} or take other weights."
            )
    shapes = [f"{key!r} is {tuple(given[key].shape)}, here {tuple(wanted[key].shape)}" for key in misfit.reshaped]
    parts = [
        f"{len(names)} {what} ({_few(names)})"
        for what, names in (
            ("missing in the file", list(map(repr, misfit.missing))),
            ("not in the network", list(map(repr, misfit.unexpected))),
            ("of another shape", shapes),
        )
        if names
    ]
    return f"{where} does not fit this {name}, so nothing was loaded; of its tensors, {'; '.join(parts)}."


def _few(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
