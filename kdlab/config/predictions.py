"""``predictions.csv``: what student and teacher predict for every sample."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from kdlab.compat import tree_leaves
from kdlab.files import atomic_write
from kdlab.outputs import Batch
from kdlab.outputs.task_format import TaskFormat, task_format

DIGITS = 6
"""Decimal places of probabilities and values."""
VALUES = 16
"""Values of a sample, in regression, that have columns of their own."""


class Predictions(pl.Callback):
    """Collects a row for each sample while the Trainer predicts."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._counts: dict[int, int] = {}

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the samples of a batch; ``outputs`` are the deployed logits."""
        has_labels = not isinstance(batch, Tensor)
        batch = Batch.of(batch) if has_labels else Batch(batch, torch.empty(0))
        target = batch.target.cpu() if has_labels else None
        mask = None if batch.mask is None else batch.mask.cpu()
        teach: Any = getattr(pl_module, "teacher_logits", None)
        teacher = None if teach is None or (logits := teach(batch)) is None else logits.cpu()
        logits = outputs.cpu()
        form = task_format(getattr(pl_module, "task", None), logits, target, mask)
        loaders = tree_leaves(trainer.predict_dataloaders)
        classes, files = names_of(getattr(trainer, "datamodule", None), loaders[dataloader_idx])
        start = self._counts.setdefault(dataloader_idx, 0)
        samples = range(start, start + len(logits)) if batch.index is None else batch.index.tolist()
        self._counts[dataloader_idx] += len(logits)
        in_order = batch.index is not None or isinstance(loaders[dataloader_idx].sampler, SequentialSampler)
        own = sample_rows(form, logits, teacher, target, mask, classes)
        for sample, row in zip(samples, own, strict=True):
            head: dict[str, Any] = {"loader": dataloader_idx} if len(loaders) > 1 else {}
            head["sample"] = sample
            if files and in_order and sample < len(files):
                head["file"] = files[sample]
            self.rows.append({**head, **row})


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV atomically, with the columns of all of them."""
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, [*dict.fromkeys(name for row in rows for name in row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def folder_of(config: Mapping[str, Any]) -> Path | None:
    """Return the folder of the checkpoint's run; ``None`` without one, or where a logger's version is chosen."""
    loggers = config["trainer"].get("logger")
    listed = loggers if isinstance(loggers, list) else [loggers]
    options = [one.get("init_args") or {} for one in listed if isinstance(one, dict)]
    if not config.get("ckpt_path") or any(one.get("version") is not None for one in options):
        return None
    path = Path(config["ckpt_path"])
    folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return folder if path.is_file() else None


def names_of(data: Any, loader: Any) -> tuple[Sequence[str], Sequence[str]]:
    """Return names of classes and files as far as the data has them: kdlab's, or a dataset like torchvision's."""
    dataset = getattr(loader, "dataset", None)
    classes = getattr(data, "classes", None) or getattr(dataset, "classes", None) or ()
    listed = getattr(data, "file_names", None)
    files = listed("test") if callable(listed) else [str(path) for path, _ in getattr(dataset, "samples", None) or ()]
    return list(map(str, classes)), files or ()


def sample_rows(
    form: TaskFormat,
    student: Tensor,
    teacher: Tensor | None,
    target: Tensor | None,
    mask: Tensor | None = None,
    classes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Return a row for each sample: label, prediction, teacher's prediction, whether they are right and agree.

    Class scores and binary logits have class and confidence (the probability of the class). Several labels a sample
    have the classes above 1/2, separated by spaces, and every probability. Regression has values, unless a sample has
    more than :data:`VALUES`, and the squared error. With several positions a sample, such as pixels, a row has the
    number of positions that count, and over them the accuracy, the mean confidence and the share of agreement.

    Args:
        form: what logits and targets mean.
        student: logits (B, ...).
        teacher: logits of the same shape; of another shape, or ``None``, there are no columns of the teacher.
        target: targets; ``None`` if there are none.
        mask: 1 at the positions that count.
        classes: names of the classes; may be empty.
    """
    if teacher is not None and teacher.shape != student.shape:
        teacher = None
    if not len(student):
        return []
    networks = {"": student} if teacher is None else {"": student, "teacher_": teacher}
    rows = {name: form.rows(logits.float()) for name, logits in networks.items()}
    labels = None if target is None else form.targets(target)
    positions = len(rows[""]) // len(student)
    if form.kind in ("regression", "other"):
        return _value_rows(form, rows, labels, len(student))
    chosen = {name: own.argmax(-1) if form.has_classes else (own > 0).long() for name, own in rows.items()}
    probabilities = {name: own.softmax(-1) if form.has_classes else own.sigmoid() for name, own in rows.items()}
    if form.kind == "soft" and labels is not None:
        labels = labels.argmax(-1)
    if form.kind in ("binary", "multilabel") and labels is not None:
        labels = (labels > 0.5).long()
    if form.kind == "multilabel" and positions == 1:
        return _multilabel_rows(chosen, probabilities, labels, classes)
    counted = None if target is None else form.counted(len(rows[""]), target, mask)
    if form.kind == "binary":
        chosen = {name: own[:, 0] for name, own in chosen.items()}
        labels = None if labels is None else labels[:, 0]
    if form.kind == "multilabel":  # and several positions: every label of one counts alike
        chosen = {name: own.flatten() for name, own in chosen.items()}
        labels, positions = None if labels is None else labels.flatten(), chosen[""].numel() // len(student)
        counted = None if counted is None else counted.repeat_interleave(len(chosen[""]) // len(counted))
    confidence = {name: _confidence(form, own) for name, own in probabilities.items()}
    if positions > 1:
        return _position_rows(chosen, confidence, labels, counted, len(student))
    return [
        _class_row(
            {name: int(own[at]) for name, own in chosen.items()},
            {name: float(own[at]) for name, own in confidence.items()},
            None if labels is None or (counted is not None and not counted[at]) else int(labels[at]),
            classes,
        )
        for at in range(len(student))
    ]


def _confidence(form: TaskFormat, probabilities: Tensor) -> Tensor:
    """Return the probability of the chosen class at each position."""
    if form.has_classes:
        return probabilities.max(-1).values
    return torch.maximum(probabilities, 1 - probabilities).flatten()


def _class_row(
    chosen: Mapping[str, int], confidence: Mapping[str, float], label: int | None, classes: Sequence[str]
) -> dict[str, Any]:
    def named(name: str, number: int | None) -> dict[str, Any]:
        known = {f"{name}_name": "" if number is None else classes[number]} if classes else {}
        return {name: "" if number is None else number, **known}

    row = named("label", label)
    for network, number in chosen.items():
        row |= {**named(f"{network}class", number), f"{network}confidence": round(confidence[network], DIGITS)}
    row["correct"] = "" if label is None else int(chosen[""] == label)
    if "teacher_" in chosen:
        row["teacher_correct"] = "" if label is None else int(chosen["teacher_"] == label)
    return row


def _multilabel_rows(
    chosen: Mapping[str, Tensor], probabilities: Mapping[str, Tensor], labels: Tensor | None, classes: Sequence[str]
) -> list[dict[str, Any]]:
    def listed(values: Tensor) -> str:
        return " ".join(str(number) for number in values.nonzero().flatten().tolist())

    rows = []
    for at in range(len(chosen[""])):
        row: dict[str, Any] = {"labels": "" if labels is None else listed(labels[at])}
        for network, own in chosen.items():
            row[f"{network}classes"] = listed(own[at])
        if labels is not None:
            row["correct"] = int(torch.equal(chosen[""][at], labels[at]))
        for network, values in probabilities.items():
            for number, share in enumerate(values[at].tolist()):
                row[f"{network}probability_{classes[number] if classes else number}"] = round(share, DIGITS)
        rows.append(row)
    return rows


def _position_rows(
    chosen: Mapping[str, Tensor],
    confidence: Mapping[str, Tensor],
    labels: Tensor | None,
    counted: Tensor | None,
    samples: int,
) -> list[dict[str, Any]]:
    counts = torch.ones(chosen[""].shape, dtype=torch.bool) if counted is None else counted
    rows = []
    parts = counts.reshape(samples, -1)
    for at, here in enumerate(parts):

        def mean(values: Tensor, at: int = at, here: Tensor = here) -> float | str:
            own = values.reshape(samples, -1)[at][here].double()
            return round(float(own.mean()), DIGITS) if len(own) else ""

        row: dict[str, Any] = {"positions": int(here.sum())}
        for network, own in chosen.items():
            row |= {} if labels is None else {f"{network}accuracy": mean(own == labels)}
            if confidence[network].numel() == own.numel():
                row[f"{network}confidence"] = mean(confidence[network])
        if "teacher_" in chosen:
            row["agreement"] = mean(chosen[""] == chosen["teacher_"])
        rows.append(row)
    return rows


def _value_rows(
    form: TaskFormat, networks: Mapping[str, Tensor], targets: Tensor | None, samples: int
) -> list[dict[str, Any]]:
    values = {f"{name}output": own.reshape(samples, -1) for name, own in networks.items()}
    if targets is not None and form.kind == "regression" and targets.numel() == values["output"].numel():
        values = {"target": targets.float().reshape(samples, -1), **values}
    count = values["output"].shape[1]
    rows = []
    for at in range(samples):
        row: dict[str, Any] = {}
        for name, own in values.items() if count <= VALUES else ():
            for number, value in enumerate(own[at].tolist()):
                row[name if count == 1 else f"{name}_{number}"] = round(value, DIGITS)
        for name in ("output", "teacher_output") if "target" in values else ():
            if name in values:
                error = (values[name][at] - values["target"][at]).double().square().mean()
                row[f"{name.removesuffix('output')}squared_error"] = round(float(error), DIGITS)
        rows.append(row)
    return rows
