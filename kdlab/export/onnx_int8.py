"""Static int8 quantization of ONNX files with onnxruntime."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.export import onnx_model


def write(network: nn.Module, example: Tensor, path: Path, metadata: Any, calibration: Tensor) -> None:
    """Write an int8 ONNX file: QDQ format, weights per output channel, ranges of activations from calibration inputs.

    Args:
        network: the network.
        example: (2, ...).
        path: the file.
        metadata: as of :func:`kdlab.export.onnx_model.write`.
        calibration: (N, ...) what the file takes, of the training set.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(torch.split(calibration, 32))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {onnx_model.INPUT: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        whole, ready, small = (Path(folder) / f"{name}.onnx" for name in ("whole", "ready", "small"))
        onnx_model.write(network, example, whole, metadata)
        quant_pre_process(os.fspath(whole), os.fspath(ready))
        quantize_static(
            os.fspath(ready),
            os.fspath(small),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        _finish(small, path, onnx_model.read_metadata(whole))


def _finish(quantized: Path, path: Path, metadata: dict[str, Any]) -> None:
    """Write the file with metadata, and without the texts of PyTorch's exporter, which are larger than the weights."""
    import json

    import onnx

    model = onnx.load(quantized)
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {onnx_model.METADATA: json.dumps(metadata)})
    onnx.save(model, path)


class _quiet:  # noqa: N801
    """Silence the root logger, in which onnxruntime advises preprocessing that was done."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
