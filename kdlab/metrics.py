"""Student-versus-teacher metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import is_initialized
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryCalibrationError,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from torchmetrics.regression import MeanSquaredError

from kdlab.outputs.task_format import Kind, TaskFormat, task_format

Create = Callable[[int], Metric]

_calibration: dict[str, Any] = {"n_bins": 15, "norm": "l1", "validate_args": False}
_accuracy: Create = partial(MulticlassAccuracy, average="micro", validate_args=False)

SCORES: dict[Kind, dict[str, Create]] = {
    "classes": {"accuracy": _accuracy, "ece": partial(MulticlassCalibrationError, **_calibration)},
    "soft": {"accuracy": _accuracy},
    "binary": {
        "accuracy": lambda _: BinaryAccuracy(validate_args=False),
        "ece": lambda _: BinaryCalibrationError(**_calibration),
    },
    "multilabel": {
        "accuracy": partial(MultilabelAccuracy, average="micro", validate_args=False),
        "f1": partial(MultilabelF1Score, average="macro", validate_args=False),
    },
    "regression": {"mse": lambda _: MeanSquaredError()},
    "other": {},
}
"""What is reported of one network for each kind of target: names and, from the number of classes, metrics."""


def _mean(classes: int) -> Metric:
    return MeanMetric(nan_strategy="disable").set_dtype(torch.float64)


class _Positions:
    """The rows of a batch that count: predictions of each network, and targets, as torchmetrics takes them."""

    def __init__(self, form: TaskFormat, target: Tensor, mask: Tensor | None) -> None:
        targets = form.targets(target)
        self.form, self._counted = form, form.counted(len(targets), target, mask)
        target = self._pick(targets)
        if form.kind == "soft":
            target = target.argmax(-1)
        if form.kind in ("binary", "multilabel"):
            target = (target > 0.5).long()
        self.target = target.float() if form.kind == "regression" else target

    def _pick(self, rows: Tensor) -> Tensor:
        return rows if self._counted is None else rows[self._counted]

    def rows(self, logits: Tensor) -> Tensor:
        """Return logits (N, K) in float32 at least."""
        return self._pick(self.form.rows(logits.to(torch.promote_types(logits.dtype, torch.float32))))

    def scored(self, rows: Tensor, score: str) -> Tensor:
        """Return what a score takes: predictions, (N, K) class scores, or probabilities."""
        if self.form.has_classes:
            return rows.softmax(-1) if score == "ece" else rows
        return rows if self.form.kind == "regression" else rows.sigmoid()  # torchmetrics guesses whether it has logits

    def decisions(self, rows: Tensor) -> Tensor:
        """Return the classes that a network chooses."""
        return rows.argmax(-1) if self.form.has_classes else (rows > 0).long()


class _Metrics(nn.Module):
    """Metrics by name, each created by its first update, which shows the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()

    def _update(self, name: str, create: Create, *values: Tensor) -> None:
        if name not in self._metrics:
            self._metrics[name] = create(values[0].shape[-1]).to(values[0].device)
        if len(values[0]):
            self._metrics[name].update(*values)  # type: ignore[operator]

    def _score(self, name: str, positions: _Positions, rows: Tensor, *scores: str) -> None:
        """Add a network's scores as ``NAME_SCORE``: those named, or all."""
        for score, create in SCORES[positions.form.kind].items():
            if score in scores or not scores:
                predicted, target = positions.scored(rows, score), positions.target
                if positions.form.kind == "binary":
                    predicted, target = predicted.flatten(), target.flatten()
                self._update(f"{name}_{score}", create, predicted, target)

    def _agreement(self, name: str, positions: _Positions, one: Tensor, other: Tensor) -> None:
        if positions.form.kind in ("classes", "soft", "binary", "multilabel"):
            same = positions.decisions(one) == positions.decisions(other)
            self._update(name, _mean, same.double().flatten())

    def _values(self) -> dict[str, Tensor]:
        # Without samples there is no value; but in several processes all compute, as some may have samples.
        metrics: dict[str, Any] = {n: m for n, m in self._metrics.items() if m.update_called or is_initialized()}
        return {name: metric.compute().float() for name, metric in metrics.items()}

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._metrics.values():
            metric.reset()  # type: ignore[operator]


