"""``torch.export`` programs (.pt2): the graph that every other format is made from."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, causes

METADATA = "kdlab.json"
LIBRARIES = ("/torch/", "/torchao/", "/onnxscript/", "/onnx_ir/", "/executorch/", "/kdlab/export/", "/kdlab/outputs/")


def capture(network: nn.Module, example: Tensor, largest: int | None = None) -> torch.export.ExportedProgram:
    """Return the graph of a network, which is in eval mode, with a free batch size.

    Args:
        network: takes one tensor and returns one.
        example: (2, ...): a batch of one would fix the batch size.
        largest: largest batch that the program takes; ``None`` for any.

    Raises:
        InputError: with the line of the network that no graph can have: control flow that depends on values, a batch
            size that is a constant, an operator that is not supported.
    """
    if not isinstance(example, Tensor):
        names = ", ".join(map(repr, example)) if isinstance(example, Mapping) else type(example).__name__
        raise InputError(
            f"The network takes a mapping ({names}): kdlab exports networks of one tensor. Wrap it in a module whose "
            "forward takes one tensor and builds the mapping."
        )
    batch = torch.export.Dim("batch", min=1, max=largest)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=({0: batch},))
    except Exception as error:
        raise refusal(error, network, "has no graph that torch.export can capture") from error


def write(network: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the program, with its metadata."""
    torch.export.save(capture(network, example), path, extra_files={METADATA: json.dumps(metadata)})


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a file's program as a function of a batch."""
    program = torch.export.load(path).module()

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = program(inputs)
        return logits

    return run


def read_metadata(path: Path) -> dict[str, Any]:
    """Return a file's metadata."""
    extra = {METADATA: ""}
    torch.export.load(path, extra_files=extra)
    metadata: dict[str, Any] = json.loads(extra[METADATA] or "{}")
    return metadata


def refusal(
    error: Exception, network: nn.Module, what: str, program: torch.export.ExportedProgram | None = None
) -> InputError:
    """Return the error of a network that cannot be exported, with the operator and the line that are in the way.

    Args:
        error: what the exporter raised.
        network: the network.
        what: what is wrong with it.
        program: the graph, whose nodes know their lines; ``None`` if there is none yet.
    """
    inner: nn.Module = getattr(network, "network", network)
    text = "\n".join(str(cause) for cause in causes(error))
    operator = re.search(r"OpOverload\(op='([\w.]+)'|\b((?:aten|torchvision|custom|prims)(?:::|\.)\w+(?:\.\w+)?)", text)
    parts = [f"{type(inner).__name__} {what}"]
    if operator:
        parts.append(f"operator {operator[1] or operator[2]}")
    if program is not None and operator:
        name = (operator[1] or operator[2]).replace("::", ".")
        nodes = [node for node in program.graph.nodes if str(node.target).startswith(f"{name}.")]
        text += "\n".join(str(node.meta.get("stack_trace", "")) for node in nodes[:1])
    if line := _line(error, text):
        parts.append(line)
    shown = str([*causes(error)][-1] if operator else error)
    first = next((row.strip() for row in shown.splitlines() if row.strip()), type(error).__name__)
    return InputError(f"{', '.join(parts)}: {first.rstrip('.')}. Nothing was written.")


def _line(error: Exception, text: str) -> str:
    """Return file and line of the network's own code in an error's traceback or, failing that, in its text."""
    frames = [frame for cause in causes(error) for frame in traceback.extract_tb(cause.__traceback__)]
    places = [(frame.filename, frame.lineno) for frame in frames]
    places += [(file, int(line)) for file, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    lines = [(file, line) for file, line in places if not any(part in file for part in (*LIBRARIES, "<"))]
    lines = [place for place in lines if "/kdlab/" not in place[0] or "/kdlab/models/" in place[0]]
    return f"{lines[-1][0]}, line {lines[-1][1]}" if lines else ""
