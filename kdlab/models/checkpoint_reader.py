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

_VERSION = "pytorch-lightning_version"

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


def _start(path: Path, kind: str = "weights file") -> bytes:
    """Return the first bytes of a file."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError as error:
        raise InputError(f"There is no {kind} {str(path)!r} (looked in {str(path.parent.absolute())!r}).") from error
    except IsADirectoryError as error:
        raise InputError(f"{str(path)!r} is a folder: give the {kind} in it.") from error
    except (OSError, ValueError) as error:  # a path with a null byte
        raise InputError(
            f"The {kind} {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}."
        ) from error
    if not start:
        raise InputError(f"The {kind} {str(path)!r} is empty: copy or download it again.")
    return start


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Return the content of a Lightning checkpoint on the CPU, checked against its checksums; no code in it is run.

    Args:
        path: the file.
        mmap: leave the tensors on the disk, to look at names and shapes alone.

    Raises:
        InputError: there is no such file, it is damaged or no checkpoint, or its pickle contains other objects.
    """
    if _start(path, "checkpoint").startswith(b"PK"):
        content = _unpickle(path, "Checkpoint", mmap)
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict) and _VERSION in content:
            return content
    raise InputError(
        f"{str(path)!r} is not a checkpoint of a run, or its beginning is damaged. A weights file belongs to a network "
        "(init_args.weights, kdlab.models.with_weights)."
    )


def _unpickle(path: Path, kind: str = "Weights file", mmap: bool = False) -> Any:
    wrong = _wrong_records(path)
    if wrong:
        raise _damaged(path, wrong, kind)
    # What Lightning resumes from is used as it is, so nothing in it may be replaced.
    ignored = _IGNORED if kind == "Weights file" else []
    try:
        with torch.serialization.safe_globals(ignored):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file can raise almost anything
        raise _load_error(path, error, kind) from error


def _wrong_records(path: Path) -> str:
    """Return what is wrong with a zip archive: sizes and checksums, which ``torch.load`` does not verify.

    A compressed record, which torch never writes, may be a small file that claims all memory.
    """
    try:
        if not zipfile.is_zipfile(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            for record in records:
                stored = record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size
                if not stored and "/data" in record.filename:
                    return f"{record.filename} is compressed"
            wrong = [record.filename for record in records if not _intact(archive, record)]
    except Exception as error:  # a damaged directory can raise almost anything
        return f"{type(error).__name__}: {error}"
    if wrong and len(wrong) < len(records):  # else written without checksums: torch.serialization.set_crc32_options
        return f"the checksum of {wrong[0]} is wrong"
    return ""


def _intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _load_error(path: Path, error: Exception, kind: str) -> InputError:
    """Return the user error for an exception of ``torch.load``."""
    text = str(error)
    if "TorchScript" in text:
        return InputError(
            f"Weights file {str(path)!r} is a TorchScript program, which kdlab does not run: "
            "save the network's state_dict() instead."
        )
    if kind != "Weights file":
        if not re.search(r"GLOBAL|unrecognized function", text):
            return _damaged(path, error, kind)
        return InputError(
            f"{kind} {str(path)!r} holds more than tensors and plain values, and kdlab runs no code from it: if it is "
            f"your own, resume with --weights_only=false ({_reason(error)})."
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
    return _damaged(path, error, kind)


def _no_weights(path: Path) -> InputError:
    return InputError(f"{str(path)!r} is not a weights file: kdlab reads safetensors and what torch.save writes.")


def _damaged(path: Path, reason: object, kind: str = "Weights file") -> InputError:
    return InputError(
        f"{kind} {str(path)!r} is truncated or damaged ({path.stat().st_size:,} bytes): "
        f"copy or download it again ({_reason(reason)})."
    )


def _reason(error: object) -> str:
    """Return the first sentence of an error."""
    text = str(error).partition("WeightsUnpickler error: ")[2] or str(error)
    return re.split(r"\.?\s*\n|\. ", text.strip())[0].rstrip(".") or type(error).__name__


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