class StudentVersusTeacher(_Metrics):
    r"""Metrics of one student and its teacher on one data set.

    ``update(student, teacher, target)`` takes logits, the teacher's or ``None``, and targets; ``compute()`` returns
    scalars by name. For class indices and class probabilities:

    - ``student_accuracy``, ``teacher_accuracy``: share of correct predictions, in [0, 1]; of the most probable class
      where targets are probabilities;
    - ``gap``: teacher accuracy minus student accuracy;
    - ``retention``: student accuracy over teacher accuracy; absent where the teacher is never right;
    - ``agreement``: share of samples for which both predict the same class, :math:`\frac1N \sum_i [\arg\max z^s_i =
      \arg\max z^t_i]`;
    - ``kl_to_teacher``: :math:`\frac1N \sum_i KL(p^t_i \| p^s_i)` at temperature 1, in nats, computed in float64;
    - ``student_ece``: expected calibration error of the student, 15 bins, L1 (Guo et al., On Calibration of Modern
      Neural Networks, ICML 2017, arXiv:1706.04599); for class indices.

    For one logit (binary) the same, with sigmoids. For several labels: accuracy and agreement over all labels,
    ``student_f1`` and ``teacher_f1`` (mean over the labels), the KL summed over the labels. For regression
    ``student_mse``, ``teacher_mse`` and ``mse_to_teacher`` alone. Every position of several a sample counts alike, but
    for those with an ignored label or a mask of 0.

    Without a teacher, or with one of other classes, only the student's own are present.

    >>> metrics = StudentVersusTeacher()
    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[60.0, 0.0], [0.0, 60.0]])
    >>> metrics.update(student, teacher, torch.tensor([0, 1]))
    >>> values = metrics.compute()
    >>> values["agreement"], values["kl_to_teacher"]
    (tensor(0.5000), tensor(0.6931))
    """

    def update(
        self,
        student: Tensor,
        teacher: Tensor | None,
        target: Tensor,
        form: TaskFormat | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Args:
            student: logits.
            teacher: logits of the same shape, or ``None``.
            target: the targets of the task.
            form: what the logits and targets mean; inferred from their shapes if not given.
            mask: 1 at the positions that count, if there are several a sample.
        """
        positions = _Positions(form or task_format(None, student, target, mask), target, mask)
        own = positions.rows(student)
        self._score("student", positions, own)
        if teacher is None or teacher.shape != student.shape:
            return
        other, kind = positions.rows(teacher), positions.form.kind
        self._score("teacher", positions, other, "accuracy", "f1", "mse")
        self._agreement("agreement", positions, own, other)
        if kind != "other":
            distance = "mse_to_teacher" if kind == "regression" else "kl_to_teacher"
            self._update(distance, _mean, positions.form.divergence(own.double(), other.double()))

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars by name."""
        values = self._values()
        if "teacher_accuracy" in values:
            values["gap"] = values["teacher_accuracy"] - values["student_accuracy"]
            if values["teacher_accuracy"]:
                values["retention"] = values["student_accuracy"] / values["teacher_accuracy"]
        return values


class Cohort(_Metrics):
    """Metrics of networks that learn together, on one data set.

    ``update(learners, others, deployed, target)`` takes the learners' logits by name, those of what is derived from
    them ("ensemble", averages), the name of the deployed one, and targets; ``compute()`` returns scalars:

    - ``NAME_accuracy`` for each of them, and ``deployed_accuracy``: share of correct predictions, in [0, 1]; for
      regression ``NAME_mse`` and ``deployed_mse``;
    - ``deployed_ece``: expected calibration error, 15 bins, L1;
    - with several learners ``ensemble_accuracy``, of the mean of their probabilities unless ``others`` has an
      "ensemble"; ``ensemble_gain``: this minus the mean of the learners' accuracies; ``agreement``: share of samples
      for which two learners predict the same class, averaged over all pairs.

    Kinds of targets, positions and arguments are those of :class:`StudentVersusTeacher`.
    """

    _learners: tuple[str, ...] = ()
    _deployed = ""

    def update(
        self,
        learners: Mapping[str, Tensor],
        others: Mapping[str, Tensor],
        deployed: str,
        target: Tensor,
        form: TaskFormat | None = None,
        mask: Tensor | None = None,
    ) -> None:
        """Add one batch."""
        self._learners, self._deployed = tuple(learners), deployed
        form = form or task_format(None, next(iter(learners.values())), target, mask)
        outputs = {**learners, **others}
        if len(learners) > 1 and "ensemble" not in outputs and form.kind != "other":
            outputs["ensemble"] = form.mean([*learners.values()])
        positions = _Positions(form, target, mask)
        rows = {name: positions.rows(logits) for name, logits in outputs.items()}
        for name, own in rows.items():
            self._score(name, positions, own, "accuracy", "mse")
        for one, other in itertools.combinations(learners, 2):
            self._agreement(f"{one} {other}", positions, rows[one], rows[other])
        self._score("deployed ", positions, rows[deployed], "ece", "f1")

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars by name."""
        computed = self._values()
        values = {name: value for name, value in computed.items() if " " not in name}
        pairs = [" ".join(pair) for pair in itertools.combinations(self._learners, 2)]
        if len(self._learners) > 1 and "ensemble_accuracy" in values:
            mean = torch.stack([values[f"{name}_accuracy"] for name in self._learners]).mean()
            values["ensemble_gain"] = values["ensemble_accuracy"] - mean
            values["agreement"] = torch.stack([computed[pair] for pair in pairs]).mean()
        for score in ("accuracy", "mse"):
            if (key := f"{self._deployed}_{score}") in values:
                values[f"deployed_{score}"] = values[key]
        for score in ("ece", "f1"):
            if (key := f"deployed _{score}") in computed:
                values[f"deployed_{score}"] = computed[key]
        return values


class TaskLoss(Metric):
    """The mean of a task loss over a whole data set, however it is cut into batches.

    ``update(value, weight, is_sum)`` takes the loss of a batch and the weight that its mean divides by, as of
    :meth:`~kdlab.outputs.task_format.TaskFormat.weight`; ``compute()`` is nan where nothing counted.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, value: Tensor, weight: Tensor, is_sum: bool = False) -> None:
        """Add one batch; its value is the mean, or the sum."""
        value, weight = value.detach().double(), weight.double()
        self.total += torch.where(weight > 0, value if is_sum else value * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean."""
        return (self.total / self.weight).float()
