"""A trained run: its network with the weights of a checkpoint, its data and its teacher."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from kdlab.config.class_paths import check_config
from kdlab.config.lightning_cli import QUIET, KdlabCLI, build
from kdlab.config.messages import quietly
from kdlab.errors import InputError
from kdlab.export.adapters import merge_adapters
from kdlab.export.deployed import about
from kdlab.export.formats import export_checked, requirements
from kdlab.export.parity import Checked, Sample
from kdlab.export.student import loaded, run_of, student_in, student_of
from kdlab.models.fake_quantized import without_fake_quantization
from kdlab.models.weights import save_tensors
from kdlab.modules.base import DistillationModule
from kdlab.modules.source_checks import match_normalization
from kdlab.outputs import Batch
from kdlab.outputs.task_format import task_format


class TrainedRun(NamedTuple):
    """What a run's folder holds, built.

    Attributes:
        network: the student, or what a co-training deploys, in eval mode on the CPU.
        module: the Lightning module, for the teacher.
        data: the data, set up.
        config: the run's config with every default.
        identity: run, checkpoint, epoch and step, as text for a file's metadata.
    """

    network: nn.Module
    module: DistillationModule
    data: pl.LightningDataModule
    config: dict[str, Any]
    identity: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes, as far as the data has them."""
        return list(map(str, getattr(self.data, "classes", None) or ()))

    @property
    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Return mean and standard deviation of the channels, in units of the full range; ``None`` if unknown."""
        mean, std = (getattr(self.data, name, None) for name in ("mean", "std"))
        return None if mean is None or std is None else (list(mean), list(std))

    def preprocessing(self, in_graph: bool) -> dict[str, Any]:
        """Return what a file's inputs are, for its metadata."""
        if self.normalization is None:
            return {}
        mean, std = self.normalization
        return {"scale": 1 / 255, "mean": mean, "std": std, "in_graph": in_graph}

    def export(
        self,
        path: Path,
        format: str,
        *,
        int8: bool = False,
        calibrate: int = 512,
        with_preprocessing: bool = False,
        points: float | None = None,
        samples: int = 0,
    ) -> Checked:
        """Write the network to a file of a format, checked on the validation set; see ``kdlab export``.

        Raises:
            InputError: the data do not normalize, or as :func:`~kdlab.export.formats.export_checked`.
            ExportMismatchError: the file differs from the network.
        """
        if with_preprocessing and self.normalization is None:
            raise InputError("--with-preprocessing needs data with mean and std, such as kdlab's image data.")
        mean, std = (self.normalization or (None, None)) if with_preprocessing else (None, None)
        quantization = {"calibration_samples": calibrate, "seed": getattr(self.data, "seed", None)} if int8 else None
        preprocessing, identity = self.preprocessing(with_preprocessing), self.identity
        return export_checked(
            self.network,
            path,
            self.samples(with_preprocessing, samples),
            format=format,
            example=next(self.samples(with_preprocessing, 2)).file_inputs,
            metadata=about(self.network, preprocessing, self.classes, identity, quantization=quantization),
            calibration=self.calibration(calibrate, with_preprocessing) if int8 else None,
            mean=mean,
            std=std,
            points=points,
        )

    def samples(self, raw: bool, most: int = 0) -> Iterator[Sample]:
        """Yield the validation set in batches, with the teacher's logits.

        Args:
            raw: what the file takes is what the loader gives (uint8 images), else what the network takes.
            most: number of samples, 0 for all.
        """
        form = None
        for inputs, batch in _batches(self.data, self.data.val_dataloader(), raw, most):
            with torch.no_grad():
                teacher = self._teacher(batch)
            if form is None:
                with torch.no_grad():
                    form = task_format(self.module.task, self.network(batch.inputs), batch.target, batch.mask)
            yield Sample(inputs, batch.inputs, batch.target, teacher, form)

    def calibration(self, count: int, raw: bool) -> Tensor:
        """Return ``count`` inputs of the training set without augmentation, in the data's order by its seed.

        Raises:
            InputError: the training set has fewer.
        """
        parts = [inputs for inputs, _ in _batches(self.data, self.data.train_dataloader(), raw, count)]
        inputs = torch.cat(parts)
        if len(inputs) < count:
            raise InputError(f"--calibrate is {count}, and the training set has {len(inputs)} samples.")
        return inputs

    def _teacher(self, batch: Batch) -> Tensor | None:
        teach = getattr(self.module, "teacher_logits", None)
        return None if teach is None else teach(batch)


