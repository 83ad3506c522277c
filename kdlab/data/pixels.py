"""Decoding of one image file to 8-bit RGB."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdlab.errors import InputError

EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value


class DamagedError(InputError):
    """The file is damaged, or is no image."""


def rgb(raw: bytes) -> Tensor:
    """Decode an image file: its first frame, turned upright as the EXIF orientation says, without transparency.

    Gray values of 16 bits are divided by 257 and rounded, which maps 0..65535 to 0..255 as the PNG specification says
    (section "Sample depth rescaling"). Pixels of 32 bits and in floating point have no range that a file defines.

    Args:
        raw: content of the file.

    Returns:
        (3, H, W) uint8.

    Raises:
        DamagedError: the file cannot be decoded.
        InputError: its pixels have no defined 8-bit values.
    """
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            upright = ImageOps.exif_transpose(opened)
            tags = getattr(opened, "tag_v2", {})
            full = 2 ** tags.get(BITS, (16,))[0] - 1
            inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
            kind = opened.format
            pixels = np.array(upright.convert("RGB") if upright.mode in EIGHT_BIT else upright)
    except Exception as error:  # Pillow's formats raise different exceptions
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise DamagedError(f"cannot be decoded: {reason}.") from error
    mode = upright.mode
    if mode not in EIGHT_BIT:
        # Pillow gives 16 bits as 32 in PGM files, and in PNG files before its release 11.3.
        if not (mode.startswith("I;16") or (mode == "I" and kind in ("PNG", "PPM"))) or inverted:
            raise InputError(
                f"has pixels of Pillow's mode {mode!r}{' with white as 0' if inverted else ''}, whose 8-bit RGB values "
                "are not defined: convert it to 8 bits, or to 16-bit gray."
            )
        gray = np.rint(pixels.astype(np.float64) * (255 / full)).astype(np.uint8)
        pixels = np.repeat(gray[:, :, None], 3, 2)
    return torch.from_numpy(pixels).permute(2, 0, 1)
