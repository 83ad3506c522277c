"""Cost of a step that distills from two cached teachers without labels, over the student's own step.

    python experiments/speed/cached_backbone.py [--rounds 8] [--steps 12] [--size 64] [--batch 32] [--out FILE]

The student's own step is plain training of the same network on labels, in the same module with the same data. Turns
alternate (own, cached, cached, own, ...), each in a fit of its own after warm-up steps; the ratio is that of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from kdlab import Distiller, Knowledge
from kdlab.data import ImageFolder, Preprocessing
from kdlab.losses import CosineSmoothL1, Standardized
from kdlab.members import Frozen
from kdlab.models import resnet14, resnet20
from kdlab.teaching import TeacherCache

WARM = 4


class Clock(pl.Callback):
    """The time of every step from the end of the one before."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now, self.ends = now, list[float]()

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        self.ends.append(self.now())

    def seconds(self) -> list[float]:
        """Return seconds a step, without those of the warm-up."""
        return [after - before for before, after in zip(self.ends[WARM:], self.ends[WARM + 1 :], strict=False)]


def folder(path: Path, count: int, size: int) -> Path:
    """Write random images in two class folders."""
    generator = np.random.default_rng(0)
    for number in range(count):
        place = path / ("train" if number >= 4 else "val") / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), np.uint8)).save(place)
    return path


def backbone(network: Any) -> nn.Module:
    """Return a network without its classifier."""
    network.fc = nn.Identity()
    return network  # type: ignore[no-any-return]


def turn(
    kind: str, images: Path, cache: Path, batch: int, steps: int, now: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return seconds of each step of one fit."""
    torch.manual_seed(0)
    data = ImageFolder(str(images), padding=4, batch_size=batch, distinct_epochs=1, drop_last=True)
    from torchvision.models import resnet18

    if kind == "own":
        module = Distiller(resnet18(num_classes=2))
    else:
        half = Preprocessing((0.5,) * 3, (0.5,) * 3, size=32)
        teachers = {
            "one": Frozen(backbone(resnet14(10)), preprocessing=half),
            "two": Frozen(backbone(resnet20(10)), preprocessing=Preprocessing(size=48)),
        }
        knowledge = {"features": Knowledge(Standardized(CosineSmoothL1()))}
        store = TeacherCache(str(cache), "float32")
        module = Distiller(backbone(resnet18()), teachers, knowledge, task_weight=0.0, teacher_cache=store)
    clock = Clock(now)
    trainer = pl.Trainer(
        max_steps=WARM + steps + 1,
        accelerator="auto",
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return clock.seconds()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, number in (("rounds", 8), ("steps", 12), ("size", 64), ("batch", 32), ("images", 260)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--cpu-time", action="store_true", help="of the process, where other load takes turns with it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    now = time.process_time if options.cpu_time else time.perf_counter
    seconds: dict[str, list[float]] = {"own": [], "cached": []}
    with tempfile.TemporaryDirectory() as temporary:
        images, cache = folder(Path(temporary) / "images", options.images, options.size), Path(temporary) / "cache"
        turn("cached", images, cache, options.batch, options.images // options.batch - WARM - 1)  # fills the cache
        for number in range(options.rounds):
            for kind in ("own", "cached") if number % 2 == 0 else ("cached", "own"):
                seconds[kind].append(statistics.median(turn(kind, images, cache, options.batch, options.steps, now)))
                print(number, kind, f"{1000 * seconds[kind][-1]:.1f} ms", flush=True)
    ratios = [cached / alone for alone, cached in zip(seconds["own"], seconds["cached"], strict=True)]
    row = {
        "own_ms": round(1000 * statistics.median(seconds["own"]), 2),
        "cached_ms": round(1000 * statistics.median(seconds["cached"]), 2),
        "ratio": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the process" if options.cpu_time else "wall time",
    }
    print(json.dumps(row))
    if options.out:
        options.out.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
