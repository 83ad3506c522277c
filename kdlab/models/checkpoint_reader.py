"""Reading named tensors from a weights file of any common layout, without running code in the file."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kdlab.errors import InputError

# The magic number of torch.save before version 1.6; later files are zip archives.
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

# Keys under which training codes store the weights in a larger dictionary, the most specific first.
_WRAPPINGS = ("state_dict", "model", "model_state_dict", "student", "network", "net")


class _Ignored:
    """A placeholder for a harmless object beside the weights (options, an accuracy), without state or behavior."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _IgnoredNumber(_Ignored):
    """A placeholder for a numpy scalar, which a pickle creates by a function call."""


# Names in a pickle that kdlab replaces by placeholders. None of the real objects is created.
_IGNORED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Ignored, "argparse.Namespace"),
    (_Ignored, "numpy.dtype"),
    (_IgnoredNumber, "numpy.core.multiarray.scalar"),
    (_IgnoredNumber, "numpy._core.multiarray.scalar"),
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file on the CPU by name, from whatever dictionary holds them.

    Raises:
        InputError: there is no such file, it is not a weights file, it is damaged, or its pickle contains other
            objects.
    """
    start = _start(path)
    if start[8:9] == b"{":  # safetensors: the length in eight bytes, then JSON
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error
    if start.startswith(b"PK") or _OLD_TORCH in start:
        return _tensors_in(_unpickle(path), path)
    if start.startswith(b"\x80"):
        raise InputError(
            f"{str(path)!r} is a plain pickle (or damaged), and kdlab refuses to run code from a weights file: "
            "save the network's state_dict() with torch.save or save_weights."
        )
    if start.startswith(b"version https://git-lfs"):
        raise InputError(
            f"Weights file {str(path)!r} is only a Git LFS pointer: fetch the file itself with `git lfs pull`."
        )
    if path.suffix == ".safetensors":
        raise InputError(f"Weights file {str(path)!r} is not a safetensors file, or its beginning is damaged.")
    raise _no_weights(path)


def _start(path: Path) -> bytes:
    """Return the first bytes of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no weights file {str(path)!r} (looked in {str(path.parent.absolute())!r})."
        ) from error
    except IsADirectoryError as error:
        raise InputError(f"{str(path)!r} is a folder: give the weights file in it.") from error
    except OSError as error:
        raise InputError(f"Weights file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    if not start:
        raise InputError(f"Weights file {str(path)!r} is empty: copy or download it again.")
    return start


def _unpickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_IGNORED):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost anything
        raise _load_error(path, error) from error
    wrong = _wrong_checksums(path)
    if wrong:
        raise _damaged(path, f"the checksum of {wrong[0]} is wrong")
    return content


def _wrong_checksums(path: Path) -> list[str]:
    """Return the records of a zip archive whose checksum is wrong, which ``torch.load`` does not verify."""
    if not zipfile.is_zipfile(path):
        return []
    wrong = []
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            try:
                with archive.open(name) as record:
                    while record.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                wrong.append(name)
        if len(wrong) == len(archive.namelist()):  # written without checksums: torch.serialization.set_crc32_options
            return []
    return wrong


def _load_error(path: Path, error: Exception) -> InputError:
    """Return the user error for an exception of ``torch.load``."""
    text = str(error)
    if "TorchScript" in text:
        return InputError(
            f"Weights file {str(path)!r} is a TorchScript program, which kdlab does not run: "
            "save the network's state_dict() instead."
        )
    match = re.search(r"(?:GLOBAL|unrecognized function) (\S+)", text)
    if match:
        return InputError(
            f"Weights file {str(path)!r} holds more than tensors (a pickled {match[1]}), and kdlab refuses to run code "
            "from a weights file: save the network's state_dict() alone with torch.save or save_weights."
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return _no_weights(path)
    return _damaged(path, error)


def _no_weights(path: Path) -> InputError:
    return InputError(f"{str(path)!r} is not a weights file: kdlab reads safetensors and what torch.save writes.")


def _damaged(path: Path, reason: object) -> InputError:
    text = str(reason).partition("WeightsUnpickler error: ")[2] or str(reason)
    first = re.split(r"\.?\s*\n|\. ", text.strip())[0].rstrip(".")
    return InputError(
        f"Weights file {str(path)!r} is truncated or damaged ({path.stat().st_size:,} bytes): "
        f"copy or download it again ({first or type(reason).__name__})."
    )


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the first dictionary of tensors; the usual keys are searched before ``content`` itself."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPINGS if _holds_tensors(content.get(name))), None)
        if inner is None:
            break
        content = inner
    tensors = {}
    form = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        tensors = {str(name): value.data for name, value in content.items() if isinstance(value, Tensor)}
        form = f"a dictionary of {', '.join(map(repr, list(content)[:5])) or 'nothing'}"
    if not tensors:
        raise InputError(
            f"Weights file {str(path)!r} is {form} and holds no weights: "
            "give a state_dict, or a checkpoint with one under 'state_dict' or 'model'."
        )
    return tensors


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(item, Tensor) or _holds_tensors(item) for item in value.values()
    )
