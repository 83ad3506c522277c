"""Student-versus-teacher metrics against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdlab.metrics import Agreement, StudentVersusTeacher, TeacherKL


def logits(seed: int, size: int = 23, classes: int = 4) -> Tensor:
    return 3 * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, float]:
    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        parts = [math.exp(value - top) for value in row]
        return [part / sum(parts) for part in parts]

    size = len(target)
    ours = [softmax(row) for row in student.double().tolist()]
    theirs = [softmax(row) for row in teacher.double().tolist()]
    said, taught = [row.index(max(row)) for row in ours], [row.index(max(row)) for row in theirs]
    right = [int(a == b) for a, b in zip(said, target.tolist(), strict=True)]
    known = [int(a == b) for a, b in zip(taught, target.tolist(), strict=True)]
    bins: dict[int, list[tuple[float, int]]] = {}
    for row, hit in zip(ours, right, strict=True):
        bins.setdefault(min(int(max(row) * 15), 14), []).append((max(row), hit))
    ece = sum(abs(sum(c for c, _ in each) - sum(hit for _, hit in each)) for each in bins.values()) / size
    kl = sum(sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in zip(theirs, ours, strict=True))
    student_accuracy, teacher_accuracy = sum(right) / size, sum(known) / size
    return {
        "student_accuracy": student_accuracy,
        "teacher_accuracy": teacher_accuracy,
        "gap": teacher_accuracy - student_accuracy,
        "retention": student_accuracy / teacher_accuracy,
        "agreement": sum(a == b for a, b in zip(said, taught, strict=True)) / size,
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
        found = {name: float(value) for name, value in metrics.compute().items()}
        assert found == pytest.approx(reference(student, teacher, target), abs=1e-5)
        metrics.reset()


def test_without_a_teacher_of_the_same_classes_only_the_student_counts() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), None, torch.arange(23) % 4)
    metrics.update(logits(0), logits(1, classes=7), torch.arange(23) % 4)
    assert set(metrics.compute()) == {"student_accuracy", "student_ece"}


def test_metrics_are_neither_parameters_nor_in_the_state_dict() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1), torch.arange(23) % 4)
    assert not metrics.state_dict()
    assert not list(metrics.parameters())


def test_token_logits_and_half_precision() -> None:
    student, teacher = logits(0, 24).view(6, 4, 4), logits(1, 24).view(6, 4, 4)
    agreement, kl = Agreement(), TeacherKL()
    agreement.update(student, teacher)
    kl.update(student.bfloat16(), teacher.bfloat16())
    flat = reference(student.flatten(0, 1), teacher.flatten(0, 1), torch.zeros(24).long())
    assert float(agreement.compute()) == pytest.approx(flat["agreement"])
    assert float(kl.compute()) == pytest.approx(flat["kl_to_teacher"], rel=0.05)
    assert float(kl.compute()) >= 0


def test_kl_is_zero_for_equal_networks() -> None:
    kl = TeacherKL()
    kl.update(logits(0), logits(0))
    assert float(kl.compute()) == 0
