"""The check of every exported file: its outputs and scores, through its own runtime, against the network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.metrics import StudentVersusTeacher
from kdlab.outputs.task_format import TaskFormat

Run = Callable[[Tensor], Tensor]
"""An exported file in its runtime: from a batch of its inputs to logits, both on the CPU."""

SIZES = (1, 7, 32)
"""Batch sizes whose outputs are compared: one, an odd one, and the usual one."""
DIFFERENCE = 1e-3
"""Largest difference of an output of a float file, in parts of the largest logit; runtimes round by about 1e-6."""
POINTS = {False: 0.1, True: 1.0}
"""Percentage points that the score of a float file (False) and of an int8 file (True) may lose."""


class Sample(NamedTuple):
    """One batch of the validation set.

    Attributes:
        file_inputs: what the file takes.
        inputs: the same for the network.
        target: the labels; ``None`` to compare outputs alone.
        teacher: the teacher's logits, or ``None``.
        form: what logits and labels mean; inferred if ``None``.
    """

    file_inputs: Tensor
    inputs: Tensor
    target: Tensor | None = None
    teacher: Tensor | None = None
    form: TaskFormat | None = None


class Checked(NamedTuple):
    """What the check of a file shows.

    Attributes:
        differences: by batch size the largest difference of a logit, in parts of the network's largest logit.
        scores: of the file on the validation set, in [0, 1]: ``accuracy`` (or ``mse``), ``network_accuracy``,
            ``agreement`` with the network, and with a teacher ``teacher_accuracy``, ``teacher_agreement``,
            ``retention``, ``kl_to_teacher``.
        complaint: what is outside the bounds; empty if nothing is.
    """

    differences: dict[int, float]
    scores: dict[str, float]
    complaint: str

    def lines(self) -> Iterator[str]:
        """Yield what is printed of a file that has passed."""
        worst = ", ".join(f"{value:.1e} at batch {size}" for size, value in self.differences.items())
        yield f"outputs differ by {worst}, in parts of the largest logit"
        names = {
            "network_accuracy": "network",
            "teacher_accuracy": "teacher",
            "agreement": "agreement with the network",
        }
        shown = [
            f"{names.get(name, name.replace('_', ' '))} {100 * value:.2f} %"
            for name, value in self.scores.items()
            if name in ("accuracy", *names, "teacher_agreement", "retention")
        ]
        if shown:
            yield ", ".join(shown)


def check(
    run: Run, network: nn.Module, samples: Iterable[Sample], *, int8: bool = False, points: float | None = None
) -> Checked:
    """Compare a file with the network that it was made from.

    Args:
        run: the file in its runtime.
        network: the network in eval mode.
        samples: the validation set.
        int8: whether the file is quantized: its outputs differ, and only its score is bounded.
        points: how many percentage points of accuracy the file may lose (of a regression: by how many percent its error
            may grow); ``None`` for :data:`POINTS`.

    Raises:
        InputError: there are no samples.
    """
    points = POINTS[int8] if points is None else points
    to_network, to_teacher, first, rows = StudentVersusTeacher(), StudentVersusTeacher(), list[Sample](), 0
    for sample in samples:
        if rows < sum(SIZES):
            first.append(sample)
            rows += len(sample.file_inputs)
        logits, expected = run(sample.file_inputs), logits_of_network(network, sample.inputs)
        if logits.shape != expected.shape:
            shapes = f"outputs of shape {tuple(logits.shape)}, where the network's are {tuple(expected.shape)}"
            return Checked({}, {}, shapes)
        if sample.target is not None:
            to_network.update(logits, expected, sample.target, sample.form)
            to_teacher.update(logits, sample.teacher, sample.target, sample.form)
    if not first:
        raise InputError("There are no validation samples to check the file on.")
    file_inputs, inputs = (torch.cat([getattr(sample, name) for sample in first]) for name in ("file_inputs", "inputs"))
    differences = {}
    for size, part in zip(SIZES, _parts(file_inputs, inputs), strict=True):
        expected = logits_of_network(network, part[1])
        difference = (run(part[0]) - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
        differences[size] = float(difference)
    scores = _scores(to_network, to_teacher)
    complaints = [*_differing(differences, int8), *_worse(scores, points)]
    return Checked(differences, scores, "; ".join(complaints))


def scores_of(runs: Sequence[Run], samples: Iterable[Sample]) -> list[dict[str, float]]:
    """Return the scores of files or networks on the validation set, and against the teacher where there is one.

    They are ``accuracy``, ``ece`` (or ``mse``, ``f1``), ``retention``, ``agreement``, ``kl_to_teacher``. The samples
    are gone through once, so the teacher computes each once.
    """
    metrics = [StudentVersusTeacher() for _ in runs]
    for sample in samples:
        assert sample.target is not None
        for run, scores in zip(runs, metrics, strict=True):
            scores.update(run(sample.file_inputs), sample.teacher, sample.target, sample.form)
    computed = [scores.compute() for scores in metrics]
    return [{name.removeprefix("student_"): float(value) for name, value in row.items()} for row in computed]


def logits_of_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's logits, computed in eager mode."""
    with torch.no_grad():
        logits: Tensor = network(inputs)
    return logits


def _parts(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield consecutive parts of :data:`SIZES` rows; few rows are repeated."""
    times = math.ceil(sum(SIZES) / len(tensors[0]))
    repeated = [torch.cat([tensor] * times) for tensor in tensors]
    start = 0
    for size in SIZES:
        yield [tensor[start : start + size] for tensor in repeated]
        start += size


def _scores(to_network: StudentVersusTeacher, to_teacher: StudentVersusTeacher) -> dict[str, float]:
    metrics_by_name = {name: float(value) for name, value in to_network.compute().items()}
    taught = {name: float(value) for name, value in to_teacher.compute().items()}
    scores = {}
    for score in ("accuracy", "mse", "ece", "f1"):
        if f"student_{score}" in metrics_by_name:
            scores[score] = metrics_by_name[f"student_{score}"]
        if f"teacher_{score}" in metrics_by_name:
            scores[f"network_{score}"] = metrics_by_name[f"teacher_{score}"]
    scores |= {name: metrics_by_name[name] for name in ("agreement",) if name in metrics_by_name}
    scores |= {name: taught[name] for name in ("teacher_accuracy", "teacher_mse", "retention") if name in taught}
    if "agreement" in taught:
        scores["teacher_agreement"] = taught["agreement"]
    return scores | {name: taught[name] for name in ("kl_to_teacher", "mse_to_teacher") if name in taught}


def _differing(differences: dict[int, float], int8: bool) -> Iterator[str]:
    bound = math.inf if int8 else DIFFERENCE
    wrong = [size for size, value in differences.items() if not value <= bound]  # nan is wrong too
    if wrong:
        sizes = ", ".join(map(str, wrong))
        largest = max(differences[size] for size in wrong)
        yield f"outputs differ at batch {sizes} by up to {largest:.3g} of the largest logit (bound {bound:g})"


def _worse(scores: dict[str, float], points: float) -> Iterator[str]:
    for score, sign in (("accuracy", 1), ("mse", -1)):
        if score in scores and f"network_{score}" in scores:
            file, network = scores[score], scores[f"network_{score}"]
            lost = 100 * (network - file) if sign > 0 else 100 * (file / max(network, 1e-12) - 1)
            if not lost <= points:
                shown = [f"{100 * value:.2f} %" if sign > 0 else f"{value:.4g}" for value in (file, network)]
                yield f"{score} is {shown[0]} where the network's is {shown[1]} (bound {points:g})"
