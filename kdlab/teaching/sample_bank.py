"""Teachers that are what a network said before: in the last epoch, some epochs ago, or on the batch before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdlab.data import LastBatch, View
from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.teaching import Answer, Lesson, Teaching

REMEMBERED = (".remembered", ".known")
"""How the names of the buffers end that every process fills with what all of them saw."""

NEVER = -1e4
"""The logit of a class that is certainly not meant: its probability is exactly 0, also in float16."""


class SampleTable(Lazy):
    """A row of logits for every training sample, by its index: detached, saved in checkpoints, equal on all processes.

    It takes N * K numbers: 20 MB for CIFAR-100, 5.1 GB for ImageNet in float32, half of it in float16.

    Args:
        dtype: what rows are kept in.
    """

    remembered: Tensor
    known: Tensor

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def build(self, samples: int, classes: int) -> None:
        """An empty table."""
        self.register_buffer("remembered", torch.zeros(samples, classes))
        self.register_buffer("known", torch.zeros(samples, dtype=torch.bool))

    @torch.no_grad()
    def write(self, index: Tensor, logits: Tensor) -> None:
        """Keep (B, K) logits of this process's samples, and of those of all others."""
        index, logits = everyones(index), everyones(logits.detach().to(self.remembered.dtype))
        self.remembered[index] = logits
        self.known[index] = True

    def read(self, index: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rows (B, K) of samples in the dtype of ``like``, and (B,) whether each was ever written."""
        return self.remembered[index].to(like.dtype), self.known[index]


def everyones(tensor: Tensor) -> Tensor:
    """The tensors (B, ...) of all processes, one after the other; of equal sizes, as the batches of processes are."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.cat(gathered)


class Remembering(Teaching):
    """What learners said of each sample, kept by its index.

    Args:
        dtype: what is kept in.
    """

    def __init__(self, dtype: Literal["float32", "float16"] = "float32") -> None:
        super().__init__()
        if dtype not in ("float32", "float16"):
            raise InputError(f"dtype is 'float32' or 'float16', not {dtype!r}.")
        self.dtype = getattr(torch, dtype)
        self.tables = nn.ModuleDict()
        self.epoch = 0

    def adopt(self, networks: Mapping[str, nn.Module], learners: Sequence[str]) -> None:
        """One table a learner."""
        self.tables = nn.ModuleDict({name: SampleTable(self.dtype) for name in learners})

    def prepare(self, outputs: Mapping[str, Outputs], samples: int | None) -> None:
        """Size the tables, for the training set as it is."""
        if samples is None or next(iter(outputs.values())).index is None:
            raise InputError(
                f"{type(self).__name__} remembers what was said of each sample: it needs a data set with a length, and "
                "a loader that yields (inputs, labels, index)."
            )
        for name in self.tables:
            logits = outputs[name].logits
            if logits.dim() != 2:
                raise InputError(f"{type(self).__name__} remembers logits (B, K), not {tuple(logits.shape)}.")
            self.table(name).materialize(logits.detach().to(self.dtype), samples, logits.shape[1])

    def table(self, learner: str) -> SampleTable:
        """What is remembered of a learner."""
        table = self.tables[learner]
        assert isinstance(table, SampleTable)
        return table

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Every learner is taught by itself."""
        return [(name, name) for name in learners]

    def advance(self, epoch: int, step: int) -> None:
        """Note the epoch."""
        self.epoch = epoch


class PreviousEpoch(Remembering):
    r"""Every learner is taught by what it said of the same sample in an earlier epoch (PS-KD, LWR).

    The teacher's logits of sample n are those that the learner gave, in training, at its last visit in an epoch e with
    :math:`(e + 1) \bmod every = 0`. A sample that has none yet is taught by its label alone: probability 1, so that
    cross-entropy and KL are the cross-entropy with the label. With ``wait`` there are no lessons before the first such
    epoch is over.

    Recipe: PS-KD ``every=1`` with :class:`~kdlab.losses.SoftLabels`, weight :math:`\alpha_e = 0.8 (e + 1) / E` and task
    weight :math:`1 - \alpha_e`; LWR ``every=5, wait=True`` with :class:`~kdlab.losses.SoftTargets`.

    Papers: K. Kim, B. Ji, D. Yoon, S. Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
    2021, arXiv 2006.12000. X. Deng, Z. Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098.

    Args:
        every: epochs from one refreshment to the next.
        wait: whether learners are taught nothing before the first one.
        dtype: what is kept in.

    Raises:
        InputError: ``every`` below 1; before the first step, loaders without sample index.
    """

    def __init__(self, every: int = 1, wait: bool = False, dtype: Literal["float32", "float16"] = "float32") -> None:
        super().__init__(dtype)
        if every < 1:
            raise InputError(f"A memory is refreshed every 1 or more epochs, not {every}.")
        self.every, self.wait = every, wait

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each learner from its own memory."""
        if self.wait and self.epoch < self.every and not self.is_rehearsing:
            return []
        return [Lesson(name, self._recalled(name, outputs[name], batch.target), source=name) for name in self.tables]

    def _recalled(self, name: str, student: Outputs, target: Tensor) -> Outputs:
        assert student.index is not None
        logits = student.logits.detach()
        if target.is_floating_point() or target.dim() != 1:
            raise InputError("A memory of samples needs class indices (B,) as labels: drop mixing.")
        rows, known = self.table(name).read(student.index, logits)
        label = torch.full_like(logits, NEVER).scatter_(1, target[:, None], 0.0)
        return Outputs(torch.where(known[:, None], rows, label), index=student.index)

    def remember(self, outputs: Mapping[str, Outputs], batch: Batch) -> None:
        """Write what was said, in an epoch of refreshment."""
        if (self.epoch + 1) % self.every == 0:
            for name in self.tables:
                assert batch.index is not None
                self.table(name).write(batch.index, outputs[name].logits)


class LastMiniBatch(Remembering):
    r"""Every learner sees the last batch again, differently augmented, and is taught by what it said of it then (DLB).

    At step t the network runs batch t and, in the same forward, batch t - 1 under another augmentation. Labels count
    for both, as one batch; the lesson is on batch t - 1, with its logits of step t - 1. The first step of a training
    has none. With gradient accumulation a step is a batch.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 3.

    Paper: Y. Shen, L. Xu, Y. Yang, Y. Li, Y. Guo, "Self-Distillation from the Last Mini-Batch for Consistency
    Regularization", CVPR 2022, arXiv 2203.16172, whose code makes two forwards of them.
    """

    view = "last_batch"

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """The batch before."""
        return {self.view: LastBatch()}

    @property
    def sees(self) -> tuple[str, ...]:
        """The batch before."""
        return (self.view,)

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """Both batches, every sample alike."""
        return [answer for name in self.tables for answer in both(name, outputs[name], batch, self.view)]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """On the batch before, from what was said of it then."""
        lessons = []
        for name in self.tables:
            again = outputs[name].views[self.view]
            if len(again.logits):
                assert again.index is not None
                rows, _ = self.table(name).read(again.index, again.logits.detach())
                teacher = Outputs(rows, index=again.index)
                lessons.append(Lesson(name, teacher, source=name, student=again, target=again.target))
            elif self.is_rehearsing:
                lessons.append(Lesson(name, Outputs(outputs[name].logits.detach()), source=name))
        return lessons

    def remember(self, outputs: Mapping[str, Outputs], batch: Batch) -> None:
        """Write what was said of this batch."""
        for name in self.tables:
            assert batch.index is not None
            self.table(name).write(batch.index, outputs[name].logits)


def both(name: str, seen: Outputs, batch: Batch, view: str) -> list[Answer]:
    """The labels of a batch and of one view of it, as if they were one batch."""
    other = seen.views[view]
    own, more = len(seen.logits), len(other.logits)
    first = Answer(name, seen.logits, batch.target, own / (own + more))
    if not more:
        return [first]
    target = batch.target.repeat_interleave(more // own) if other.target is None else other.target
    return [first, Answer(name, other.logits, target, more / (own + more))]
