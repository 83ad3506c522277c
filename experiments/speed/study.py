"""What a whole study costs: 10 methods x 3 seeds on one pair by ``kdlab reproduce``, and by a loop over scripts.

    python experiments/speed/study.py [--images 6000] [--epochs 6] [--pack 2] [--gate 0.5]

resnet20 teaches resnet8 on CIFAR-100's form (images of KDLAB_DATA/cifar100 where they are there, else random), fp32.
The loop is that of a research repository: a process for each run, which reads and decodes the data, runs the teacher
in every step and tests after every epoch (``hand_study.py``); PyTorch takes all processors for it. kdlab keeps teacher
outputs on disk for all methods that read logits or embeddings (6 of the 10), decodes once, trains ``--pack`` runs at
once with the student in channels_last, and does all else that a study does: trial of each config, checkpoints, logs,
metrics, ledger. The three seeds of a method differ in weights and order, and share the augmentation. Both get the same
teacher file; nothing of what kdlab keeps is there before. Use an idle machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["KD", "FitNet", "AT", "SP", "CC", "VID", "RKD", "PKT", "DKD", "DIST"]
RESNET = {"init_args": {"num_classes": 100}}


class Cost(NamedTuple):
    """Seconds that pass, and seconds of all processors of this machine."""

    wall: float
    processors: float


def main() -> int:
    """Measure both and compare them; return 1 where the gate is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000, help="training images, a sixth as many for the test")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--pack", default="auto", help="of kdlab reproduce")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gate", type=float, help="exit with 1 where kdlab takes more than this part of the loop")
    parser.add_argument(
        "--quick", action="store_true", help="two methods and seeds, few images: only to see that it runs"
    )
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.seeds, options.methods, options.pack = 200, 1, 2, "KD,AT", "2"
    methods, seeds = options.methods.split(","), list(range(options.seeds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, tests = write_data(folder / "data", options.images)
        write_teacher(folder / "teacher.pth")
        write_study(folder / "study", folder / "data", options.epochs, methods, seeds)
        print(
            f"{len(methods)} methods x {len(seeds)} seeds, {images} + {tests} images, {options.epochs} epochs",
            flush=True,
        )
        hand = cost(lambda: run_hand(folder, methods, seeds, options.epochs))
        print(f"loop over scripts: {hand.wall:.0f} s, {hand.processors:.0f} s of processors", flush=True)
        kdlab = cost(lambda: run_kdlab(folder, options.pack))
        print(f"kdlab reproduce: {kdlab.wall:.0f} s, {kdlab.processors:.0f} s of processors")
        check(folder, len(methods) * len(seeds))
    ratio, of_processors = kdlab.wall / hand.wall, kdlab.processors / hand.processors
    print(f"ratio: {ratio:.3f} of the time, {of_processors:.3f} of the processors' time")
    if options.json:
        numbers = {"hand": hand._asdict(), "kdlab": kdlab._asdict(), "ratio": ratio, "of_processors": of_processors}
        options.json.write_text(json.dumps({**vars(options), "json": None, **numbers}, indent=1) + "\n")
    if options.gate is not None and ratio > options.gate:
        print(f"FAIL: the ratio is above {options.gate}.")
        return 1
    return 0


def cost(work: Callable[[], None]) -> Cost:
    """Run ``work`` and return what it took."""
    wall, processors = time.perf_counter(), busy()
    work()
    return Cost(time.perf_counter() - wall, busy() - processors)


def busy() -> float:
    """Return the seconds that all processors of this machine were busy since it started."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def write_data(folder: Path, images: int) -> tuple[int, int]:
    """Write train.zip and test.zip with as many images of each class; return the numbers of images."""
    folder.mkdir(parents=True)
    source = Path(os.environ.get("KDLAB_DATA", ROOT.parent / "shared/data")) / "cifar100"
    sizes = []
    for split, count in (("train", images // 100), ("test", max(1, images // 600))):
        with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
            pick(source / f"{split}.zip", archive, count) if source.exists() else draw(archive, count)
            sizes.append(len(archive.namelist()))
    return sizes[0], sizes[1]


def pick(source: Path, archive: zipfile.ZipFile, count: int) -> None:
    """Copy the first images of each class."""
    copied: dict[str, int] = {}
    with zipfile.ZipFile(source) as whole:
        labels = sorted({Path(name).parent.name for name in whole.namelist() if name.endswith(".png")})
        numbers = {label: number for number, label in enumerate(labels)}
        for name in sorted(whole.namelist()):
            label = Path(name).parent.name
            if name.endswith(".png") and copied.setdefault(label, 0) < count:
                copied[label] += 1
                archive.writestr(f"{numbers[label]:03d}/{copied[label]:04d}.png", whole.read(name))


def draw(archive: zipfile.ZipFile, count: int) -> None:
    """Write random images."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0)
    for label in range(100):
        for number in range(count):
            file = io.BytesIO()
            Image.fromarray(pixels.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(file, "png")
            archive.writestr(f"{label:03d}/{number:04d}.png", file.getvalue())


def write_teacher(path: Path) -> None:
    """Write a teacher whose BatchNorm statistics are those of random images, so that activations vary as in use."""
    code = (
        "import torch; from kdlab.models import resnet20; torch.manual_seed(0); n = resnet20(100)\n"
        "with torch.no_grad(): [n(torch.randn(64, 3, 32, 32)) for _ in range(20)]\n"
        f"torch.save(n.state_dict(), {str(path)!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def write_study(folder: Path, data: Path, epochs: int, methods: Sequence[str], seeds: Sequence[int]) -> None:
    """Write the study."""
    folder.mkdir()
    configs = Path(os.path.relpath(ROOT / "configs", folder.resolve()))
    recipe = {
        "trainer": {"max_epochs": epochs, "accelerator": "cpu"},
        "model": {
            "class_path": "kdlab.Distiller",
            "init_args": {
                "student": {"class_path": "kdlab.models.resnet8", **RESNET},
                "channels_last": True,
                "optimizer": {
                    "class_path": "torch.optim.SGD",
                    "init_args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
                },
            },
        },
        "data": {
            "class_path": "kdlab.data.CIFAR100",
            "init_args": {"root": str(data), "batch_size": 64, "augmentation_seed": 0},
        },
    }
    study = {
        "title": "Cost of a study",
        "recipe": {"configs": ["recipe.yaml"]},
        "networks": {name: {"class_path": f"kdlab.models.{name}", **RESNET} for name in ("resnet20", "resnet8")},
        "teachers": {"weights": {"resnet20": "../teacher.pth"}},
        "pairs": [{"teacher": "resnet20", "student": "resnet8"}],
        "methods": {name: {"configs": [str(configs / f"knowledge/{name.lower()}.yaml")]} for name in methods},
        "seeds": list(seeds),
    }
    for name, content in (("recipe", recipe), ("study", study)):
        (folder / f"{name}.yaml").write_text(json.dumps(content, indent=1))  # which is YAML


def environment() -> dict[str, str]:
    """Return this environment, with this kdlab, and as many threads as PyTorch takes."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**{key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}, "PYTHONPATH": path}


def run_hand(folder: Path, methods: Sequence[str], seeds: Sequence[int], epochs: int) -> None:
    """Run the scripts one after the other."""
    script, places = Path(__file__).with_name("hand_study.py"), [str(folder / "data"), str(folder / "teacher.pth")]
    for method in methods:
        for seed in seeds:
            run([str(script), method, str(seed), *places, str(epochs)], folder)


def run_kdlab(folder: Path, pack: str) -> None:
    """Run the study."""
    run(["-m", "kdlab", "reproduce", "study", f"--pack={pack}", "--teacher_cache=outputs"], folder)


def run(arguments: Sequence[str], folder: Path) -> None:
    """Run Python in a folder; what it prints is shown where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}")


def check(folder: Path, runs: int) -> None:
    """Check that all runs are in the ledger, and that nothing was reused that was there before."""
    with (folder / "study" / "ledger.csv").open() as file:
        rows: list[dict[str, Any]] = [*csv.DictReader(file)]
    if [row["status"] for row in rows] != ["finished"] * runs:
        raise SystemExit(f"The ledger has {len(rows)} rows for {runs} runs.")
    shutil.rmtree(folder / "outputs")


if __name__ == "__main__":
    sys.exit(main())
