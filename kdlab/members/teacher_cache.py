"""Teacher outputs on disk, so that later epochs, methods and seeds do not run the teachers."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.files import write_text
from kdlab.members.filling import Filling, prefetch
from kdlab.members.frozen import Frozen
from kdlab.members.member import Member, Seen
from kdlab.members.row_store import Form, Rows, Values, refused
from kdlab.outputs.containers import Batch, Outputs
from kdlab.outputs.split_views import inputs_with_views, with_views
from kdlab.outputs.task_format import ALL_KINDS

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
        folder: where stores lie; several processes may fill and read one at once. On a disk that machines share, the
            processes of one machine fill a store while those of others read it.
        dtype: of the numbers on disk.
        top_k: how many logits of a sample are kept; ``None`` for all.
        views: how many epochs have inputs of their own before they come again; ``None`` if all do.
        shared: the store is for runs of several methods, as those of a study: it has the embedding too, where there is
            one, and where a method cannot use it the teacher runs as without a cache, which is logged.
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
        shared: bool = False,
    ) -> None:
        if dtype not in ("float32", "float16"):
            raise InputError(f"A teacher cache's dtype is 'float32' or 'float16', not {dtype!r}.")
        for name, number, least in (("top_k", top_k, 1), ("views", views, 1), ("check", check, 0)):
            if number is not None and number < least:
                raise InputError(f"A teacher cache's {name} must be at least {least}, not {number}.")
        if shared and views is not None:
            raise InputError("A shared teacher cache has no views: methods without it would see other augmentations.")
        self.folder, self.dtype, self.top_k, self.views, self.check = Path(folder), dtype, top_k, views, check
        self.shared = shared

    def forms(self, seen: Outputs, embedding: bool) -> dict[str, Form]:
        """Return the form in which outputs like ``seen`` are kept, by kind.

        Raises:
            InputError: logits are not (B, K) with K above ``top_k``, or there is no embedding (B, D).
        """
        shape = tuple(seen.logits.shape)
        if len(shape) != 2:
            raise InputError(f"A teacher cache keeps logits (B, K), not {shape}: those of tokens are not cached.")
        if self.top_k is not None and self.top_k >= shape[1]:
            raise InputError(f"A teacher cache's top_k must be below the {shape[1]} classes, not {self.top_k}.")
        forms = {"logits": Form(shape[1], self.dtype, self.top_k)}
        if self.top_k is not None:
            errors = ", ".join(f"{forms['logits'].error(seen.logits, t):.2g} at temperature {t}" for t in (1, 4))
            _log.info(f"top_k={self.top_k} of {shape[1]} logits: mean KL to all of them {errors} ({shape[0]} samples).")
        has_embedding = seen.embedding is not None and seen.embedding.dim() == 2
        if embedding or (self.shared and has_embedding):
            if not has_embedding:
                raise InputError("The teacher gives no embedding (B, D), which this method needs from the cache.")
            assert seen.embedding is not None
            forms["embedding"] = Form(seen.embedding.shape[1], self.dtype)
        return forms


class Store:
    """One teacher's outputs: a folder with a file of rows for each view number, view and kind, once one is written.

    The folder's name is a hash of all that the numbers depend on: ``about`` (teacher and data), the number of samples
    and the form; ``key.json`` in it holds that for a person to read. ``rows`` are those of each view of the batch, by
    name; ``""`` is the batch itself.

    Raises:
        InputError: the folder describes something else than its name does, or cannot be read.
    """

    def __init__(
        self, cache: TeacherCache, about: Mapping[str, Any], rows: Mapping[str, int], forms: Mapping[str, Form]
    ) -> None:
        key = {"format": 1, **about, "rows": rows[""], "dtype": cache.dtype, "top_k": cache.top_k}
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
        self.cache, self.rows, self.forms = cache, rows, forms
        self.key = json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
        self.folder = cache.folder / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._files: dict[str, list[Rows]] = {}  # by kind, in the order of the views
        self._filling = Filling(self.folder)
        self._view, self._served = -1, 0
        self._describe(write=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave open files out: a copy opens them again."""
        return {**self.__dict__, "_files": {}}

    def path(self, view: int, name: str, kind: str) -> Path:
        """Return the file of one kind of output on the view ``name`` of view number ``view``."""
        return self.folder / f"{view:05d}-{quote(name, safe='')}-{kind}-{self.forms[kind].width}"

    def sizes(self, view: int) -> dict[Path, int]:
        """Return the bytes of each file of one view number."""
        return {
            self.path(view, name, kind): Rows.size(rows, *form.row)
            for kind, form in self.forms.items()
            for name, rows in self.rows.items()
        }

    def look(self, epoch: int, index: Tensor, live: Callable[[], Outputs], device: torch.device) -> Outputs:
        """Return the float32 outputs of the samples at ``index`` (B,), on all views in the order of ``rows``.

        If anything is missing, they are those of ``live``, which runs the teacher on all views in this order.

        Raises:
            InputError: a number is not finite, an index is out of range, or a check fails.
        """
        view, following = (at if self.cache.views is None else at % self.cache.views for at in (epoch, epoch + 1))
        if view != self._view:  # files of one view only are open, whatever the number of epochs
            self._view, self._files = view, {}
            prefetch([*self.sizes(view), *self.sizes(following)])
        samples = index.detach().cpu().numpy()[:, None]
        places = [(samples * n + np.arange(n)).ravel() for n in (rows // self.rows[""] for rows in self.rows.values())]
        stored = self._read(places)
        values = stored or self._fill(places, live())
        numbers = {kind: form.decode(values[kind], device) for kind, form in self.forms.items()}
        outputs = Outputs(numbers["logits"], embedding=numbers.get("embedding"))
        self._served += bool(stored)
        if stored and self.cache.check and self._served % self.cache.check == 0:
            self._compare(outputs, live())
        return outputs

    def _read(self, places: Sequence[npt.NDArray[np.int64]]) -> dict[str, Values]:
        """Return the rows of each kind; none if any is missing."""
        if not self._files and all(path.exists() for path in self.sizes(self._view)):
            self._open()
        stored = {}
        for kind, files in self._files.items():
            values, present = zip(*(file.read(at) for file, at in zip(files, places, strict=True)), strict=True)
            if not np.concatenate(present).all():
                return {}
            stored[kind] = np.concatenate(values)
        return stored

    def _fill(self, places: Sequence[npt.NDArray[np.int64]], seen: Outputs) -> dict[str, Values]:
        """Write the missing rows if no other machine does, and return what :meth:`_read` returns from then on."""
        fresh = {kind: form.encode(getattr(seen, kind)) for kind, form in self.forms.items()}  # before any is written
        ends = np.cumsum([len(at) for at in places])
        assert all(len(values) == ends[-1] for values in fresh.values())
        if not self._files:
            self._describe(write=True)
            self._open()
        stored, write = dict[str, Values](), self._filling.granted()
        for kind, values in fresh.items():
            parts = zip(self._files[kind], places, np.split(values, ends[:-1]), strict=True)
            stored[kind] = np.concatenate([file.fill(at, part, write) for file, at, part in parts])
        return stored

    def _open(self) -> None:
        """Open the files of all kinds and views; those that are missing are made."""
        self._files = {
            kind: [Rows(self.path(self._view, name, kind), rows, *form.row) for name, rows in self.rows.items()]
            for kind, form in self.forms.items()
        }

    def _describe(self, write: bool) -> None:
        """Check what ``key.json`` says if it exists; else ``write`` it."""
        path, key = self.folder / "key.json", self.key.encode()
        with refused(self.folder):
            if self.folder.is_symlink():
                raise InputError(f"'{self.folder}' is a link, which may lead out of '{self.cache.folder}': delete it.")
            if path.exists() and (path.stat().st_size != len(key) or path.read_bytes() != key):
                raise InputError(f"'{path}' describes something else than its folder's name does: delete the folder.")
            if write and not path.exists():
                write_text(path, self.key)

    def _compare(self, stored: Outputs, live: Outputs) -> None:
        """Compare stored outputs with those of a fresh forward."""
        for kind, form in self.forms.items():
            was, now = getattr(stored, kind), getattr(live, kind).detach().float()
            allowed = 1e-4 * now.std(correction=0) + 1e-6 * now.abs().max()
            if form.top_k is not None:
                classes = was.topk(form.top_k).indices
                was, now = was.gather(1, classes), now.gather(1, classes)
            if form.dtype == "float16":
                allowed = allowed + 2**-10 * now.abs() + 2**-24
            difference = (was - now).abs()
            if not bool((difference <= allowed).all()):
                raise InputError(
                    f"The cached {kind} in '{self.folder}' differ by up to {float(difference.max()):.3g} from what the "
                    "teacher gives now: it was filled with other inputs or another network; delete the folder."
                )


class Cached(Member):
    """A frozen teacher and its store: in training it runs only for what the store lacks.

    Args:
        teacher: the teacher.
        store: its store, whose views run with the batch.
        index_of: the positions (B,) of a batch's samples, on the host: to read them on the device would be to wait.
    """

    is_frozen: ClassVar[bool] = True
    in_evaluation: ClassVar[bool] = True
    kinds = ALL_KINDS
    teacher: Frozen

    def __init__(self, teacher: Frozen, store: Store, index_of: Callable[[Batch], Any]) -> None:
        super().__init__(teacher.name)
        self.__dict__["teacher"] = teacher
        self.store, self.index_of = store, index_of

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the teacher's network."""
        return self.teacher.networks_of(name)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the teacher's outputs: from the store, or from a forward if anything is missing."""
        if batch.progress is None:
            return self.teacher(batch, seen)  # type: ignore[no-any-return]
        views = [view for view in self.store.rows if view]

        def live() -> Outputs:
            return self.teacher.observe(inputs_with_views(batch, ("",), views), batch)

        outputs = self.store.look(batch.progress.epoch, self.index_of(batch), live, batch.target.device)
        return {self.name: with_views(outputs, batch, views)}


def plan_disk(stores: Sequence[Store], epochs: int) -> int:
    """Return the bytes that a training with these stores takes on disk, and log them.

    Raises:
        InputError: the disk has less free than what is still to be written.
    """
    cache, samples = stores[0].cache, stores[0].rows[""]
    views = epochs if cache.views is None else min(epochs, cache.views)
    files = [file for store in stores for view in range(views) for file in store.sizes(view).items()]
    total, missing = sum(size for _, size in files), sum(size for path, size in files if not path.exists())
    folder = cache.folder.absolute()
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    if free < missing:
        raise InputError(
            f"The teacher cache needs {_amount(missing)} in '{cache.folder}', where {_amount(free)} are free: "
            "lower views, use top_k or float16."
        )
    first, _ = files[0]
    have = Rows(first, samples, *stores[0].forms["logits"].row).count() if first.exists() else 0
    _log.info(
        f"Teacher cache: {_amount(total)} for {views} views in '{cache.folder}'; "
        f"{have} of {samples} rows of the first view are there."
    )
    return total


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
