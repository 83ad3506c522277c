"""The numbers behind the figures, against slow references."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from kdlab.figures.comparison import (
    agreement_rows,
    cka_rows,
    confusion_rows,
    correlation_rows,
    linear_cka,
    reliability_rows,
)


def logits(seed: int, samples: int = 40, classes: int = 3) -> torch.Tensor:
    return 2 * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def slow_cka(one: list[list[float]], other: list[list[float]]) -> float:
    """The definition by covariances, number by number: ||Y^T X||^2 / (||X^T X|| ||Y^T Y||)."""

    def centered(rows: list[list[float]]) -> list[list[float]]:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        return [[value - mean for value, mean in zip(row, means, strict=True)] for row in rows]

    def squares(a: list[list[float]], b: list[list[float]]) -> float:
        return sum(
            sum(x[i] * y[j] for x, y in zip(a, b, strict=True)) ** 2 for i in range(len(a[0])) for j in range(len(b[0]))
        )

    x, y = centered(one), centered(other)
    return squares(y, x) / math.sqrt(squares(x, x) * squares(y, y))


def test_cka_is_its_definition() -> None:
    one, other = logits(0, 12, 4).double(), logits(1, 12, 7).double()
    wanted = slow_cka(one.tolist(), other.tolist())
    assert 0.05 < wanted < 0.95
    assert linear_cka(one, other.reshape(12, 7, 1)) == pytest.approx(wanted, rel=1e-10)
    turned = torch.linalg.qr(logits(2, 4, 4).double()).Q
    assert linear_cka(one, 3 * one @ turned + 1) == pytest.approx(1.0)  # rotations, scale and shift change nothing
    (row,) = cka_rows({"layer1": one}, {"layer2": other})
    assert row == {"student_layer": "layer1", "teacher_layer": "layer2", "cka": linear_cka(one, other)}


def test_reliability_is_that_of_torchmetrics() -> None:
    networks, labels = {"student": logits(0), "teacher": logits(1)}, torch.arange(40) % 3
    rows = reliability_rows(networks, labels)
    for name, own in networks.items():
        parts = [row for row in rows if row["network"] == name]
        assert sum(row["samples"] for row in parts) == 40
        wanted = multiclass_calibration_error(own.softmax(1), labels, 3, n_bins=15, norm="l1")
        assert parts[0]["ece"] == pytest.approx(float(wanted), abs=1e-6)
        right = (own.argmax(1) == labels).double().mean()
        assert sum(row["samples"] * row["accuracy"] for row in parts) / 40 == pytest.approx(float(right))
        assert all(row["low"] <= row["confidence"] <= row["high"] for row in parts)


def test_agreement_and_confusion_are_counted() -> None:
    student = torch.eye(3)[[0, 0, 1, 2, 2]]
    teacher = torch.eye(3)[[0, 1, 1, 2, 0]]
    labels = torch.tensor([0, 0, 1, 1, 1])
    cat, dog = agreement_rows(student, teacher, labels, ["cat", "dog", "owl"])
    assert cat == {"class": "cat", "samples": 2, "agreement": 0.5, "student_accuracy": 1.0, "teacher_accuracy": 0.5}
    assert dog["samples"] == 3
    assert [dog[key] for key in ("agreement", "student_accuracy", "teacher_accuracy")] == pytest.approx(
        [2 / 3, 1 / 3, 1 / 3]
    )
    counts = [row["samples"] for row in confusion_rows(student, teacher, ["cat", "dog", "owl"])]
    assert counts == [1, 0, 1, 1, 1, 0, 0, 0, 1]  # rows: the teacher's class


def test_correlations_are_those_of_the_logits() -> None:
    student, teacher = logits(0).double(), logits(1).double()
    row = correlation_rows(student, teacher, ["a", "b", "c"])[1]

    def slow(x: list[float], y: list[float]) -> float:
        a, b = sum(x) / len(x), sum(y) / len(y)
        products = sum((p - a) * (q - b) for p, q in zip(x, y, strict=True))
        return products / math.sqrt(sum((p - a) ** 2 for p in x) * sum((q - b) ** 2 for q in y))

    wanted = [slow(own[:, 0].tolist(), own[:, 1].tolist()) for own in (student, teacher)]
    assert (row["class"], row["other_class"]) == ("a", "b")
    assert [row["student"], row["teacher"]] == pytest.approx(wanted)
    assert row["difference"] == pytest.approx(wanted[0] - wanted[1])
