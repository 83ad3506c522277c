"""Student-versus-teacher metrics against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdlab.metrics import Cohort, StudentVersusTeacher


def logits(seed: int, size: int = 23, classes: int = 4) -> Tensor:
    return 3 * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, float]:
    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        parts = [math.exp(value - top) for value in row]
        return [part / sum(parts) for part in parts]

    size = len(target)
    p_student = [softmax(row) for row in student.double().tolist()]
    p_teacher = [softmax(row) for row in teacher.double().tolist()]
    classes = [row.index(max(row)) for row in p_student]
    teacher_classes = [row.index(max(row)) for row in p_teacher]
    right = [int(a == b) for a, b in zip(classes, target.tolist(), strict=True)]
    teacher_right = [int(a == b) for a, b in zip(teacher_classes, target.tolist(), strict=True)]
    bins: dict[int, list[tuple[float, int]]] = {}
    for row, hit in zip(p_student, right, strict=True):
        bins.setdefault(min(int(max(row) * 15), 14), []).append((max(row), hit))
    ece = sum(abs(sum(c for c, _ in each) - sum(hit for _, hit in each)) for each in bins.values()) / size
    kl = sum(
        sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in zip(p_teacher, p_student, strict=True)
    )
    student_accuracy, teacher_accuracy = sum(right) / size, sum(teacher_right) / size
    return {
        "student_accuracy": student_accuracy,
        "teacher_accuracy": teacher_accuracy,
        "gap": teacher_accuracy - student_accuracy,
        "retention": student_accuracy / teacher_accuracy,
        "agreement": sum(a == b for a, b in zip(classes, teacher_classes, strict=True)) / size,
        "kl_to_teacher": kl / size,
        "student_ece": ece,
    }


@pytest.mark.parametrize("batch_size", [23, 5])
def test_against_plain_loops(batch_size: int) -> None:
    student, teacher, target = logits(0), logits(1), torch.arange(23) % 4
    metrics = StudentVersusTeacher()
    for _ in range(2):  # the second time after a reset
        for rows in torch.arange(23).split(batch_size):
            metrics.update(student[rows], teacher[rows], target[rows])
        values = {name: float(value) for name, value in metrics.compute().items()}
        assert values == pytest.approx(reference(student, teacher, target), abs=1e-6)
        metrics.reset()


def test_a_teacher_of_other_classes_is_left_out() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), None, torch.arange(23) % 4)
    metrics.update(logits(0), logits(1, classes=7), torch.arange(23) % 4)
    assert set(metrics.compute()) == {"student_accuracy", "student_ece"}


def test_metrics_are_neither_parameters_nor_in_the_state_dict() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1), torch.arange(23) % 4)
    assert not metrics.state_dict()
    assert not list(metrics.parameters())


def test_token_logits() -> None:
    student, teacher, target = logits(0, 24), logits(1, 24), torch.arange(24) % 4
    metrics = StudentVersusTeacher()
    metrics.update(student.view(6, 4, 4), teacher.view(6, 4, 4), target.view(6, 4))
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx(reference(student, teacher, target), abs=1e-6)


def test_half_precision_is_computed_in_full_precision() -> None:
    student, teacher, target = logits(0).bfloat16(), logits(1).bfloat16(), torch.arange(23) % 4
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx(reference(student.float(), teacher.float(), target), abs=1e-6)


def test_kl_is_zero_for_equal_networks() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(0), torch.arange(23) % 4)
    assert float(metrics.compute()["kl_to_teacher"]) == 0


@pytest.mark.full
def test_kl_of_many_small_batches_keeps_its_precision() -> None:
    student, teacher = logits(0, 20000), logits(1, 20000)
    metrics = StudentVersusTeacher()
    for rows in torch.arange(20000).split(10):
        metrics.update(student[rows], teacher[rows], torch.zeros(len(rows)).long())
    s, t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    expected = float((t.exp() * (t - s)).sum(-1).mean())
    assert float(metrics.compute()["kl_to_teacher"]) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("ensemble", [False, True])
def test_cohort_against_plain_loops(ensemble: bool) -> None:
    learners = {name: logits(seed) for seed, name in enumerate("abc")}
    target = torch.arange(23) % 4
    others = {"ensemble": logits(3)} if ensemble else {}
    cohort = Cohort()
    for rows in torch.arange(23).split(7):
        part = {name: value[rows] for name, value in learners.items()}
        cohort.update(part, {name: value[rows] for name, value in others.items()}, "b", target[rows])
    pairs = [reference(learners[one], learners[other], target)["agreement"] for one, other in ("ab", "ac", "bc")]
    alone = {name: reference(value, value, target) for name, value in learners.items()}
    mean = torch.stack([value.double().softmax(-1) for value in learners.values()]).mean(0).log()
    together = reference(others.get("ensemble", mean), mean, target)["student_accuracy"]
    accuracies = {name: values["student_accuracy"] for name, values in alone.items()}
    assert {name: float(value) for name, value in cohort.compute().items()} == pytest.approx(
        {
            **{f"{name}_accuracy": value for name, value in accuracies.items()},
            "ensemble_accuracy": together,
            "ensemble_gain": together - sum(accuracies.values()) / 3,
            "agreement": sum(pairs) / 3,
            "deployed_accuracy": accuracies["b"],
            "deployed_ece": alone["b"]["student_ece"],
        },
        abs=1e-6,
    )
