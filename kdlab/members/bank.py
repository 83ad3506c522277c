"""Banks: the outputs that a learner gave for each training sample at an earlier visit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdlab.distributed import gather
from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.members.member import Member, Seen
from kdlab.outputs.containers import Batch, Outputs

NEVER = -1e4
"""The logit of a class with probability exactly 0, also in float16."""


class Bank(Member, Lazy):
    """The last recorded logits of every training sample, by its index; saved in checkpoints, equal on all processes.

    It takes N * K numbers: 20 MB for CIFAR-100, 5.1 GB for ImageNet in float32, half of it in float16. The outputs
    ``source`` are recorded in epochs e with ``(e + 1) % every == 0``, and looked up for the samples of ``reader``.
    With ``wait`` nothing is given before the first such epoch is over. With ``label_unknown`` a sample that was never
    recorded has the distribution of its label: probability 1, so that cross-entropy and KL are the cross-entropy with
    the label.
    """

    is_optional: ClassVar[bool] = True
    synchronized: ClassVar[tuple[str, ...]] = ("remembered", "known")
    remembered: Tensor
    known: Tensor

    def __init__(
        self,
        name: str,
        source: str,
        reader: str,
        dtype: torch.dtype = torch.float32,
        every: int = 1,
        wait: bool = False,
        label_unknown: bool = False,
    ) -> None:
        super().__init__(name, (source, reader))
        self.source, self.reader, self.dtype = source, reader, dtype
        self.every, self.wait, self.label_unknown = every, wait, label_unknown
        self._samples: int | None = None

    def build(self, samples: int, classes: int) -> None:
        """Make an empty bank."""
        self.register_buffer("remembered", torch.zeros(samples, classes, dtype=self.dtype))
        self.register_buffer("known", torch.zeros(samples, dtype=torch.bool))

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if (key := f"{prefix}_extra_state") in state:  # torch loads a module's own buffers before it
            self.set_extra_state(state[key])
        super()._load_from_state_dict(state, prefix, *args)

    def setup(self, samples: int | None) -> None:
        """Receive the size of the training set."""
        self._samples = samples

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the rows of the reader's samples, (B, K), unless there are none."""
        reader = seen[self.reader]
        if batch.progress is None:
            return {}
        if self.is_dry_run:
            self._materialize(seen[self.source], batch)
        elif (self.wait and batch.progress.epoch < self.every) or not len(reader.logits):
            return {}
        assert reader.index is not None
        logits = reader.logits.detach()
        rows, known = self.remembered[reader.index].to(logits.dtype), self.known[reader.index]
        if self.label_unknown:
            target = batch.target
            if target.is_floating_point() or target.dim() != 1:
                raise InputError("A bank of samples needs class indices (B,) as labels: drop mixing.")
            label = torch.full_like(logits, NEVER).scatter_(1, target.clamp(min=0)[:, None], 0.0)
            label = torch.where(target[:, None] >= 0, label, 0.0)  # an ignored label: all classes alike
            rows = torch.where(known[:, None], rows, label)
        return {self.name: Outputs(rows, index=reader.index)}

    def record(self, batch: Batch, seen: Seen) -> None:
        """Write the batch's rows, in an epoch of recording: those of this process and of all others."""
        if batch.progress is not None and (batch.progress.epoch + 1) % self.every == 0:
            assert batch.index is not None
            logits = seen[self.source].logits.detach().to(self.remembered.dtype)
            index, logits = gather(batch.index), gather(logits)
            self.remembered[index] = logits
            self.known[index] = True

    def _materialize(self, source: Outputs, batch: Batch) -> None:
        if self._samples is None or batch.index is None:
            raise InputError(
                "A bank keeps outputs of each sample: it needs a data set with a length, and a loader that yields "
                "(inputs, labels, index)."
            )
        if source.logits.dim() != 2:
            raise InputError(f"A bank keeps logits (B, K), not {tuple(source.logits.shape)}.")
        self.materialize(source.logits.detach().to(self.dtype), self._samples, source.logits.shape[1])
