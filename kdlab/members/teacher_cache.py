"""Teacher outputs on disk, so that later epochs, methods and seeds do not run the teachers."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.members.row_store import Rows, Store, Values, not_finite
from kdlab.outputs import Outputs

_log = logging.getLogger("kdlab.teaching")


class TeacherCache:
    r"""A cache of frozen teachers' outputs on disk, keyed by what they depend on: teacher, data, dtype and ``top_k``.

    A row is found by (view number, sample index); the view number is the epoch, or the epoch modulo ``views``, so that
    stores with and without ``views`` share what they have in common. What a look-up returns when it fills the store is
    what it returns later: the numbers after rounding to ``dtype``, float32 again.

    With ``top_k`` the k highest logits :math:`z_i`, their classes and the rest :math:`r = \log \sum_j \exp z_j` over
    the K - k other classes are kept; these get :math:`r - \log(K - k)` each. The softmax at temperature 1 is then
    exact for the k classes (up to dtype); at other temperatures it is an approximation.

    Args:
        folder: where stores lie; several processes may fill and read one at once, on one machine.
        dtype: of the numbers on disk.
        top_k: how many logits of a sample are kept; ``None`` for all.
        views: how many epochs have inputs of their own before they come again; ``None`` if all do.
        check: every so many look-ups that the store could serve, run the teachers as well and compare. Allowed are
            differences of 1e-4 of the outputs' standard deviation plus 1e-6 of the largest, and with float16 2^-10 of
            the number plus 2^-24; with ``top_k``, the k logits are compared. 0: never.

    Raises:
        InputError: an argument out of range.
    """

    def __init__(
        self,
        folder: str,
        dtype: Literal["float32", "float16"] = "float16",
        top_k: int | None = None,
        views: int | None = None,
        check: int = 0,
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise InputError(f"A teacher cache's dtype is 'float32' or 'float16', not {dtype!r}.")
        for name, number, least in (("top_k", top_k, 1), ("views", views, 1), ("check", check, 0)):
            if number is not None and number < least:
                raise InputError(f"A teacher cache's {name} must be at least {least}, not {number}.")
        self.folder, self.dtype, self.top_k, self.views, self.check = Path(folder), dtype, top_k, views, check
        self.rows = 0
        self._kinds: tuple[str, ...] = ()
        self._stores: list[Store] = []
        self._view = 0
        self._served = 0

    @property
    def is_open(self) -> bool:
        """Return whether :meth:`open` was called."""
        return bool(self._stores)

    def open(self, teachers: Sequence[Mapping[str, Any]], data: Mapping[str, Any], rows: int, embedding: bool) -> None:
        """Set teachers and data of the coming look-ups; nothing is written.

        Args:
            teachers: what each teacher's outputs depend on besides the inputs, with :func:`describe` in it.
            data: what the inputs depend on besides epoch and index.
            rows: the number of samples.
            embedding: whether look-ups give embeddings too.

        Raises:
            InputError: a store's description says something else than its name, or the folder cannot be read.
        """
        about = {"data": data, "rows": rows, "dtype": self.dtype, "top_k": self.top_k}
        self._stores = [Store(self.folder, {"teacher": teacher, **about}) for teacher in teachers]
        self.rows, self._served = rows, 0
        self._kinds = ("logits", "embedding") if embedding else ("logits",)

    def advance(self, epoch: int) -> None:
        """Set the epoch of the next look-ups."""
        view = epoch if self.views is None else epoch % self.views
        if view != self._view:  # files of one view only are open, whatever the number of epochs
            for store in self._stores:
                store.close()
        self._view = view

    def plan(self, classes: int, width: int | None, numbers: int, rows: Mapping[str, int]) -> int:
        """Return the bytes that the whole training takes on disk, and log them.

        Args:
            classes: the teachers' K.
            width: the width D of their embeddings; ``None`` if they have none.
            numbers: how many epochs there are.
            rows: how many rows each view has, by name; ``""`` is the batch itself.

        Raises:
            InputError: the disk has less free than what is still to be written, or ``top_k`` is not below ``classes``.
        """
        self._encodable(classes)
        if "embedding" in self._kinds and width is None:
            raise InputError(_NO_EMBEDDING)
        numbers = numbers if self.views is None else min(numbers, self.views)
        total = missing = 0
        for store in self._stores:
            for kind, wide in zip(self._kinds, (classes, width or 0), strict=False):
                for name, count in rows.items():
                    size = Rows.size(count, *store.form(kind, wide))
                    there = [store.path(view, name, kind, wide).exists() for view in range(numbers)]
                    total, missing = total + numbers * size, missing + there.count(False) * size
        above = self.folder.absolute()
        free = shutil.disk_usage(next(each for each in (above, *above.parents) if each.exists())).free
        if free < missing:
            raise InputError(
                f"The teacher cache needs {_amount(missing)} in '{self.folder}', where {_amount(free)} are free: "
                "lower views, use top_k or float16."
            )
        first = self._stores[0].path(0, "", "logits", classes)
        have = Rows(first, rows[""], *self._stores[0].form("logits", classes)).count() if first.exists() else 0
        _log.info(
            f"Teacher cache: {_amount(total)} for {numbers} views in '{self.folder}'; "
            f"{have} of {rows['']} rows of the first view are there."
        )
        return total

    def look(
        self, parts: Sequence[tuple[str, Tensor, int]], live: Callable[[], list[Outputs]], device: torch.device
    ) -> list[Outputs]:
        """Return each teacher's outputs on all ``parts``, concatenated: from the store, or by one call of ``live``.

        Args:
            parts: of each view of the batch its name (``""`` for the batch itself), its rows in the store (b,) int64,
                and how many rows the store has of it.
            live: runs the teachers on the parts one after the other; called if anything is missing, for everything.
            device: of what is returned.

        Returns:
            For each teacher logits (B, K), and embedding (B, D) if asked for, float32.

        Raises:
            InputError: logits are not (B, K), there is no embedding, a number is not finite, or a check fails.
        """
        read = [(name, places.detach().cpu().numpy(), rows) for name, places, rows in parts]
        found = [{kind: store.read(self._view, kind, read) for kind in self._kinds} for store in self._stores]
        if any(values is None for each in found for values in each.values()):
            fresh = [self._encode(each) for each in live()]  # all of them, so that nothing wrong was kept at an error
            for store, kept, each in zip(self._stores, found, fresh, strict=True):
                for kind, (values, width) in each.items():
                    store.widths[kind] = width
                    kept[kind] = store.fill(self._view, kind, read, values)
            return self._outputs(found, device)
        self._served += 1
        outputs = self._outputs(found, device)
        if self.check and self._served % self.check == 0:
            self._compare(outputs, live())
        return outputs

    def _encode(self, seen: Outputs) -> dict[str, tuple[Values, int]]:
        """Encode each kind of output for the store, with its width."""
        if seen.logits.dim() != 2:
            shape = tuple(seen.logits.shape)
            raise InputError(f"A teacher cache keeps logits (B, K), not {shape}: those of tokens are not cached.")
        coded = {}
        for kind in self._kinds:
            values: Tensor | None = getattr(seen, kind)
            if values is None or values.dim() != 2:
                raise InputError(_NO_EMBEDDING)
            width = values.shape[1]
            if self.top_k is not None and kind == "logits":
                self._encodable(width)
                numbers, classes = _highest(values.detach().float(), self.top_k)
            else:
                numbers, classes = values.detach().float(), None
            numbers = numbers.to(getattr(torch, self.dtype))
            if not torch.isfinite(numbers).all():
                raise not_finite(self.dtype)
            if classes is not None:
                numbers = torch.cat([numbers.view(torch.uint8), classes.view(torch.uint8)], 1)
            coded[kind] = (numbers.cpu().numpy(), width)
        return coded

    def _decode(self, kind: str, values: Values, width: int, device: torch.device) -> Tensor:
        """Decode stored values to float32 on the device."""
        kept = torch.from_numpy(values)
        kept = (kept.pin_memory() if device.type == "cuda" else kept).to(device, non_blocking=True)
        k, dtype = self.top_k, getattr(torch, self.dtype)
        if k is None or kind != "logits":
            return kept.float()
        numbers, classes = (
            each.clone(memory_format=torch.contiguous_format)  # to begin where their dtype may
            for each in kept.tensor_split([(k + 1) * dtype.itemsize], 1)
        )
        numbers = numbers.view(dtype).float()
        others = numbers[:, k:] - math.log(width - k)
        return others.repeat(1, width).scatter(1, classes.view(_integer(width)).long(), numbers[:, :k])

    def _outputs(self, found: Sequence[Mapping[str, Values | None]], device: torch.device) -> list[Outputs]:
        outputs = []
        for store, each in zip(self._stores, found, strict=True):
            numbers = {
                kind: self._decode(kind, values, store.widths[kind], device)
                for kind, values in each.items()
                if values is not None
            }
            outputs.append(Outputs(numbers["logits"], embedding=numbers.get("embedding")))
        return outputs

    def _encodable(self, classes: int) -> None:
        if self.top_k is not None and self.top_k >= classes:
            raise InputError(f"A teacher cache's top_k must be below the {classes} classes, not {self.top_k}.")

    def _compare(self, kept: Sequence[Outputs], live: Sequence[Outputs]) -> None:
        """Compare stored outputs with those of a fresh forward."""
        for store, old, new in zip(self._stores, kept, live, strict=True):
            for kind in self._kinds:
                was, now = getattr(old, kind), getattr(new, kind).detach().float()
                if was.shape != now.shape:
                    raise InputError(f"The cached {kind} in '{store.folder}' are {was.shape}, but {now.shape} now.")
                allowed = 1e-4 * now.std(correction=0) + 1e-6 * now.abs().max()
                if self.top_k is not None and kind == "logits":
                    classes = was.topk(self.top_k).indices
                    was, now = was.gather(1, classes), now.gather(1, classes)
                if self.dtype == "float16":
                    allowed = allowed + 2**-10 * now.abs() + 2**-24
                apart = (was - now).abs()
                if not bool((apart <= allowed).all()):
                    raise InputError(
                        f"The cached {kind} in '{store.folder}' differ by up to {float(apart.max()):.3g} from what the "
                        "teacher gives now: it was filled with other inputs or another network; delete the folder."
                    )


_OF_ANY = frozenset(vars(nn.Module()))  # attributes that say how a module is used: mode, hooks
_NO_EMBEDDING = "The teacher gives no embedding (B, D), which this method needs from the cache."


def _highest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest logits and the log-sum-exp of the others, (B, k + 1), and the k classes."""
    values, classes = logits.topk(k)
    rest = logits.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
    return torch.cat([values, rest], 1), classes.to(_integer(logits.shape[1]))


