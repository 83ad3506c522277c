"""ONNX files, run by onnxruntime."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.export import torch_program

METADATA = "kdlab"
INPUT, OUTPUT = "input", "logits"


def write(network: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the network as one ONNX file with a free batch size, from (B, ...) ``input`` to ``logits``.

    Raises:
        InputError: an operator has no form in ONNX, or :func:`~kdlab.export.torch_program.capture` fails.
    """
    program = torch_program.capture(network, example)
    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecations inside the exporter
            exported = torch.onnx.export(program, dynamo=True, verbose=False, optimize=True, **names)
    except Exception as error:
        raise torch_program.refusal(error, network, "cannot be written as ONNX", program) from error
    assert exported is not None
    exported.model.metadata_props[METADATA] = json.dumps(metadata)
    exported.save(path, external_data=False)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file as a function of a batch, run on the CPU with PyTorch's number of threads."""
    session = _session(path)

    def run(inputs: Tensor) -> Tensor:
        (logits,) = session.run(None, {INPUT: inputs.numpy()})
        return torch.from_numpy(logits)

    return run


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a file's metadata."""
    metadata: dict[str, Any] = json.loads(_session(path).get_modelmeta().custom_metadata_map.get(METADATA, "{}"))
    return metadata


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
