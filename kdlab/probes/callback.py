"""Probes of a student's features during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.members.frozen import Frozen
from kdlab.members.member import Member
from kdlab.modules.base import DistillationModule
from kdlab.modules.source_checks import match_normalization
from kdlab.outputs import Batch, Outputs
from kdlab.probes.extraction import Features, features_of, on_device
from kdlab.probes.likeness import linear_cka, mapped_cosine, neighbor_agreement
from kdlab.probes.scores import knn_accuracy, linear_probe_accuracy


class ProbeFeatures(pl.Callback):
    """Logs what a student's embedding is worth, at the end of every few epochs.

    With labels (of the run's data, or of ``data``): ``probe/knn`` and ``probe/linear``, the accuracies of
    :func:`~kdlab.probes.knn_accuracy` and :func:`~kdlab.probes.linear_probe_accuracy`, trained on the training samples
    and tested on the validation samples, unaugmented. Without labels: ``probe/TEACHER_cka``, ``probe/TEACHER_cosine``
    and ``probe/TEACHER_neighbors`` on the validation samples for each frozen teacher that is a network.

    In YAML ``trainer: {callbacks: [{class_path: kdlab.probes.ProbeFeatures, init_args: {every_n_epochs: 10}}]}``.

    Args:
        data: labeled data to probe on, such as another data set than the student learns from; its ``batch_size`` and
            augmentation play no part. ``None`` for the run's own.
        every_n_epochs: epochs between probes; the last epoch is always probed.
        neighbors: of kNN and of the neighbor agreement.
        linear: whether to train a linear probe, which takes longest.
        samples: at most so many training and validation samples.

    Raises:
        InputError: a number below 1; in ``fit``: the data is no data module of kdlab.
    """

    def __init__(
        self,
        data: pl.LightningDataModule | None = None,
        every_n_epochs: int = 1,
        neighbors: int = 20,
        linear: bool = True,
        samples: int = 10_000,
    ) -> None:
        for name, number in (("every_n_epochs", every_n_epochs), ("neighbors", neighbors), ("samples", samples)):
            if number < 1:
                raise InputError(f"{name} of ProbeFeatures must be at least 1, not {number}.")
        self.data, self.every_n_epochs, self.neighbors, self.linear = data, every_n_epochs, neighbors, linear
        self.samples = samples

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Read the data."""
        if self.data is not None and stage == "fit":
            self.data.prepare_data()
            self.data.setup("fit")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe and log."""
        epoch = trainer.current_epoch + 1
        if (epoch % self.every_n_epochs and epoch != trainer.max_epochs) or not isinstance(
            pl_module, DistillationModule
        ):
            return
        # All processes compute the same on all samples.
        trained_on: Any = trainer.datamodule  # type: ignore[attr-defined]
        data: Any = self.data or trained_on
        match_normalization(pl_module, data)
        try:
            with torch.random.fork_rng(devices=[]):
                values = self.values(pl_module, data, next(iter(pl_module.learners.values())))
        finally:
            match_normalization(pl_module, trained_on)
        pl_module.log_dict({f"probe/{name}": value for name, value in values.items()}, sync_dist=False)

    def values(self, module: DistillationModule, data: Any, student: nn.Module) -> dict[str, float]:
        """Return the values of a student by name, with the teachers of a module."""
        splits = [split for split in ("train", "val") if split in data._sets]
        features = {name: features_of(student, self.batches(module, data, name)) for name in splits}
        values: dict[str, float] = {}
        if len(features) == 2 and all(_labeled(part) for part in features.values()):
            values["knn"] = knn_accuracy(features["train"], features["val"], self.neighbors)
            if self.linear:
                values["linear"] = linear_probe_accuracy(features["train"], features["val"])
        held_out = splits[-1]
        for member in module.plan.members.values():
            if isinstance(teacher := getattr(member, "teacher", member), Frozen):
                teacher_side = features_of(_observer(module, teacher), self.batches(module, data, held_out)).embedding
                student_side = features[held_out].embedding
                values[f"{teacher.name}_cka"] = linear_cka(student_side, teacher_side)
                values[f"{teacher.name}_cosine"] = mapped_cosine(student_side, teacher_side)
                values[f"{teacher.name}_neighbors"] = neighbor_agreement(student_side, teacher_side, self.neighbors)
        return values

    def batches(
        self, module: DistillationModule, data: Any, split: str, change: Callable[[Batch], Batch] | None = None
    ) -> Iterator[Batch]:
        """Iterate over samples as they look in evaluation, on the module's device; ``change`` sees raw images."""
        seen = 0
        for raw in data._eval_loader(split):
            moved = on_device(Batch.of(raw), module.device)
            batch = data.prepare(change(moved) if change else moved)
            left = self.samples - seen
            if left <= 0:
                return
            seen += len(batch.target)
            yield batch if len(batch.target) <= left else _first(batch, left)


def _first(batch: Batch, count: int) -> Batch:
    return batch._replace(inputs=batch.inputs[:count], target=batch.target[:count], index=None)


def _observer(module: DistillationModule, teacher: Member) -> Any:
    def observe(batch: Batch) -> Outputs:
        return module.observe(batch._replace(progress=None), [teacher])[teacher.name]

    return observe


def _labeled(features: Features) -> bool:
    labels: Tensor = features.labels
    return bool(labels.ge(0).all()) and not labels.is_floating_point() and labels.dim() == 1