def _integer(classes: int) -> torch.dtype:
    return torch.int16 if classes <= 32767 else torch.int32


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def describe(network: nn.Module) -> dict[str, str]:
    """Describe what a network's outputs depend on besides device and memory format: weights, classes and settings.

    Not seen is code: a ``forward`` or a lambda that was changed while classes, weights and attributes stayed.

    Returns:
        ``weights``: SHA-256 of names, dtypes, shapes and bytes of parameters and buffers; ``network``: class and repr;
        ``settings``: SHA-256 of each layer's class and the repr of its attributes, without memory addresses: what its
        own repr may not show (the activation of a ``TransformerEncoderLayer``).

    Raises:
        InputError: the repr shows a memory address, which says nothing in another process.
    """
    text = f"{type(network).__qualname__}: {network!r}"
    state = {**dict(network.named_buffers(remove_duplicate=False)), **network.state_dict()}
    weights = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, Tensor):  # a layer's extra state
            weights.update(f"{name} {value!r}\n".encode())
            text += f"\n{name}: {value!r}"
            continue
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    if " at 0x" in text:
        raise InputError(
            f"The teacher's description has a memory address ('...{text.split(' at 0x')[0][-40:]} at 0x...'), so its "
            "outputs cannot be found again: give that object a repr of its own, or drop the teacher cache."
        )
    layers = [(name, type(module).__qualname__, _settings(module)) for name, module in network.named_modules()]
    settings = hashlib.sha256(repr(layers).encode()).hexdigest()
    return {"weights": weights.hexdigest(), "network": text, "settings": settings}


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    own = {name: value for name, value in vars(module).items() if name not in _OF_ANY}
    said = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in own.items()}
    return sorted(said.items())
