"""Numbers behind the figures: student against teacher, over classes, confidences and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Rows = list[dict[str, Any]]
"""A table, one mapping a line; it is what a figure draws and what its CSV file holds."""

BINS = 15


def linear_cka(one: Tensor, other: Tensor) -> float:
    r"""Return the linear centered kernel alignment of two sets of features of the same samples, in [0, 1].

    .. math:: CKA(X, Y) = \frac{\|Y^T X\|_F^2}{\|X^T X\|_F \, \|Y^T Y\|_F}

    with centered columns, computed by Gram matrices (N, N) in float64; nan where the features of one are constant.

    Paper: S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of Neural Network Representations Revisited", ICML
    2019, arXiv 1905.00414.

    Args:
        one: (N, ...) features, flattened.
        other: (N, ...) features, flattened.
    """

    def gram(features: Tensor) -> Tensor:
        features = features.flatten(1).double()
        features = features - features.mean(0)
        return features @ features.T

    k, l = gram(one), gram(other)  # noqa: E741  # the paper's letters
    return float((k * l).sum() / ((k * k).sum() * (l * l).sum()).sqrt())


def cka_rows(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Rows:
    """Return the CKA of each layer of the student with each of the teacher; features are (N, ...) by layer."""
    return [
        {"student_layer": one, "teacher_layer": other, "cka": linear_cka(own, taught)}
        for one, own in student.items()
        for other, taught in teacher.items()
    ]


def reliability_rows(networks: Mapping[str, Tensor], labels: Tensor) -> Rows:
    """Return confidence, accuracy and number of samples in each of 15 equal bins of confidence, of each network.

    The expected calibration error is the mean of the differences, weighted by the numbers: column ``ece``. Empty bins
    are left out.

    Args:
        networks: logits (N, K) by name.
        labels: (N,) class indices.
    """
    rows: Rows = []
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)
    for name, logits in networks.items():
        confidence, classes = logits.double().softmax(1).max(1)
        right, places = (classes == labels).double(), torch.bucketize(confidence, edges[1:-1])
        parts = []
        for number in range(BINS):
            if count := int((chosen := places == number).sum()):
                means = float(confidence[chosen].mean()), float(right[chosen].mean())
                parts.append((number, count, *means))
        ece = sum(count * abs(sure - share) for _, count, sure, share in parts) / len(labels)
        for number, count, sure, share in parts:
            low, high = float(edges[number]), float(edges[number + 1])
            head = {"network": name, "low": low, "high": high, "samples": count}
            rows.append({**head, "confidence": sure, "accuracy": share, "ece": ece})
    return rows


def agreement_rows(student: Tensor, teacher: Tensor, labels: Tensor, classes: Sequence[str]) -> Rows:
    """Return for each class the share of its samples on which both agree, and both accuracies.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        labels: (N,) class indices.
        classes: K names.
    """
    own, taught, rows = student.argmax(1), teacher.argmax(1), list[dict[str, Any]]()
    for number, name in enumerate(classes):
        chosen = labels == number
        if count := int(chosen.sum()):
            shares = {
                "agreement": own == taught,
                "student_accuracy": own == labels,
                "teacher_accuracy": taught == labels,
            }
            means = {key: float(values[chosen].double().mean()) for key, values in shares.items()}
            rows.append({"class": name, "samples": count, **means})
    return rows


def confusion_rows(student: Tensor, teacher: Tensor, classes: Sequence[str]) -> Rows:
    """Return the number of samples for each pair of the teacher's and the student's class, (K, K) in order."""
    size = len(classes)
    counts = torch.bincount(teacher.argmax(1) * size + student.argmax(1), minlength=size * size).tolist()
    return [
        {"teacher_class": classes[place // size], "student_class": classes[place % size], "samples": count}
        for place, count in enumerate(counts)
    ]


def correlation_rows(student: Tensor, teacher: Tensor, classes: Sequence[str]) -> Rows:
    r"""Return the correlation of the logits of each pair of classes over the samples: student, teacher and difference.

    The difference of the student's correlation matrix from the teacher's is the figure of Y. Tian, D. Krishnan, P.
    Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699, figure 2.

    Args:
        student: logits (N, K).
        teacher: logits (N, K).
        classes: K names.
    """
    own, taught = (torch.corrcoef(logits.double().T) for logits in (student, teacher))
    return [
        {"class": one, "other_class": other, "student": a, "teacher": b, "difference": a - b}
        for one, firsts, seconds in zip(classes, own.tolist(), taught.tolist(), strict=True)
        for other, a, b in zip(classes, firsts, seconds, strict=True)
    ]
