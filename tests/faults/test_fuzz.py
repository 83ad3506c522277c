"""Mutated files of every kind that a stranger may send: a correct load, or an InputError; never code, a crash, memory.

Each kind runs in a process of its own, whose memory is limited, and whose audit hook ends it at any attempt to start a
process or to write outside the file's folder.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kdlab.errors import InputError

ROOM = 1 << 29  # bytes of memory above those of a process that has imported all
NOT_ALLOWED = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "os.fork",
    "socket.connect",
    "ctypes.dlopen",
)


def seed_file(kind: str, path: Path) -> None:
    """Write a good file of a kind."""
    generator = torch.Generator().manual_seed(0)
    state = {"weight": torch.randn(8, 16, generator=generator), "bias": torch.randn(8, generator=generator)}
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    elif kind in ("torch", "torch before 1.6"):
        torch.save({"state_dict": state, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "torch")
    elif kind == "checkpoint":
        head = {"pytorch-lightning_version": "2.6.0", "epoch": 1, "loops": {}, "callbacks": {}}
        torch.save({**head, "state_dict": state, "optimizer_states": [{"state": {0: state}, "param_groups": []}]}, path)
    elif kind == "store":
        from kdlab.members.row_store import Form, Rows

        form = Form(50, "float16", 5)
        rows = Rows(path, 40, *form.row)
        rows.write(np.arange(40), form.encode(torch.randn(40, 50, generator=generator)))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for index in range(6):
                png = io.BytesIO()
                pixels = np.full((8, 8, 3), index, np.uint8)
                Image.fromarray(pixels).save(png, "PNG")
                archive.writestr(f"{'ab'[index % 2]}/{index}.png", png.getvalue())


def read(kind: str, path: Path) -> None:
    """Use a file as kdlab does."""
    if kind in ("safetensors", "torch", "torch before 1.6"):
        from kdlab.models import load_weights

        load_weights(nn.Linear(16, 8), path)
        load_weights(nn.LazyLinear(8), path)
    elif kind == "checkpoint":
        from kdlab.modules.checkpoint_io import AtomicCheckpointIO, check_checkpoint, check_fit

        check_fit(nn.ModuleDict({"a": (a := nn.Linear(16, 8))})["a"], [a], check_checkpoint(path, True), path)
        AtomicCheckpointIO().load_checkpoint(path)
    elif kind == "store":
        from kdlab.members.row_store import Form, Rows

        form = Form(50, "float16", 5)
        values, present = Rows(path, 40, *form.row).read(np.arange(40))
        decoded = form.decode(values[present], torch.device("cpu"))
        assert decoded.shape == (int(present.sum()), 50)
    elif kind == "zip":
        from kdlab.data.image_tree import Tree

        tree = Tree(path)
        for position in range(len(tree)):
            assert tree.image(position).shape[0] == 3


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """Flip, overwrite, cut, repeat, insert; large numbers are put where small ones may be."""
    data = bytearray(raw)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(data) or 1)
        kind = draw.randrange(8)
        if kind == 0:
            data[at : at + 1] = bytes([(data[at] if data else 0) ^ (1 << draw.randrange(8))])
        elif kind == 1:
            data[at : at + 4] = draw.randbytes(4)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            data[at:at] = data[at : at + draw.randrange(1, 200)]
        elif kind == 5:
            data[at : at + 8] = draw.choice([10**12, 2**63 - 1, 2**31, 2**32 - 1, 0]).to_bytes(8, "little")
        elif kind == 6:
            numbers = [i for i, byte in enumerate(data) if 48 <= byte < 58] or [0]  # of JSON and protocol 0
            at = draw.choice(numbers)
            data[at : at + 1] = b"999999999999"
        else:
            data[at:at] = draw.choice(
                [b"cos\nsystem\n", b"(S'true'\ntR.", b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"../../"]
            )
    return bytes(data)


def fuzz(kind: str, folder: str, count: int) -> None:
    """Run in a process of its own: read mutated files, and print the numbers of good and refused ones."""
    import resource

    path = Path(folder) / ("train.zip" if kind == "zip" else "file")
    seed_file(kind, path)
    raw, draw = path.read_bytes(), random.Random(kind)
    read(kind, path)  # all is imported
    torch.set_num_threads(1)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set("wax+") & set(arguments[1])
        outside = writes and not str(arguments[0]).startswith((folder, "/dev/"))
        if event in NOT_ALLOWED or outside:
            print("NOT ALLOWED", event, arguments, flush=True)
            raise SystemExit(99)

    sys.addaudithook(audit)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096 if sys.platform == "linux" else 1 << 36
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    good = refused = 0
    for number in range(count):
        path.write_bytes(mutated(raw, draw))
        try:
            read(kind, path)
            good += 1
        except InputError as error:
            refused += 10 < len(str(error)) < 2000
        except BaseException as error:
            (Path(folder) / "found").write_bytes(path.read_bytes())
            print(f"file {number}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            raise
    print(good, refused)


KINDS = ["safetensors", "torch", "torch before 1.6", "checkpoint", "store", "zip"]


@pytest.mark.parametrize(
    "count", [pytest.param(40, marks=pytest.mark.full), pytest.param(1000, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files(kind: str, count: int, tmp_path: Path) -> None:
    code = "import sys; from tests.faults.test_fuzz import fuzz; fuzz(sys.argv[1], sys.argv[2], int(sys.argv[3]))"
    command = [sys.executable, "-W", "ignore", "-c", code, kind, str(tmp_path), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}"
    good, refused = map(int, done.stdout.split()[-2:])
    assert good + refused == count
    assert refused > count // 8 or kind == "store"  # where most changes only make a row absent
