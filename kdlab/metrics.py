"""How a student stands against its teacher, as torchmetrics."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError


class Agreement(Metric):
    r"""The share of samples on which student and teacher name the same class: :math:`\frac1N \sum_i [\arg\max z^s_i =
    \arg\max z^t_i]`.

    ``update(student, teacher)`` takes two (B, K) logits; ``compute()`` gives a scalar in [0, 1].

    >>> agreement = Agreement()
    >>> agreement.update(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
    >>> agreement.compute()
    tensor(0.5000)
    """

    higher_is_better = True
    full_state_update = False
    same: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("same", torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Count one batch of (B, K) logits."""
        self.same = self.same + (student.argmax(-1) == teacher.argmax(-1)).sum()
        self.seen = self.seen + student.shape[:-1].numel()

    def compute(self) -> Tensor:
        """The share so far."""
        return self.same / self.seen


class TeacherKL(Metric):
    r"""How far the student's class probabilities are from the teacher's, in nats: :math:`\frac1N \sum_i KL(p^t_i \|
    p^s_i)` at temperature 1.

    ``update(student, teacher)`` takes two (B, K) logits; ``compute()`` gives a scalar of at least 0.

    >>> kl = TeacherKL()
    >>> kl.update(torch.zeros(1, 2), torch.tensor([[0.0, 60.0]]))
    >>> kl.compute()
    tensor(0.6931)
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Add one batch of (B, K) logits."""
        log_s, log_t = F.log_softmax(student.float(), -1), F.log_softmax(teacher.float(), -1)
        self.total = self.total + F.kl_div(log_s, log_t, reduction="sum", log_target=True).double()
        self.seen = self.seen + student.shape[:-1].numel()

    def compute(self) -> Tensor:
        """The mean so far."""
        return (self.total / self.seen).float()


class StudentVersusTeacher(nn.Module):
    """Everything a run reports about one student and its teacher on one data set.

    ``update(student, teacher, target)`` takes (B, K) logits, the teacher's or ``None``, and (B,) labels; ``compute()``
    gives scalars by name:

    - ``student_accuracy``, ``teacher_accuracy``: share of right answers, in [0, 1];
    - ``gap``: teacher accuracy minus student accuracy;
    - ``retention``: student accuracy over teacher accuracy;
    - ``agreement``: share of samples on which both name the same class (:class:`Agreement`);
    - ``kl_to_teacher``: mean KL from teacher to student, in nats (:class:`TeacherKL`);
    - ``student_ece``: expected calibration error of the student, 15 bins, L1 (Guo et al., On Calibration of Modern
      Neural Networks, ICML 2017, arXiv:1706.04599).

    Without a teacher, or with one that knows other classes, only the student's own are there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()

    def _metric(self, name: str, logits: Tensor) -> Metric:
        if name not in self._metrics:
            classes = logits.shape[-1]
            make = {
                "student_accuracy": lambda: MulticlassAccuracy(classes, average="micro", validate_args=False),
                "teacher_accuracy": lambda: MulticlassAccuracy(classes, average="micro", validate_args=False),
                "student_ece": lambda: MulticlassCalibrationError(classes, n_bins=15, norm="l1", validate_args=False),
                "agreement": Agreement,
                "kl_to_teacher": TeacherKL,
            }
            self._metrics[name] = make[name]().to(logits.device)
        metric = self._metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def update(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> None:
        """Add one batch."""
        student = student.float()
        self._metric("student_accuracy", student).update(student, target)
        self._metric("student_ece", student).update(student.softmax(-1), target)
        if teacher is not None and teacher.shape == student.shape:
            self._metric("teacher_accuracy", student).update(teacher.float(), target)
            self._metric("agreement", student).update(student, teacher)
            self._metric("kl_to_teacher", student).update(student, teacher)

    def compute(self) -> dict[str, Tensor]:
        """The scalars by name."""
        values = {name: metric.compute() for name, metric in self._metrics.items() if isinstance(metric, Metric)}
        if "teacher_accuracy" in values:
            values["gap"] = values["teacher_accuracy"] - values["student_accuracy"]
            values["retention"] = values["student_accuracy"] / values["teacher_accuracy"].clamp(min=1e-12)
        return values

    def reset(self) -> None:
        """Forget everything seen."""
        for metric in self._metrics.values():
            assert isinstance(metric, Metric)
            metric.reset()


class Cohort(nn.Module):
    """Everything a run reports about networks that learn together, on one data set.

    ``update(learners, others, deployed, target)`` takes the learners' (B, K) logits by name, those of what is made of
    them ("ensemble", averages), the name of the one that is deployed, and (B,) labels; ``compute()`` gives scalars:

    - ``NAME_accuracy`` for each of them, and ``deployed_accuracy``: share of right answers, in [0, 1];
    - ``deployed_ece``: expected calibration error, 15 bins, L1;
    - with several learners ``ensemble_accuracy``, of the mean of their probabilities unless an ensemble is given;
      ``ensemble_gain``: this minus the mean of the learners' accuracies; ``agreement``: share of samples on which two
      learners name the same class, in the mean over all pairs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._metrics = nn.ModuleDict()
        self._learners: tuple[str, ...] = ()
        self._deployed = ""

    def update(
        self, learners: Mapping[str, Tensor], others: Mapping[str, Tensor], deployed: str, target: Tensor
    ) -> None:
        """Add one batch."""
        self._learners, self._deployed = tuple(learners), deployed
        everyone = {**learners, **others}
        if len(learners) > 1 and "ensemble" not in everyone:
            everyone["ensemble"] = torch.stack([each.float().softmax(-1) for each in learners.values()]).mean(0).log()
        classes = everyone[deployed].shape[-1]
        for name, logits in everyone.items():
            accuracy = self._metric(name, lambda: MulticlassAccuracy(classes, average="micro", validate_args=False))
            accuracy.to(logits.device).update(logits.float(), target)
        for pair in itertools.combinations(learners, 2):
            agreement = self._metric(" ".join(pair), Agreement).to(target.device)
            agreement.update(*(learners[name] for name in pair))
        ece = self._metric(
            "deployed ece", lambda: MulticlassCalibrationError(classes, n_bins=15, norm="l1", validate_args=False)
        )
        ece.to(target.device).update(everyone[deployed].float().softmax(-1), target)

    def _metric(self, name: str, make: Callable[[], Metric]) -> Metric:
        if name not in self._metrics:
            self._metrics[name] = make()
        metric = self._metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def compute(self) -> dict[str, Tensor]:
        """The scalars by name."""
        found = {name: each.compute() for name, each in self._metrics.items() if isinstance(each, Metric)}
        values = {f"{name}_accuracy": value for name, value in found.items() if " " not in name}
        if len(self._learners) > 1:
            values["ensemble_gain"] = found["ensemble"] - torch.stack([found[name] for name in self._learners]).mean()
            pairs = [" ".join(pair) for pair in itertools.combinations(self._learners, 2)]
            values["agreement"] = torch.stack([found[pair] for pair in pairs]).mean()
        values["deployed_accuracy"] = found[self._deployed]
        values["deployed_ece"] = found["deployed ece"]
        return values

    def reset(self) -> None:
        """Forget everything seen."""
        for each in self._metrics.values():
            assert isinstance(each, Metric)
            each.reset()
