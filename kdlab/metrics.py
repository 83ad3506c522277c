"""Student-versus-teacher metrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError
from torchmetrics.regression import KLDivergence

_accuracy = partial(MulticlassAccuracy, average="micro", validate_args=False)
_calibration_error = partial(MulticlassCalibrationError, n_bins=15, norm="l1", validate_args=False)


def _kl(classes: int) -> Metric:
    return KLDivergence(log_prob=True).set_dtype(torch.float64)


class _Metrics(nn.Module):
    """Metrics by name, each created by its first update, which shows the number of classes."""

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()

    def _update(self, name: str, create: Callable[[int], Metric], predicted: Tensor, target: Tensor) -> None:
        if name not in self._metrics:
            self._metrics[name] = create(predicted.shape[-1]).to(predicted.device)
        self._metrics[name].update(predicted, target)  # type: ignore[operator]

    def _values(self) -> dict[str, Tensor]:
        return {name: metric.compute().float() for name, metric in self._metrics.items()}  # type: ignore[operator]

    def reset(self) -> None:
        """Forget all batches."""
        for metric in self._metrics.values():
            metric.reset()  # type: ignore[operator]


class StudentVersusTeacher(_Metrics):
    r"""Metrics of one student and its teacher on one data set.

    ``update(student, teacher, target)`` takes (..., K) logits, the teacher's or ``None``, and (...) labels;
    ``compute()`` returns scalars by name:

    - ``student_accuracy``, ``teacher_accuracy``: share of correct predictions, in [0, 1];
    - ``gap``: teacher accuracy minus student accuracy;
    - ``retention``: student accuracy over teacher accuracy;
    - ``agreement``: share of samples for which both predict the same class, :math:`\frac1N \sum_i [\arg\max z^s_i =
      \arg\max z^t_i]`;
    - ``kl_to_teacher``: :math:`\frac1N \sum_i KL(p^t_i \| p^s_i)` at temperature 1, in nats, computed in float64;
    - ``student_ece``: expected calibration error of the student, 15 bins, L1 (Guo et al., On Calibration of Modern
      Neural Networks, ICML 2017, arXiv:1706.04599).

    Without a teacher, or with one of other classes, only the student's own are present.

    >>> metrics = StudentVersusTeacher()
    >>> student, teacher = torch.zeros(2, 2), torch.tensor([[60.0, 0.0], [0.0, 60.0]])
    >>> metrics.update(student, teacher, torch.tensor([0, 1]))
    >>> values = metrics.compute()
    >>> values["agreement"], values["kl_to_teacher"]
    (tensor(0.5000), tensor(0.6931))
    """

    def update(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> None:
        """Add one batch."""
        student, target = student.float().flatten(0, -2), target.flatten()
        self._update("student_accuracy", _accuracy, student, target)
        self._update("student_ece", _calibration_error, student.softmax(-1), target)
        if teacher is not None and (teacher := teacher.float().flatten(0, -2)).shape == student.shape:
            self._update("teacher_accuracy", _accuracy, teacher, target)
            self._update("agreement", _accuracy, student, teacher.argmax(-1))
            self._update("kl_to_teacher", _kl, teacher.double().log_softmax(-1), student.double().log_softmax(-1))

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars by name."""
        values = self._values()
        if "teacher_accuracy" in values:
            values["gap"] = values["teacher_accuracy"] - values["student_accuracy"]
            values["retention"] = values["student_accuracy"] / values["teacher_accuracy"].clamp(min=1e-12)
        return values


class Cohort(_Metrics):
    """Metrics of networks that learn together, on one data set.

    ``update(learners, others, deployed, target)`` takes the learners' (B, K) logits by name, those of what is derived
    from them ("ensemble", averages), the name of the deployed one, and (B,) labels; ``compute()`` returns scalars:

    - ``NAME_accuracy`` for each of them, and ``deployed_accuracy``: share of correct predictions, in [0, 1];
    - ``deployed_ece``: expected calibration error, 15 bins, L1;
    - with several learners ``ensemble_accuracy``, of the mean of their probabilities unless ``others`` has an
      "ensemble"; ``ensemble_gain``: this minus the mean of the learners' accuracies; ``agreement``: share of samples
      for which two learners predict the same class, averaged over all pairs.
    """

    _learners: tuple[str, ...] = ()
    _deployed = ""

    def update(
        self, learners: Mapping[str, Tensor], others: Mapping[str, Tensor], deployed: str, target: Tensor
    ) -> None:
        """Add one batch."""
        self._learners, self._deployed = tuple(learners), deployed
        outputs = {name: logits.float() for name, logits in (*learners.items(), *others.items())}
        if len(learners) > 1 and "ensemble" not in outputs:
            outputs["ensemble"] = torch.stack([outputs[name].softmax(-1) for name in learners]).mean(0).log()
        for name, logits in outputs.items():
            self._update(name, _accuracy, logits, target)
        for one, other in itertools.combinations(learners, 2):
            self._update(f"{one} {other}", _accuracy, outputs[one], outputs[other].argmax(-1))
        self._update("deployed ece", _calibration_error, outputs[deployed].softmax(-1), target)

    def compute(self) -> dict[str, Tensor]:
        """Return the scalars by name."""
        computed = self._values()
        values = {f"{name}_accuracy": value for name, value in computed.items() if " " not in name}
        if len(self._learners) > 1:
            mean = torch.stack([computed[name] for name in self._learners]).mean()
            values["ensemble_gain"] = computed["ensemble"] - mean
            pairs = itertools.combinations(self._learners, 2)
            values["agreement"] = torch.stack([computed[" ".join(pair)] for pair in pairs]).mean()
        values["deployed_accuracy"] = computed[self._deployed]
        values["deployed_ece"] = computed["deployed ece"]
        return values
