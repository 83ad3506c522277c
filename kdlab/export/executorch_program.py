"""ExecuTorch programs (.pte) for XNNPACK, in float32 or int8, run by ExecuTorch's own runtime."""

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
LARGEST = 64
"""Largest batch: ExecuTorch plans the memory of the largest one ahead."""


def write(
    network: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], calibration: Tensor | None = None
) -> None:
    """Write the program; with calibration inputs (N, ...) of the training set in int8.

    Raises:
        InputError: an operator is not supported, or :func:`~kdlab.export.torch_program.capture` fails.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # Lowering narrows the range of batch sizes to those that take the kernels of the example's: the largest covers all.
    example = example[torch.arange(LARGEST) % len(example)]
    program = torch_program.capture(network, example, LARGEST)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecations inside ExecuTorch
        try:
            if calibration is not None:
                program = torch_program.capture(_quantized(program.module(), calibration), example, LARGEST)
            methods = {METADATA: json.dumps(metadata)}
            lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=methods)
            path.write_bytes(lowered.to_executorch().buffer)
        except Exception as error:
            raise torch_program.refusal(error, network, "cannot be lowered to ExecuTorch", program) from error


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file as a function of a batch, which it takes in parts of at most :data:`LARGEST`."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(os.fspath(path))
    method = program.load_method("forward")

    def run(inputs: Tensor) -> Tensor:
        return torch.cat([method.execute([part.contiguous()])[0].clone() for part in torch.split(inputs, LARGEST)])

    return run


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a file's metadata, which it keeps as a method without arguments."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(os.fspath(path)).load_method(METADATA)
    metadata: dict[str, Any] = json.loads(method.execute([])[0])
    return metadata


def _quantized(graph: nn.Module, calibration: Tensor) -> nn.Module:
    """Return the graph in int8, weights per output channel, with the ranges of the calibration inputs."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for batch in torch.split(calibration, 32):
            prepared(batch)
    converted: nn.Module = convert_pt2e(prepared)
    return converted
