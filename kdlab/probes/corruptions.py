"""Corrupted images, by the transforms of torchvision, for the robustness of a student."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdlab.errors import check_word

CORRUPTIONS = ("blur", "noise", "jpeg", "contrast", "brightness", "grayscale")
"""Names of the corruptions; each has a severity from 1 to 5."""


def corrupted(images: Tensor, name: str, severity: int = 3, seed: int = 0) -> Tensor:
    """Return corrupted images; the same ones for the same seed.

    The severities are kdlab's own and not those of ImageNet-C or CIFAR-100-C, so numbers are not comparable with
    theirs.

    Args:
        images: (B, 3, H, W) uint8.
        name: one of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        seed: of noise.

    Returns:
        (B, 3, H, W) uint8.

    Raises:
        InputError: an unknown name, or a severity out of range.
    """
    check_word("corruption", name, CORRUPTIONS)
    check_word("severity", str(severity), tuple("12345"))
    from torchvision.transforms.v2 import functional as F

    level = severity - 1
    kernel = max(images.shape[-1] // 32 * 2, 2) + 1
    pixels = min(images.shape[-2:]) / 32
    sigma = (0.4, 0.6, 0.8, 1.0, 1.4)[level] * pixels
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        drawn = torch.randn(images.shape, generator=generator) * (255 * (0.02, 0.04, 0.06, 0.09, 0.13)[level])
        return (images + drawn.to(images.device)).round().clamp(0, 255).to(torch.uint8)

    def jpeg() -> Tensor:
        quality = (80, 60, 40, 25, 15)[level]
        return torch.stack([F.jpeg(image, quality) for image in images.cpu()]).to(images.device)

    changes: dict[str, Callable[[], Tensor]] = {
        "blur": lambda: F.gaussian_blur(images, [kernel, kernel], [sigma, sigma]),
        "noise": noise,
        "jpeg": jpeg,
        "contrast": lambda: F.adjust_contrast(images, (0.75, 0.6, 0.45, 0.3, 0.2)[level]),
        "brightness": lambda: F.adjust_brightness(images, (0.8, 0.65, 0.5, 0.4, 0.3)[level]),
        "grayscale": lambda: F.adjust_saturation(images, (0.8, 0.6, 0.4, 0.2, 0.0)[level]),
    }
    return changes[name]()