def file_name(format: str, int8: bool) -> str:
    """Return the name of an exported file.

    Raises:
        InputError: as :func:`~kdlab.export.formats.requirements`.
    """
    return f"student{'.int8' if int8 else ''}{requirements(format, int8=int8).suffix}"


class _PartsOnly(KdlabCLI):
    """Builds all parts, checks that the checkpoint fits, and evaluates nothing."""

    def validate(self, **options: Any) -> None:
        """Leave it at that."""


def trained_run(run: Path, options: Sequence[str] = (), learner: str | None = None) -> TrainedRun:
    """Return a run with the weights of its newest checkpoint, or of a checkpoint in it.

    Args:
        run: the run's folder, or a checkpoint.
        options: of ``kdlab fit``, such as ``--data.root=DATA``.
        learner: name of a co-training's network; ``None`` is the deployed one.

    Raises:
        InputError: there is no config, or what it names does not fit.
    """
    checkpoint, folder = run_of(run)
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{str(folder)!r} has no config.yaml, which names network and data: call kdlab.export.to_onnx(network, "
            "path, images, labels) from Python."
        )
    arguments = [f"--config={config}", f"--ckpt_path={checkpoint}", "--trainer.accelerator=cpu", *options, *QUIET]
    with quietly():
        cli = build(["validate", *arguments], save_config=False, kind=_PartsOnly)
    if not isinstance(cli.model, DistillationModule):
        raise InputError(f"kdlab exports runs of a kdlab module, not of {type(cli.model).__name__}.")
    if cli.datamodule is None:
        raise InputError(f"{str(config)!r} names no data: the exported file is checked on its validation set.")
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    match_normalization(cli.model, cli.datamodule)
    network = _network(student_in(cli.resolved, learner), student_of(checkpoint, learner), folder)
    identity = {"run": folder.name, "checkpoint": checkpoint.name, "seed": cli.resolved.get("seed_everything")}
    return TrainedRun(network, cli.model.eval(), cli.datamodule, cli.resolved, identity)


def _network(config: dict[str, Any] | None, tensors: dict[str, Tensor], folder: Path) -> nn.Module:
    if config is None:
        raise InputError(f"The config in {str(folder)!r} names no network with these weights: name one with --learner.")
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "student.safetensors"
        save_tensors(tensors, weights)
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--network", type=nn.Module)
        parsed = parser.parse_object({"network": loaded(config, weights)})
        check_config(parsed.as_dict())
        network: nn.Module = parser.instantiate(parsed).network
    return merge_adapters(without_fake_quantization(network)).eval()


def _batches(
    data: pl.LightningDataModule, loader: Iterable[Any], raw: bool, most: int
) -> Iterator[tuple[Tensor, Batch]]:
    """Yield what a file takes with the batch that the network takes, of at most ``most`` samples."""
    count = 0
    for raw_batch in loader:
        unprepared = Batch.of(raw_batch)
        batch = Batch.of(data.on_after_batch_transfer(raw_batch, 0))
        if not isinstance(batch.inputs, Tensor):
            names = ", ".join(map(repr, batch.inputs))
            raise InputError(
                f"The network takes a mapping ({names}): kdlab exports networks of one tensor. Wrap it in a module "
                "whose forward takes one tensor and builds the mapping."
            )
        rows = len(batch.inputs) if not most else min(most - count, len(batch.inputs))
        if raw and unprepared.inputs.dtype != torch.uint8:
            raise InputError("--with-preprocessing takes data whose loaders give uint8 images, such as kdlab's.")
        file_inputs = unprepared.inputs if raw else batch.inputs
        yield file_inputs[:rows], batch._replace(inputs=batch.inputs[:rows], target=batch.target[:rows], index=None)
        count += rows
        if most and count >= most:
            return
