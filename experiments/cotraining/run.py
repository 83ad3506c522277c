"""Online and self-distillation beside plain training, label smoothing, mixup and CutMix: run it, then ``--report``."""

from __future__ import annotations

import argparse
import csv
import logging
import subprocess
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from datasets import Bench, benches
from methods import METHODS, Method
from report import table

from kdlab.config.lightning_cli import QUIET_TRAINER
from kdlab.modules import DistillationModule

HERE = Path(__file__).parent
COMMIT = subprocess.run(
    ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE
).stdout.strip()  # of the code that was loaded
FIELDS = (
    *("data", "method", "seed", "accuracy", "ece", "ensemble", "others", "epochs", "images", "parameters", "seconds"),
    *("commit", "torch"),
)


def train(bench: Bench, method: Method, seed: int, state: dict[str, Any]) -> tuple[DistillationModule, dict[str, Any]]:
    """One training, and what it gave on the test set after the last epoch.

    All methods of a seed see the same images in the same order; one that learns from the plain network starts from
    other weights than that one did.
    """
    pl.seed_everything(seed + 1000 * method.teacher, verbose=False)
    epochs = bench.epochs * method.epochs
    data = bench.data(seed=seed, **method.options())
    module = method.build(bench, epochs, state)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        limit_val_batches=0,
        **QUIET_TRAINER,
    )
    begin = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - begin
    (found,) = trainer.test(module, data, verbose=False)
    accuracy = found.get("test/deployed_accuracy", found.get("test/student_accuracy"))
    row = {
        "accuracy": f"{100 * accuracy:.2f}",
        "ece": f"{100 * found.get('test/deployed_ece', found.get('test/student_ece', 0.0)):.2f}",
        "ensemble": f"{100 * found['test/ensemble_accuracy']:.2f}" if "test/ensemble_accuracy" in found else "",
        "others": " ".join(f"{name}={100 * found[f'test/{name}_accuracy']:.2f}" for name in method.reports),
        "epochs": epochs,
        "images": epochs * data.sizes["train"],
        "parameters": sum(p.numel() for p in module.trainable().values()),
        "seconds": f"{seconds:.1f}",
    }
    return module, row


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with mnist/ and cifar100/")
    parser.add_argument("--data", default="digits,mnist,cifar100")
    parser.add_argument("--only", help="methods, comma-separated")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--epochs", type=int, help="instead of each data set's own")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    if given.report:
        for file in sorted(given.out.glob("*.csv")):
            print(table(file, METHODS))
        return
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    known = benches(given.root)
    names = given.only.split(",") if given.only else list(METHODS)
    for seed in map(int, given.seeds.split(",")):
        for which in given.data.split(","):
            run(known[which], which, names, seed, given.out, given.epochs)


def run(bench: Bench, which: str, names: list[str], seed: int, out: Path, epochs: int | None = None) -> None:
    """The missing methods of one data set and seed; each row is written when it is known."""
    if epochs:
        bench = Bench(bench.data, bench.network, bench.classes, bench.image, epochs, bench.rate)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{which}.csv"
    done: set[tuple[str, int]] = set()
    if file.exists():
        with file.open() as rows:
            done = {(row["method"], int(row["seed"])) for row in csv.DictReader(rows)}
    missing = [name for name in names if (name, seed) not in done]
    state: dict[str, Any] = {}
    if any(METHODS[name].teacher for name in missing) and ("plain", seed) in done:
        module, _ = train(bench, METHODS["plain"], seed, {})
        state = module.get_submodule("networks.net").state_dict()
    for name in missing:
        module, row = train(bench, METHODS[name], seed, state)
        if name == "plain":
            state = {key: value.clone() for key, value in module.get_submodule("networks.net").state_dict().items()}
        row |= {"data": which, "method": name, "seed": seed}
        row |= {"commit": COMMIT, "torch": torch.__version__}
        new = not file.exists()
        with file.open("a", newline="") as rows:
            writer = csv.DictWriter(rows, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(which, name, seed, row["accuracy"], row["seconds"], flush=True)


if __name__ == "__main__":
    main()
