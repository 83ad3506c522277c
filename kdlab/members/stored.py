"""A teacher that is a file: outputs for every training sample, by its index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.members.member import Member, Seen
from kdlab.members.output_file import OutputFile, read_outputs
from kdlab.outputs.containers import Batch, Outputs
from kdlab.outputs.factored import FactoredLogits
from kdlab.outputs.task_format import ALL_KINDS
from kdlab.outputs.top_logits import dense, top_logits


class Stored(Member):
    r"""A teacher whose outputs come from a file that ``kdlab cache`` or any other program wrote.

    A ``.safetensors`` or ``.parquet`` file has these tensors or columns, row n of the N training samples in the order
    of the batches' ``index`` (numbers of any floating type):

    ====================================  ==========================================================================
    ``logits``                            (N, K)
    ``probabilities``                     (N, K), each row with sum 1; their logarithms are the logits
    ``embedding``                         (N, D)
    ``log_probabilities``, ``tokens``     (N, k): the k most probable classes or tokens and their log-probabilities; all
                                          others share the missing mass alike
    ``hidden``, ``head.weight``,          (N, D), (V, D), (V,) or none: the last hidden states and the head, whose
    ``head.bias``                         product is the logits
    ``ends``                              (N,): where there is a row for each token instead of each sample, the row at
                                          which each sample's tokens end; in Parquet, a list of lists says the same
    ``labels``, ``index``                 (N,): what the samples are labeled with, which shows whether the order is
                                          right; the position of each row's sample, where rows have another order
    ====================================  ==========================================================================

    An ``.npy`` file has one of the first three. Tokens are those whose mask is 1. kdlab writes a fingerprint of the
    data beside them. Before training starts are checked: the fingerprint, the number of samples, labels, classes, and
    for each batch the number of its tokens. In evaluation there is no teacher.

    Args:
        path: the file.
        kind: what the array of an ``.npy`` file is.
        num_classes: K of ``log_probabilities``, where kdlab did not write it.
        fixed: whether the outputs count for every augmentation of a sample, although they are those of one image: a
            "fixed teacher" (L. Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR
            2022, arXiv 2106.05237), which is another method and often a worse one.

    Raises:
        InputError: before the first step, whatever of this does not fit.
    """

    is_frozen: ClassVar[bool] = True
    kinds = ALL_KINDS
    any_shape: ClassVar[bool] = True

    def __init__(
        self,
        path: str,
        kind: Literal["logits", "probabilities", "embedding"] = "logits",
        num_classes: int | None = None,
        fixed: bool = False,
    ) -> None:
        super().__init__("teacher")
        self.path, self.kind, self.num_classes, self.fixed = path, kind, num_classes, fixed
        self.index_of: Callable[[Batch], Any] = lambda batch: batch.index
        self._file: OutputFile | None = None
        self._row_of: Tensor | None = None
        self._head: tuple[Tensor, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file out: a copy opens it again."""
        return {**self.__dict__, "_file": None, "_row_of": None, "_head": None}

    @property
    def file(self) -> OutputFile:
        """Return what the file holds; it is opened when it is needed first."""
        if self._file is None:
            self._file = read_outputs(Path(self.path).expanduser(), self.kind)
            if (index := self._file.tensors.get("index")) is not None:
                self._row_of = index.argsort()
        return self._file

    @property
    def vocabulary(self) -> int:
        """Return the number of classes of which the most probable are stored.

        Raises:
            InputError: nobody says.
        """
        number = self.num_classes or self.file.about.get("num_classes")
        if number is None:
            raise InputError(f"{self.path!r} does not say how many classes there are: set num_classes.")
        return int(number)

    def missing_mass(self) -> tuple[float, float] | None:
        """Return mean and largest probability that stored tokens leave out, in some thousand rows, if they do."""
        rows = self.file.tensors.get("log_probabilities")
        if rows is None:
            return None
        missing = 1 - rows[:: max(len(rows) // 4096, 1)].double().exp().sum(1)
        return float(missing.mean()), float(missing.max())

    @torch.no_grad()
    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the stored outputs of the batch's samples."""
        if batch.progress is None:
            return {}
        if batch.index is None:
            raise InputError("A stored teacher needs the sample index: let the loader yield (inputs, labels, index).")
        samples = self.index_of(batch).cpu()[: len(batch.index)]
        if len(samples) and not (samples.min() >= 0 and samples.max() < self.file.samples):
            raise InputError(
                f"The batch has sample indices from {samples.min()} to {samples.max()}, but {self.path!r} has "
                f"{self.file.samples} samples."
            )
        places = samples if self._row_of is None else self._row_of[samples]
        view, device = batch.progress.epoch % self.file.views, batch.target.device
        if "ends" not in self.file.tensors:
            parts = dict(self._read(places + view * self.file.samples, device))
            return {self.name: Outputs(self._logits(parts), embedding=parts.get("embedding"), index=batch.index)}
        rows, mask = self._tokens(places, samples, batch, view)
        parts = {name: _spread(values, mask) for name, values in self._read(rows, device)}
        return {self.name: Outputs(self._logits(parts), index=batch.index, mask=batch.mask)}

    def _tokens(self, places: Tensor, samples: Tensor, batch: Batch, view: int) -> tuple[Tensor, Tensor]:
        """Return the rows of all tokens of a batch, and where they are in it, (B, L) bool."""
        if batch.mask is None:
            raise InputError(f"{self.path!r} has a row for each token, but the batch has no attention_mask.")
        mask, ends = batch.mask.bool(), self.file.tensors["ends"]
        starts = torch.where(places > 0, ends[places - 1], 0)
        stored, actual = ends[places] - starts, mask.sum(1).cpu()
        if not torch.equal(stored, actual):
            at = int((stored != actual).nonzero()[0])
            raise InputError(
                f"Sample {int(samples[at])} has {int(actual[at])} tokens, and {int(stored[at])} in {self.path!r}: it "
                "was written with other texts, another tokenizer or another max_length."
            )
        rows = [torch.arange(int(start), int(start + n)) for start, n in zip(starts, actual, strict=True)]
        return torch.cat(rows) + view * int(ends[-1]), mask

    def _read(self, rows: Tensor, device: torch.device) -> Iterator[tuple[str, Tensor]]:
        """Iterate over the stored tensors at ``rows``, (R, width) float32 or int64 on the device."""
        for name in ("logits", "probabilities", "embedding", "hidden", "log_probabilities", "tokens"):
            if (stored := self.file.tensors.get(name)) is not None:
                values = stored[rows]
                if name != "tokens" and not bool(values.isfinite().all()):
                    raise InputError(f"{self.path!r} has a number in {name!r} that is not finite.")
                values = values.pin_memory() if device.type == "cuda" else values
                values = values.to(device, non_blocking=True)
                yield name, values.long() if name == "tokens" else values.float()

    def _logits(self, parts: dict[str, Tensor]) -> Tensor:
        """Return logits (..., K) from stored tensors (..., width)."""
        if "logits" in parts:
            return parts["logits"]
        if (p := parts.get("probabilities")) is not None:
            return p.clamp(min=torch.finfo(p.dtype).tiny).log()
        if (hidden := parts.get("hidden")) is not None:
            return FactoredLogits(hidden, *self._head_on(hidden.device))
        if (log_p := parts.get("log_probabilities")) is not None:
            make = dense if log_p.dim() == 2 else top_logits
            return make(log_p, parts["tokens"], self.vocabulary)
        return parts["embedding"].new_empty(*parts["embedding"].shape[:-1], 0)

    def _head_on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the stored head in float32 on a device."""
        if self._head is None or self._head[0].device != device:
            tensors = self.file.tensors
            weight, bias = tensors["head.weight"].to(device).float(), tensors.get("head.bias")
            self._head = weight, None if bias is None else bias.to(device).float()
        return self._head


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Return the rows of all tokens (T, width) where the mask (B, L) is 1: (B, L, width), 0 elsewhere."""
    spread = values.new_zeros(*mask.shape, values.shape[1])
    spread[mask] = values
    return spread
