"""Image files of every depth become the 8-bit values that their format defines, or an error."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdlab.data.pixels import DamagedError, rgb
from kdlab.errors import InputError

RAMP = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
EIGHT = (RAMP.astype(np.int64) * 255 * 2 + 65535) // (2 * 65535)
"""The PNG specification's floor(value * 255 / 65535 + 1/2), in integers."""


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format=form, **options)
    return content.getvalue()


@pytest.mark.parametrize("form", ["PNG", "TIFF", "JPEG2000", "big-endian TIFF", "PGM"])
def test_16_bit_gray_is_rescaled(form: str) -> None:
    if form == "PGM":
        raw = b"P5 64 64 65535\n" + RAMP.astype(">u2").tobytes()
    elif form == "big-endian TIFF":
        raw = encoded(Image.frombytes("I;16B", (64, 64), RAMP.astype(">u2").tobytes()), "TIFF")
    else:
        raw = encoded(Image.fromarray(RAMP), form)
    assert np.array_equal(rgb(raw).numpy(), np.broadcast_to(EIGHT, (3, 64, 64)))


def test_12_bits_in_a_tiff_have_their_own_range() -> None:
    raw = tiff(np.array([[0, 2048, 4095, 4095]], np.uint16), bits=12)
    assert rgb(raw)[0].tolist() == [[0, 128, 255, 255]]  # 2048 * 255 / 4095 = 127.53


def tiff(values: np.ndarray[Any, Any], bits: int = 16, white_is_zero: bool = False) -> bytes:
    """One strip of gray values, written by hand: Pillow writes neither of these two."""
    height, width = values.shape
    if bits == 12:  # two values in three bytes, the high bits first
        pairs = values.reshape(-1, 2).tolist()
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    else:
        data = values.astype("<u2").tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1, 278: height}
    tags[279] = len(data)
    start = 8 + len(data) + len(data) % 2
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\x03\0" + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in tags.items()
    )
    head = b"II*\0" + start.to_bytes(4, "little")
    return head + data + b"\0" * (len(data) % 2) + len(tags).to_bytes(2, "little") + entries + bytes(4)


@pytest.mark.parametrize(
    ("raw", "mode"),
    [
        (encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "I"),
        (encoded(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"), "F"),
        (encoded(Image.new("LAB", (4, 4)), "TIFF"), "LAB"),
        (tiff(RAMP, white_is_zero=True), "I;16"),
    ],
    ids=["32 bits", "float", "LAB", "white is zero"],
)
def test_values_without_a_defined_range_are_refused(raw: bytes, mode: str) -> None:
    with pytest.raises(InputError, match=f"Pillow's mode '{mode}'.*convert it to 8 bits") as caught:
        rgb(raw)
    assert not isinstance(caught.value, DamagedError)  # it is not skipped as damaged


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_8_bit_modes_keep_their_values(mode: str) -> None:
    image = Image.fromarray(np.array([[[0] * 3, [255] * 3]], np.uint8)).convert(mode)
    assert rgb(encoded(image, "TIFF"))[:, 0].tolist() == [[0, 255]] * 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_turns_the_image_once(form: str) -> None:
    upright = np.zeros((32, 16, 3), np.uint8)
    upright[:8] = 255  # the top is white
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the stored image turned clockwise by 90 degrees
    got = rgb(encoded(Image.fromarray(np.rot90(upright).copy()), form, exif=exif))
    expected = torch.from_numpy(upright).permute(2, 0, 1)
    assert got.shape == expected.shape
    assert (got.int() - expected.int()).abs().max() < 24  # lossy


@pytest.mark.parametrize(
    "raw", [b"", b"rubbish", encoded(Image.fromarray(RAMP), "PNG")[:90]], ids=["empty", "rubbish", "truncated"]
)
def test_damaged_files_are_told_apart(raw: bytes) -> None:
    with pytest.raises(DamagedError, match=r"cannot be decoded: .+\."):
        rgb(raw)
