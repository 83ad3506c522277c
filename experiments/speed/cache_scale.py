"""What a teacher cache costs at scale: disk, rates of filling and reading, and the error of top-k.

    python experiments/speed/cache_scale.py [FOLDER] [--epochs 240] [--images 50000] [--classes 100] [--embedding 64]

It fills a store for all epochs as a training would (rows in the order of batches of 64, fp16), reads them again in
another order, first with the files in memory and then from the disk, with and without reading ahead, and prints rows a
second and the microseconds that a look-up takes in a step. Numbers stand for the teacher's outputs: no network runs, so
that the rate is the store's own. 240 epochs take 4 GB in FOLDER (default: a temporary folder), which are deleted at the
end. ``--top-k 10`` fills a store of the ten highest; ``--teacher LOGITS.npy`` gives logits (N, K) of a real teacher for
the error that this makes, else logits are drawn. ``--imagenet`` prints what ImageNet takes, and measures a sample.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdlab.members.row_store import Form, Rows
from kdlab.members.teacher_cache import Store, TeacherCache
from kdlab.outputs import Outputs

BATCH, CPU = 64, torch.device("cpu")
IMAGENET = 1_281_167


class Size(NamedTuple):
    """Samples, classes and width of the embedding (0: none)."""

    images: int
    classes: int
    embedding: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="an empty or new folder on the disk to measure")
    parser.add_argument("--epochs", type=int, default=240)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--embedding", type=int, default=64, help="0 for none")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--teacher", type=Path, help="logits (N, K) of a teacher, .npy")
    parser.add_argument("--imagenet", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.epochs, options.images, options.imagenet = 2, 640, True
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        size = Size(options.images, options.classes, options.embedding)
        measure(Path(name) / "cifar", size, options.epochs, options.top_k)
        if options.imagenet:
            images = 640 if options.quick else 64_000
            paper()
            measure(Path(name) / "imagenet", Size(images, 1000, 2048), 2, None)
            measure(Path(name) / "imagenet_top", Size(images, 1000, 0), 2, 10)
    logits = torch.from_numpy(np.load(options.teacher)) if options.teacher else drawn(options.classes)
    errors(logits, "the teacher's" if options.teacher else "drawn")
    return 0


def measure(folder: Path, size: Size, epochs: int, top_k: int | None) -> None:
    """Fill and read a store."""
    store = opened(folder, size, top_k)
    disk = sum(sum(store.sizes(epoch).values()) for epoch in range(epochs))
    layout = f"top {top_k}" if top_k else f"{size.classes} logits"
    layout += f" and an embedding of {size.embedding}" if size.embedding else ""
    row = disk / size.images / epochs
    print(f"{size.images:,} images x {epochs} epochs, {layout}: {disk / 1e9:.2f} GB, {row:.0f} bytes a row")
    outputs = Outputs(
        torch.randn(BATCH, size.classes) * 4, embedding=torch.randn(BATCH, size.embedding) if size.embedding else None
    )
    report("fill", row, passed(store, size, epochs, 0, outputs))
    report("read, in memory", row, passed(opened(folder, size, top_k), size, 1, 1, None))
    for ahead in (False, True):
        forget(folder)
        name = "read, from the disk" + (", read ahead" if ahead else "")
        report(name, row, passed(opened(folder, size, top_k), size, epochs, 2, None, ahead))


def opened(folder: Path, size: Size, top_k: int | None) -> Store:
    """Return a store of that size."""
    forms = {"logits": Form(size.classes, "float16", top_k)}
    if size.embedding:
        forms["embedding"] = Form(size.embedding, "float16")
    return Store(TeacherCache(str(folder), "float16", top_k), {"teacher": "none"}, {"": size.images}, forms)


def passed(store: Store, size: Size, epochs: int, seed: int, fresh: Outputs | None, ahead: bool = True) -> list[float]:
    """Return the seconds of each look-up of all epochs; ``fresh`` outputs fill the store."""
    from kdlab.members import teacher_cache

    def live() -> Outputs:
        assert fresh is not None, "a row is missing"
        return fresh

    before = teacher_cache.prefetch
    teacher_cache.prefetch = before if ahead else lambda paths: None  # type: ignore[assignment]
    try:
        seconds = []
        for epoch in range(epochs):
            for batch in batches(size.images, seed + epoch):
                start = time.perf_counter()
                store.look(epoch, batch, live, CPU)
                seconds.append(time.perf_counter() - start)
        return seconds
    finally:
        teacher_cache.prefetch = before


def batches(images: int, seed: int) -> Iterator[Tensor]:
    """Yield the positions of whole batches in a random order."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    yield from (batch for batch in order.split(BATCH) if len(batch) == BATCH)


def report(name: str, row: float, seconds: Sequence[float]) -> None:
    """Print rates."""
    total = sum(seconds)
    rate = len(seconds) * BATCH / total
    typical, slow = np.quantile(seconds, [0.5, 0.99])
    look_up = f"a look-up of {BATCH}: median {1e6 * typical:.0f} us, 99 % below {1e6 * slow:.0f} us"
    print(f"  {name:<30} {rate:>10,.0f} rows/s ({rate * row / 1e6:,.1f} MB/s), {look_up}")


def forget(folder: Path) -> None:
    """Write files to the disk and drop them from memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def paper() -> None:
    """Print what ImageNet takes."""
    print(f"ImageNet, {IMAGENET:,} images, float16, by what is kept of an image and the number K of views:")
    forms = {
        "1,000 logits": [Form(1000, "float16")],
        "1,000 logits, embedding of 2,048": [Form(1000, "float16"), Form(2048, "float16")],
        "top 10": [Form(1000, "float16", 10)],
        "top 50": [Form(1000, "float16", 50)],
    }
    for name, stored in forms.items():
        one = sum(Rows.size(IMAGENET, *form.row) for form in stored)
        sizes = ", ".join(f"K={views}: {views * one / 1e9:,.1f} GB" for views in (1, 10, 100, 300))
        print(f"  {name:<34} {one / IMAGENET:>5.0f} bytes, {sizes}")


def drawn(classes: int) -> Tensor:
    """Return logits of a made-up teacher that is right on about three of four samples."""
    numbers = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(2000, classes, generator=numbers)
    logits[torch.arange(2000), torch.randint(classes, (2000,), generator=numbers)] += 6
    return logits


def errors(logits: Tensor, whose: str) -> None:
    """Print what top-k changes in the soft targets, and in the gradient of a student that is uniform."""
    logits = logits.float()
    classes = logits.shape[1]
    print(f"top-k of {whose} {classes} logits: mean KL to all of them; error of the gradient, of its norm")
    for k in (k for k in (1, 2, 5, 10, 20, 50) if k < classes):
        form = Form(classes, "float16", k)
        decoded, cells = form.decode(form.encode(logits), CPU), []
        for temperature in (1.0, 4.0):
            p, q = (torch.softmax(values / temperature, 1) for values in (logits, decoded))
            gradient = (p - q).norm(dim=1) / (p - 1 / classes).norm(dim=1)
            error = form.error(logits, temperature)
            cells.append(f"T={temperature:g}: {error:.2g}, {100 * float(gradient.mean()):.2g} %")
        size = form.row[0] * np.dtype(form.row[1]).itemsize
        print(f"  k={k:<3} {size:>4} bytes  {';  '.join(cells)}")


if __name__ == "__main__":
    sys.exit(main())
