"""A network as it is exported: one tensor in, its main logits out, and what a file says about itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

import kdlab
from kdlab.data.augment import normalize
from kdlab.outputs import logits_of


class Deployed(nn.Module):
    """A network in eval mode from one tensor (B, ...) to its main logits, whatever form its own output has.

    Args:
        network: the network; it is set to eval mode.
        mean: of each channel, in units of the full range, to normalize uint8 images (B, C, H, W) in the graph; ``None``
            where inputs are normalized already.
        std: of each channel, in the same units.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self, network: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        scale, shift = (None, None) if mean is None or std is None else _constants(mean, std)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        if self.scale is not None and self.shift is not None:
            inputs = inputs.to(torch.float32) * self.scale - self.shift
        logits: Tensor = logits_of(self.network(inputs))
        return logits


def _constants(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift, (C, 1, 1), with which the data normalizes: two images, all 0 and all 255, show them."""
    black = torch.zeros(1, len(mean), 1, 1, dtype=torch.uint8)
    low, high = normalize(black, mean, std)[0], normalize(black + 255, mean, std)[0]
    return (high - low) / 255, -low


def about(
    network: nn.Module,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] = (),
    run: Mapping[str, Any] | None = None,
    **further: Any,
) -> dict[str, Any]:
    """Return what goes into the metadata of an exported file: preprocessing, class names, versions, the run's identity.

    ``weights`` is the SHA-256 of all tensors of the network, so that a file can be compared with a checkpoint.
    """
    return {
        "preprocessing": dict(preprocessing or {}),
        "classes": list(classes),
        "run": dict(run or {}),
        "weights": _hash(network),
        "versions": {"kdlab": kdlab.__version__, **_versions("torch", "onnx", "onnxruntime", "executorch", "openvino")},
        **further,
    }


def _hash(network: nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _versions(*packages: str) -> dict[str, str]:
    installed = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed
