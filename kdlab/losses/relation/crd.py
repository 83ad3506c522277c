"""Contrastive representation distillation (CRD): contrast with other classes (Tian et al. 2020)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.distributed import gather
from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, embeddings, one_of
from kdlab.losses.context import Context, copied
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.relation.memory_bank import MemoryBank, draw_other_classes, draw_same_class
from kdlab.outputs import Outputs

_log = logging.getLogger("kdlab")


class CRD(Lazy):
    r"""Noise-contrastive estimation between both networks' embeddings, in both directions.

    .. math:: L = -\frac{1}{B} \sum_{(v, M)} \sum_b \left( \log \frac{P_{b0}}{P_{b0} + c} + \sum_{k=1}^{K}
              \log \frac{K / N}{P_{bk} + c} \right), \qquad
              P_{bk} = \frac{\exp(v_b \cdot M_{i_{bk}} / T)}{Z}, \quad c = \frac{K}{N} + 10^{-7}

    where (v, M) is the student's vectors with the teacher's memory bank, and the reverse. A vector is the embedding
    after a trained linear map to ``width`` features, divided by its norm (at least 10^-12); a memory bank holds one for
    each of the N training samples. :math:`i_{b0}` is the sample itself ("exact") or one of its class ("relax"); the
    other K are drawn from the other classes, without replacement if the other classes always have that many samples. Z,
    one for each direction, is N times the mean of the exponentials in the first training batch, and constant from then
    on. Computed in float32, or in float64 for float64 embeddings, in logarithms: no temperature overflows.

    After a training step each row of the batch in the memory bank becomes m times itself plus 1 - m times the new
    vector, divided by its norm. This happens in ``after_backward()``, which the Trainer calls and a custom loop must
    call, because the gradient needs the old rows; in eval mode nothing changes. Under DDP every process writes the rows
    of all processes. The memory banks are part of checkpoints (CIFAR-100: 51 MB, ImageNet: 1.3 GB).

    Recipe: CIFAR-100 and ImageNet weight 0.8 beside weight 1 on the labels, with the defaults here.

    Args:
        negatives: K, at least 1.
        temperature: T, positive.
        momentum: m, from 0 to 1.
        width: features of a vector, at least 1.
        positive: ``"exact"`` or ``"relax"``.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        index: (B,), positions in the training set.
        target: (B,) integer class labels. Where the labels of the training set are unknown (``Context.labels``), the
            labels seen so far are used, and samples not seen yet count as another class.

    Raises:
        InputError: a number out of range; ``setup`` without the number of samples, or with more than fit in the memory
            of the device; no index, or one beyond the training set; no samples of other classes; an empty batch; labels
            that are not class indices.

    Paper: Y. Tian, D. Krishnan, P. Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699.
    Follows RepDistiller, which draws in the loader and keeps one memory bank in each process.

    >>> loss = CRD(negatives=4, width=8)
    >>> loss.setup(Context(nn.Linear(2, 2), (), samples=10, labels=torch.arange(10) % 5))
    >>> index = torch.tensor([3, 7])
    >>> student = Outputs(torch.zeros(2, 5), embedding=torch.eye(2), index=index)
    >>> value = loss(student, Outputs(torch.zeros(2, 5), embedding=torch.eye(2)), index % 5)
    >>> value.backward()
    >>> loss.after_backward()
    >>> ((loss.memory.teacher.norm(dim=1) - 1).abs() < 1e-6).nonzero().flatten()
    tensor([3, 7])
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding", "classes", "index")
    recipe_weight: ClassVar[float] = 0.8
    minimum: ClassVar[float | None] = None  # the memory banks differ
    order_matters: ClassVar[bool] = True  # negatives are drawn for each row

    known: Tensor | None  # the labels of the training set
    _pending: (
        tuple[Tensor, Tensor, Tensor, Tensor] | None
    )  # index, labels and vectors of the last batch, not written yet
    _first_log_z: Tensor | None  # log Z of the first batch, not written yet
    _constant: bool  # whether log Z is known to be in the memory

    def __init__(
        self,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        width: int = 128,
        positive: Literal["exact", "relax"] = "exact",
    ) -> None:
        super().__init__()
        self.negatives = int(at_least("negatives", negatives, 1))
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.momentum = at_least("momentum", momentum, 0, most=1)
        self.width = int(at_least("width", width, 1))
        self.positive = one_of("positive", positive, ("exact", "relax"))
        self.samples: int | None = None
        self.register_buffer("known", None, persistent=False)
        self._largest = 0
        self._reset()

    def setup(self, context: Context) -> None:
        """Store the size and the labels of the training set, and check that its vectors fit in memory."""
        samples, labels = context.samples, copied(context.labels)
        if samples is None:
            raise InputError(
                "CRD needs the number of training samples for its memory banks: use a loader with a length."
            )
        if self.sizes is not None and self.sizes[0] != samples:
            raise InputError(f"CRD was set up for {self.sizes[0]} training samples, not {samples}: create a new one.")
        if labels is not None and len(labels) != samples:
            raise InputError(f"The training set has {samples} samples, but {len(labels)} labels.")
        if self.sizes is None:
            _check_memory(2 * 4 * samples * self.width, context.device)
        self.samples = samples
        if labels is not None and self.sizes is not None:
            labels = labels.to(self.memory.labels.device)
        self.register_buffer("known", labels, persistent=False)
        self._largest = 0 if labels is None else _largest_class(labels)

    def build(self, samples: int, student: int, teacher: int) -> None:
        """Build both linear maps and both memory banks."""
        self.embed_student, self.embed_teacher = nn.Linear(student, self.width), nn.Linear(teacher, self.width)
        self.memory = MemoryBank(samples, self.width)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum of both directions, a scalar; gradient to the student and to both maps."""
        student_vectors, teacher_vectors = embeddings(student, teacher)
        labels = class_labels(target, student.logits)
        samples = self.sizes[0] if self.sizes is not None else self.samples
        if samples is None:
            raise InputError("CRD needs the number of training samples: call setup() before the first forward.")
        index = self._checked(student.index, len(student_vectors), samples)
        self.materialize(student_vectors, samples, student_vectors.shape[1], teacher_vectors.shape[1])
        student_vectors, teacher_vectors = self.vectors(student_vectors, teacher_vectors)
        value = self.contrast(student_vectors, teacher_vectors, self.draw(index, labels))
        if self.training:
            self._pending = (index, labels, student_vectors.detach(), teacher_vectors.detach())
        return value

    def vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both embeddings, mapped to (B, width) and of norm 1."""
        return F.normalize(self.embed_student(student)), F.normalize(self.embed_teacher(teacher.detach()))

    def draw(self, index: Tensor, labels: Tensor) -> Tensor:
        """Return the training samples to contrast, (B, 1 + K), the positive first."""
        classes = self.memory.labels.scatter(0, index, labels) if self.known is None else self.known
        row_classes = classes[index]
        others = draw_other_classes(classes, row_classes, self.negatives, self._largest or _largest_class(classes))
        same = index if self.positive == "exact" else draw_same_class(classes, row_classes)
        return torch.cat([same[:, None], others], 1)

    def contrast(self, student_vectors: Tensor, teacher_vectors: Tensor, rows: Tensor) -> Tensor:
        """Return the loss of vectors (B, width) against the rows (B, 1 + K) of the other network's memory bank."""
        pairs = ((student_vectors, self.memory.teacher), (teacher_vectors, self.memory.student))
        # A product with the full memory bank costs less than gathering B x K rows of it.
        scores = [(v @ bank.T).gather(1, rows) / self.temperature for v, bank in pairs]
        ratio = (rows.shape[1] - 1) / len(self.memory.labels)
        offsets = self._log_z(scores) + math.log(ratio + 1e-7)
        # log(P / (P + c)) = logsigmoid(u) and log(c / (P + c)) = logsigmoid(-u) with u = log P - log c.
        terms = [
            F.logsigmoid(s[:, 0] - offset).sum() + F.logsigmoid(offset - s[:, 1:]).sum()
            for s, offset in zip(scores, offsets, strict=True)
        ]
        return -torch.stack(terms).sum() / len(rows) + 2 * (rows.shape[1] - 1) * math.log1p(1e-7 / ratio)

    def after_backward(self) -> None:
        """Write the last training batch into the memory banks; a custom loop calls this after every backward pass."""
        if self._first_log_z is not None:
            self.memory.log_z.copy_(self._first_log_z)
        if self._pending is not None:
            index, labels, student_vectors, teacher_vectors = map(gather, self._pending)
            self.memory.update(index, labels, student_vectors, teacher_vectors, self.momentum)
        self._pending, self._first_log_z = None, None

    def _reset(self) -> None:
        self._pending, self._first_log_z, self._constant = None, None, False

    def _log_z(self, scores: list[Tensor]) -> Tensor:
        """Return log Z of both directions, (2,)."""
        self._constant = self._constant or bool(self.memory.log_z.isfinite().all())
        if self._constant:
            return self.memory.log_z
        if self._first_log_z is None:
            sums = torch.stack([s.detach().flatten().logsumexp(0) for s in scores])
            count = sums.new_full((1, 1), scores[0].numel())
            if self.training:
                sums, count = gather(sums[None]).logsumexp(0), gather(count)
            log_z = sums - count.sum().log() + math.log(len(self.memory.labels))
            if not self.training:
                return log_z
            self._first_log_z = log_z
        return self._first_log_z.to(scores[0].dtype)

    def _checked(self, index: Tensor | None, batch: int, samples: int) -> Tensor:
        if index is None:
            raise InputError("CRD needs the sample index: let the loader yield (inputs, labels, index).")
        if not batch or len(index) != batch:
            raise InputError(
                f"CRD needs at least 1 sample in a batch and one index for each, not {batch} and {len(index)}."
            )
        # On a GPU this check would wait for the device; the dry run, in eval mode, has done it before the training.
        synchronizes = self.training and index.device.type != "cpu"
        if not synchronizes and not 0 <= int(index.min()) <= int(index.max()) < samples:
            raise InputError(
                f"A sample index lies outside the training set of {samples} samples: {index.tolist()[:8]}."
            )
        return index

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._reset()


def _largest_class(labels: Tensor) -> int:
    return int(torch.bincount(labels[labels >= 0]).max())


def _check_memory(size: int, device: torch.device) -> None:
    if (free := _free_memory(device)) < size:
        raise InputError(
            f"CRD's memory banks take {size / 1e6:.0f} MB, but {device} has {free / 1e6:.0f} left: lower width or "
            "train on fewer samples."
        )
    _log.info("CRD stores the vectors of all training samples: %.0f MB on %s.", size / 1e6, device)


def _free_memory(device: torch.device) -> float:
    """Return the free memory in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:  # includes reclaimable page cache
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return math.inf
