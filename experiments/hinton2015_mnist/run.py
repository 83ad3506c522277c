"""Hinton, Vinyals and Dean (2015), section 3: trains what is missing, evaluates everything, writes ``results.csv``.

``python -m experiments.hinton2015_mnist.run --data DATA/mnist``, from the root of the repository. An interrupted run is
taken up at its last epoch, a finished one is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from kdlab.data import MNIST
from kdlab.export.student import export
from kdlab.models import load_weights, mlp

HERE = Path(__file__).parent
RUNS = Path("runs/hinton2015_mnist")
STUDENTS = {  # options on top of plain.yaml
    "plain": [],
    "soft": ["-c", str(HERE / "soft.yaml")],
    "soft, no 3s": ["-c", str(HERE / "soft.yaml"), "--data.omit=[3]"],
}
PAPER_BIAS = 3.5


def main() -> None:
    """Train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with MNIST/raw")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["teacher", *STUDENTS], help="which rows (default: all)")
    given = parser.parse_args()
    root = f"--data.root={given.data}"
    if "teacher" in given.only:
        train("teacher", ["-c", str(HERE / "teacher.yaml"), root])
    for seed in range(given.seeds):
        for row, options in STUDENTS.items():
            if row in given.only:
                seeds = [f"--seed_everything={seed}", f"--data.seed={seed}"]
                train(folder_of(row, seed), ["-c", str(HERE / "plain.yaml"), *options, root, *seeds])
    evaluate(given.data, given.seeds)


def folder_of(row: str, seed: int) -> str:
    """The name of a student's run."""
    return f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"


def train(name: str, options: list[str]) -> None:
    """Train one network into ``runs/hinton2015_mnist/NAME`` unless it is there, and export it."""
    folder = RUNS / name
    if (folder / "student.safetensors").exists():
        return
    last = folder / "checkpoints" / "last.ckpt"
    if not last.exists():
        shutil.rmtree(folder, ignore_errors=True)  # stopped in its first epoch
    resume = [f"--ckpt_path={last}"] if last.exists() else []
    version = f"--trainer.logger.init_args.version={name}"
    subprocess.run([sys.executable, "-m", "kdlab", "fit", *options, version, *resume], check=True)
    export(folder)


def evaluate(data: str, seeds: int) -> None:
    """Count the test errors of every finished run, with and without the bias correction of the unseen 3."""
    module = MNIST(data)
    module.setup()
    batches = [module.prepare(batch) for batch in module.test_dataloader()]
    images, labels = torch.cat([b.inputs for b in batches]), torch.cat([b.target for b in batches])
    rows: list[list[object]] = []
    if (RUNS / "teacher/student.safetensors").exists():
        logits = scores(mlp(hidden=[1200, 1200]), "teacher", images)
        rows.append(["teacher", 0, *counts(logits, labels), "", "", "", "", ""])
    for row in STUDENTS:
        for seed in range(seeds):
            if not (RUNS / folder_of(row, seed) / "student.safetensors").exists():
                continue
            logits = scores(mlp(hidden=[800, 800]), folder_of(row, seed), images)
            fixed: list[object] = ["", "", "", "", ""]
            if "no 3s" in row:
                best = min((k / 10 for k in range(300)), key=lambda bias: counts(raised(logits, bias), labels)[0])
                fixed = [*counts(raised(logits, PAPER_BIAS), labels), best, *counts(raised(logits, best), labels)]
            rows.append([row, seed, *counts(logits, labels), *fixed])
    head = ["net", "seed", "errors", "errors on 3s", "errors, bias 3.5", "errors on 3s, bias 3.5"]
    head += ["best bias", "errors, best bias", "errors on 3s, best bias"]
    with (HERE / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    for line in [head, *rows]:
        print(", ".join(map(str, line)))


@torch.no_grad()
def scores(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """Logits (N, 10) of a finished run's network, in float32."""
    logits: Tensor = load_weights(network, RUNS / name / "student.safetensors").eval()(images)
    return logits


def raised(logits: Tensor, bias: float) -> Tensor:
    """The logits with the bias of class 3 raised."""
    return logits + bias * torch.nn.functional.one_hot(torch.tensor(3), 10)


def counts(logits: Tensor, labels: Tensor) -> tuple[int, int]:
    """Errors of all 10,000, and of the 1,010 test 3s."""
    wrong = logits.argmax(1) != labels
    return int(wrong.sum()), int(wrong[labels == 3].sum())


if __name__ == "__main__":
    main()
