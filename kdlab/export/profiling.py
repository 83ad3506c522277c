"""What a network or an exported file costs and how well it does: one row each, measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.export.deployed import Deployed
from kdlab.export.flops import flops_of
from kdlab.export.formats import FORMATS, requirements, size_of
from kdlab.export.parity import Run, Sample, logits_of_network, scores_of
from kdlab.export.timing import latencies, peak_memory

COLUMNS = (
    *("name", "runtime", "parameters", "flops", "bytes"),
    *("p50_ms_1", "p95_ms_1", "p50_ms_32", "p95_ms_32", "peak_memory"),
    *("accuracy", "retention", "agreement", "kl_to_teacher", "ece"),
)
"""Columns of a profile, of which those that could not be measured are ``None``."""
BATCHES = (1, 32)
PACKAGES = {"torch": "torch", "onnx": "onnxruntime", "executorch": "executorch", "openvino": "openvino"}


class Subject(NamedTuple):
    """What is profiled.

    Attributes:
        name: the name of its row.
        runtime: what runs it, with version.
        load: loads it anew.
        shape: of one input.
        raw: whether it takes uint8 images.
        bytes: size of its file, or of its tensors.
        parameters: ``None`` where a file does not say.
        flops: of one input; ``None`` where they could not be counted.
        normalization: mean and standard deviation of the images that it takes; ``None`` where it does not say.
    """

    name: str
    runtime: str
    load: Callable[[], Run]
    shape: tuple[int, ...]
    raw: bool = False
    bytes: int = 0
    parameters: int | None = None
    flops: int | None = None
    normalization: tuple[list[float], list[float]] | None = None

    def example(self, size: int) -> Tensor:
        """Return a batch of random inputs; speed depends on shapes alone."""
        generator = torch.Generator().manual_seed(0)
        if self.raw:
            return torch.randint(0, 256, (size, *self.shape), dtype=torch.uint8, generator=generator)
        return torch.randn(size, *self.shape, generator=generator)


def network_subject(name: str, network: nn.Module, shape: Sequence[int]) -> Subject:
    """Return any network as a subject; it is run by PyTorch in eager mode.

    Raises:
        InputError: it does not take inputs of this shape.
    """
    deployed = Deployed(network)
    try:
        logits_of_network(deployed, torch.zeros(2, *shape))
    except InputError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise InputError(f"{name} does not take inputs of shape {tuple(shape)} ({text}): give --input.") from error
    flops = None
    with suppress(InputError):
        flops = flops_of(deployed, torch.zeros(1, *shape))
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    count = sum(parameter.numel() for parameter in network.parameters())
    load = partial(partial, logits_of_network, deployed)
    return Subject(name, f"torch {torch.__version__.partition('+')[0]}", load, (*shape,), False, size, count, flops)


def file_subject(path: Path, shape: Sequence[int] | None = None) -> Subject:
    """Return an exported file as a subject; its metadata say what it takes.

    Raises:
        InputError: its suffix is none of a format's, packages are missing, or its metadata have no shape.
    """
    format = next((name for name, form in FORMATS.items() if form.suffix == path.suffix), None)
    if format is None:
        suffixes = ", ".join(form.suffix for form in FORMATS.values())
        raise InputError(f"{str(path)!r} is no exported file ({suffixes}), no run and no class path of a network.")
    form = requirements(format)
    metadata = form.read_metadata(path)
    preprocessing = metadata.get("preprocessing") or {}
    shape = preprocessing.get("shape") or shape
    normalizes_itself = preprocessing.get("in_graph") or "mean" not in preprocessing
    if not shape:
        raise InputError(f"{str(path)!r} does not say the shape of its inputs: give it with --input.")
    return Subject(
        path.name,
        f"{PACKAGES[format]} {version(PACKAGES[format]).partition('+')[0]}",
        partial(form.load, path),
        tuple(shape),
        preprocessing.get("dtype") == "uint8",
        size_of(path, format),
        metadata.get("parameters"),
        metadata.get("flops"),
        None if normalizes_itself else (preprocessing["mean"], preprocessing["std"]),
    )


def profile(
    subjects: Sequence[Subject], samples: Callable[[bool], Iterable[Sample]] | None = None, rounds: int = 7
) -> list[dict[str, Any]]:
    """Return one row of :data:`COLUMNS` for each subject.

    Args:
        subjects: networks and files.
        samples: returns the validation set, for files of uint8 images if it is called with True; ``None`` without
            data, and then there are no scores.
        rounds: of :func:`~kdlab.export.timing.latencies`, in which all subjects take turns.
    """
    memory = [peak_memory(subject.load, subject.example(32)) for subject in subjects]
    runs = [subject.load() for subject in subjects]
    times = {
        size: latencies(
            {str(at): partial(run, subject.example(size)) for at, (run, subject) in enumerate(zip(runs, subjects))},  # noqa: B905
            rounds,
        )
        for size in BATCHES
    }
    scores: dict[int, dict[str, float]] = {}
    if samples is not None:
        for raw in dict.fromkeys(subject.raw for subject in subjects):
            places = [at for at, subject in enumerate(subjects) if subject.raw == raw]
            scores |= zip(places, scores_of([runs[at] for at in places], samples(raw)), strict=True)
    rows = []
    for at, subject in enumerate(subjects):
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {name: getattr(subject, name) for name in ("name", "runtime", "parameters", "flops", "bytes")}
        row["peak_memory"] = memory[at]
        for size in BATCHES:
            row[f"p50_ms_{size}"], row[f"p95_ms_{size}"] = times[size][str(at)]
        row |= {name: scores[at][name] for name in COLUMNS if name in scores.get(at, ())}
        rows.append(row)
    return rows
