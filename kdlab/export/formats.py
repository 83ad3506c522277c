"""The formats of exported files, and one way through all of them: write, load, check, then keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.errors import ExportMismatchError, InputError, check_word
from kdlab.export import executorch_program, onnx_int8, onnx_model, openvino_model, torch_program
from kdlab.export.deployed import Deployed, about
from kdlab.export.flops import flops_of
from kdlab.export.parity import Checked, Run, Sample, check


class Format(NamedTuple):
    """A format: how a file is written and loaded.

    Attributes:
        suffix: of the file.
        write: writes (network, example batch of 2, path, metadata).
        load: returns the file in its runtime.
        read_metadata: returns the file's metadata.
        write_int8: writes (network, example, path, metadata, calibration inputs); ``None`` where there is no int8.
        extra: kdlab's extra with the packages that it needs.
        packages: their import names.
        further: suffixes of files beside the file.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Path, Mapping[str, Any]], None]
    load: Callable[[Path], Run]
    read_metadata: Callable[[Path], dict[str, Any]]
    write_int8: Callable[[nn.Module, Tensor, Path, Mapping[str, Any], Tensor], None] | None = None
    extra: str = ""
    packages: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


def _format(suffix: str, module: Any, write_int8: Any = None, *further: Any) -> Format:
    return Format(suffix, module.write, module.load, module.read_metadata, write_int8, *further)


ONNX = ("onnx", "onnxscript", "onnxruntime")
FORMATS = {
    "torch": _format(".pt2", torch_program),
    "onnx": _format(".onnx", onnx_model, onnx_int8.write, "export", ONNX),
    "executorch": _format(".pte", executorch_program, executorch_program.write, "edge", ("executorch", "torchao")),
    "openvino": _format(
        ".xml", openvino_model, openvino_model.write, "export,openvino", (*ONNX, "openvino"), (".bin",)
    ),
}
"""All formats that are made from a graph, by name."""


def export_checked(
    network: nn.Module,
    path: Path,
    samples: Iterable[Sample],
    *,
    format: str,
    example: Tensor,
    metadata: Mapping[str, Any] | None = None,
    calibration: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    points: float | None = None,
) -> Checked:
    """Write a network to a file and check it through its runtime; the file has its name when it has passed.

    Args:
        network: the network; it is set to eval mode.
        path: the file to write, which must not exist.
        samples: the validation set.
        format: a name of :data:`FORMATS`.
        example: inputs of the file, (2, ...) or more.
        metadata: as :func:`~kdlab.export.deployed.about` returns it.
        calibration: inputs of the file, of the training set; with them the file is int8.
        mean: with ``std``: the file takes uint8 images and normalizes them.
        std: as ``mean``.
        points: see :func:`~kdlab.export.parity.check`.

    Raises:
        InputError: packages are missing, the file exists, the network cannot be exported; nothing is written.
        ExportMismatchError: the file differs from the network; it is at ``NAME.failed.SUFFIX``.
    """
    form = requirements(format, int8=calibration is not None)
    if path.exists():
        raise InputError(f"{str(path)!r} exists already: move it, or name another folder with --out.")
    written, failed = (path.with_name(f"{path.stem}.{word}{path.suffix}") for word in ("unchecked", "failed"))
    deployed, example = Deployed(network, mean, std), example[:2].clone()  # a file with a view has all of its memory
    if len(example) < 2:
        raise InputError("The example needs two rows: a batch of one would fix the batch size.")
    text = {**(metadata or about(network)), "format": format, "int8": calibration is not None}
    text["parameters"], text["flops"] = sum(value.numel() for value in network.parameters()), _flops(deployed, example)
    text["preprocessing"] = {"shape": [*example.shape[1:]], **text.get("preprocessing", {}), "dtype": dtype_of(example)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if calibration is None:
            form.write(deployed, example, written, text)
        else:
            assert form.write_int8 is not None
            form.write_int8(deployed, example, written, text, calibration)
        checked = check(form.load(written), Deployed(network), samples, int8=calibration is not None, points=points)
        _rename(form, written, failed if checked.complaint else path)
    finally:
        for suffix in (form.suffix, *form.further):
            written.with_suffix(suffix).unlink(missing_ok=True)
    if checked.complaint:
        raise ExportMismatchError(
            f"{path.name} is not the network: {checked.complaint}. It is kept as {str(failed)!r}."
        )
    return checked


def requirements(format: str, *, int8: bool = False) -> Format:
    """Return a format by name.

    Raises:
        InputError: there is no such format, it has no int8, or its packages are not installed.
    """
    check_word("format", format, (*FORMATS,))
    form = FORMATS[format]
    if int8 and form.write_int8 is None:
        names = ", ".join(repr(name) for name, other in FORMATS.items() if other.write_int8)
        raise InputError(f"The format {format!r} has no int8: use {names}.")
    if missing := [package for package in form.packages if find_spec(package) is None]:
        packages = ", ".join(missing)
        raise InputError(f"The format {format!r} needs {packages}: pip install 'kdlab[{form.extra}]'.")
    return form


def to_onnx(
    module: nn.Module,
    path: str | Path,
    inputs: Tensor,
    labels: Tensor | None = None,
    *,
    calibration: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Checked:
    """Write any module of one tensor as an ONNX file with a free batch size, and check it in onnxruntime.

    Args:
        module: the network; it is set to eval mode.
        path: the file to write.
        inputs: (N, ...) real inputs, N at least 2; outputs are compared on them.
        labels: (N,) their labels, so that accuracy is compared too.
        calibration: (M, ...) inputs of the training set; with them the file is int8.
        metadata: of the file; by default versions and a hash of the weights.

    Raises:
        InputError: as :func:`export_checked`.
        ExportMismatchError: likewise.
    """
    parts = torch.split(inputs, 256)
    targets = [None] * len(parts) if labels is None else torch.split(labels, 256)
    samples = [Sample(part, part, target) for part, target in zip(parts, targets, strict=True)]
    return export_checked(
        module, Path(path), samples, format="onnx", example=inputs, metadata=metadata, calibration=calibration
    )


def size_of(path: Path, format: str) -> int:
    """Return the bytes of an exported file, with those beside it."""
    form = FORMATS[format]
    return sum(path.with_suffix(suffix).stat().st_size for suffix in (form.suffix, *form.further))


def dtype_of(inputs: Tensor) -> str:
    """Return the name of a dtype: uint8, float32."""
    return str(inputs.dtype).removeprefix("torch.")


def _flops(network: nn.Module, example: Tensor) -> int | None:
    """Return the operations of one input; ``None`` where they cannot be counted."""
    try:
        return flops_of(network, example)
    except Exception:  # a network that cannot run at all is refused by the capture, with its line
        return None


def _rename(form: Format, source: Path, target: Path) -> None:
    for suffix in (form.suffix, *form.further):
        source.with_suffix(suffix).replace(target.with_suffix(suffix))
