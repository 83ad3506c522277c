"""OpenVINO models (.xml and .bin), made from ONNX and run in float32."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.export import onnx_int8, onnx_model

METADATA = "kdlab"


def write(
    network: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], calibration: Tensor | None = None
) -> None:
    """Write the model beside its weights, ``NAME.xml`` and ``NAME.bin``; with calibration inputs in int8.

    Raises:
        InputError: as :func:`kdlab.export.onnx_model.write`.
    """
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        if calibration is None:
            onnx_model.write(network, example, source, metadata)
        else:
            onnx_int8.write(network, example, source, metadata, calibration)
        model = openvino.convert_model(os.fspath(source))
        model.set_rt_info(json.dumps(metadata), [METADATA])
        openvino.save_model(model, os.fspath(path), compress_to_fp16=False)
    path.write_bytes(re.sub(rb">\s+<", b"><", path.read_bytes()))  # a fifth of the graph's text is indentation


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a model as a function of a batch, on the CPU in float32: the default of some processors is bfloat16."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", options)

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(compiled({0: inputs.numpy()})[0].copy())

    return run


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a model's metadata."""
    import openvino

    metadata: dict[str, Any] = json.loads(
        openvino.Core().read_model(os.fspath(path)).get_rt_info([METADATA]).astype(str)
    )
    return metadata
