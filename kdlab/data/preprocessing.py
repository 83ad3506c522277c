"""Preprocessing of a frozen teacher's own: mean, standard deviation, size and interpolation, on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.compat import uncompiled
from kdlab.errors import InputError, check_word

INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, in units of the full range."""


@dataclass(frozen=True)
class Preprocessing:
    r"""What a network was trained to see.

    Images that were normalized with another mean m and standard deviation s become :math:`(x s + m - \mu) / \sigma`,
    and are then resized, with antialiasing unless ``interpolation`` is ``"nearest"``.

    Args:
        mean: :math:`\mu` of each channel, in units of the full range; ``None`` leaves the images normalized as they
            are.
        std: :math:`\sigma`, likewise.
        size: height and width in pixels, or one number for both; ``None`` leaves them.
        interpolation: ``"nearest"``, ``"bilinear"`` or ``"bicubic"``.

    Raises:
        InputError: one of mean and std alone, an unknown interpolation, or a number out of range.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | tuple[int, int] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bicubic"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "size"):  # configs give lists
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_word("interpolation", self.interpolation, INTERPOLATIONS)
        if (self.mean is None) != (self.std is None):
            raise InputError("A preprocessing has mean and std, or neither.")
        if self.std and (len(self.mean or ()) != len(self.std) or not all(0 < std < math.inf for std in self.std)):
            raise InputError(f"std must be a positive number for each channel of mean, not {list(self.std)}.")
        sides = (self.size,) if isinstance(self.size, int) else self.size or ()
        if any(side < 1 for side in sides) or len(sides) > 2:
            raise InputError(f"size must be one or two numbers of pixels, not {self.size}.")

    @staticmethod
    def of(network: nn.Module) -> Preprocessing | None:
        """Return what timm's ``pretrained_cfg`` says of a network; ``None`` where there is none.

        The size is the one that the network was built for where that is fixed (``patch_embed.img_size``).
        """
        network = uncompiled(network)
        about: Any = getattr(network, "pretrained_cfg", None)
        if not isinstance(about, dict) or "mean" not in about:
            return None
        built: Any = getattr(getattr(network, "patch_embed", None), "img_size", None)
        word = about.get("interpolation", "bicubic")
        return Preprocessing(
            tuple(about["mean"]),
            tuple(about["std"]),
            tuple(built or about["input_size"][-2:]),
            word if word in INTERPOLATIONS else "bicubic",
        )

    def __call__(self, images: Any, normalized: Normalization | None) -> Tensor:
        """Return images (B, C, H, W) as the network was trained to see them.

        Args:
            images: normalized images.
            normalized: how; ``None`` if nobody says.

        Raises:
            InputError: the inputs are no images, ``normalized`` is not known, or channels differ.
        """
        if not isinstance(images, Tensor) or images.dim() != 4:
            raise InputError("A teacher's own preprocessing is for batches of images (B, C, H, W).")
        shown: Tensor = images
        if self.mean is not None and self.std is not None:
            if normalized is None:
                raise InputError(
                    "A teacher's own mean and std need to know how the data normalizes: use a data module with mean "
                    "and std, as those of kdlab.data, or leave them out."
                )
            scale, shift = _affine(normalized, (self.mean, self.std), shown)
            shown = shown * scale + shift
        if self.size is None:
            return shown
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        if tuple(shown.shape[2:]) == tuple(size):
            return shown
        smooth = self.interpolation != "nearest"
        return F.interpolate(shown, size, mode=self.interpolation, antialias=smooth)


def _affine(old: Normalization, new: Normalization, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift (C, 1, 1) from one normalization to another, computed in float64."""
    (m, s), (mean, std) = ([torch.tensor(list(part), dtype=torch.float64) for part in pair] for pair in (old, new))
    if not len(m) == len(mean) == images.shape[1]:
        raise InputError(f"The images have {images.shape[1]} channels, and mean and std of a teacher {len(mean)}.")
    return tuple((x[:, None, None]).to(images) for x in (s / std, (m - mean) / std))  # type: ignore[return-value]
