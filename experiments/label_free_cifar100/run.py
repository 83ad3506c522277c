"""Distill a backbone from two teachers on CIFAR-100's images without labels, and probe what it has learned.

    python experiments/label_free_cifar100/run.py --data DATA --out FOLDER [--seeds 0 1 2] [--images 200] [--epochs 8]

DATA holds ``cifar100``, ``cifar10_jpeg`` and ``teachers_cifar10``. One row of the ledger for each number; what is there
already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

import kdlab
from kdlab.data import ImageFolder, Preprocessing, UnlabeledImages
from kdlab.losses import CosineSmoothL1, Standardized
from kdlab.members import Frozen
from kdlab.models import load_weights, resnet8, resnet14, resnet56
from kdlab.outputs import Batch, Observer, Outputs
from kdlab.probes import (
    CORRUPTIONS,
    Features,
    corrupted,
    features_of,
    fine_tuned_accuracy,
    knn_accuracy,
    linear_cka,
    linear_probe_accuracy,
    mapped_cosine,
    neighbor_agreement,
)
from kdlab.teaching import TeacherCache

MEAN, STD = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VIEWS = 2
COLUMNS = ("network", "seed", "data", "metric", "value", "seconds")


def subset(source: Path, target: Path, split: str, images: int) -> None:
    """Write a zip file with the first images of every class."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target.with_suffix(".part"), "w") as new:
        for name in sorted(old.namelist()):
            parts = name.split("/")
            if name.endswith("/") or counts[parts[-2]] >= images:
                continue
            counts[parts[-2]] += 1
            new.writestr(f"{split}/{parts[-2]}/{parts[-1]}", old.read(name))
    target.with_suffix(".part").rename(target)


class Study:
    """The networks, data and ledger of the study."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.epochs, self.own_epochs, self.out = arguments.epochs, arguments.own_epochs, Path(arguments.out)
        self.folders = {"cifar100": self.out / "cifar100", "cifar10_jpeg": self.out / "cifar10_jpeg"}
        data = Path(arguments.data)
        sources = {"cifar100": ("train.zip", arguments.images), "cifar10_jpeg": ("train_10k.zip", arguments.own_images)}
        for name, (train, images) in sources.items():
            tested = arguments.tested // (100 if name == "cifar100" else 10)
            subset(data / name / train, self.folders[name] / "train.zip", "train", images)
            subset(data / name / "test.zip", self.folders[name] / "test.zip", "test", tested)
        self.ledger = Path(arguments.ledger or self.out / "ledger.csv")
        self.done = set[tuple[str, str, str, str]]()
        if self.ledger.exists():
            with self.ledger.open() as file:
                self.done = {(row["network"], row["seed"], row["data"], row["metric"]) for row in csv.DictReader(file)}
        self.labeled = {name: self._labeled(name) for name in self.folders}
        self.published = load_weights(
            resnet56(num_classes=10, shortcut="pad"), str(data / "teachers_cifar10" / "resnet56-4bfd9763.th")
        )

    def _labeled(self, name: str, seed: int = 0) -> ImageFolder:
        data = ImageFolder(
            str(self.folders[name]), MEAN, STD, padding=4, seed=seed, augmentation_seed=0, distinct_epochs=VIEWS,
            batch_size=128, eval_batch_size=500,
        )  # fmt: skip
        data.setup()
        return data

    def write(self, network: str, seed: int, data: str, metric: str, value: Callable[[], float]) -> None:
        """Measure one number, unless the ledger has it."""
        key = (network, str(seed), data, metric)
        if key in self.done:
            return
        start = time.process_time()
        row = (*key, f"{value():.5f}", f"{time.process_time() - start:.1f}")
        is_new = not self.ledger.exists()
        with self.ledger.open("a", newline="") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(COLUMNS)
            writer.writerow(row)
        self.done.add(key)
        print(*row, flush=True)

    def fit(self, module: pl.LightningModule, data: pl.LightningDataModule, seed: int, epochs: int) -> None:
        """Train without logs or files."""
        pl.seed_everything(seed, verbose=False)
        trainer = pl.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)

    def trained(self, name: str, seed: int, build: Callable[[], tuple[Any, Any, int]]) -> nn.Module:
        """Return a trained student, from its file where there is one."""
        path = self.out / f"{name}_{seed}.pt"
        pl.seed_everything(seed, verbose=False)
        module, data, epochs = build()
        if path.exists():
            module.student.load_state_dict(torch.load(path))
        else:
            start = time.process_time()
            self.fit(module, data, seed, epochs)
            torch.save(module.student.state_dict(), path)
            print(name, seed, f"trained in {time.process_time() - start:.0f} s of CPU time", flush=True)
        student: nn.Module = module.student.eval()
        return student

    def own_teacher(self) -> nn.Module:
        """Return the project's own teacher: ResNet-14 on the 10,000 JPEGs of CIFAR-10, with mean and std 0.5."""

        def build() -> tuple[Any, Any, int]:
            data = ImageFolder(
                str(self.folders["cifar10_jpeg"]),
                list(HALF.mean or ()),
                list(HALF.std or ()),
                padding=4,
                batch_size=128,
            )
            return kdlab.Distiller(resnet14(num_classes=10), **schedule()), data, self.own_epochs

        return self.trained("own_teacher", 0, build)

    def teachers(self) -> dict[str, Frozen]:
        """Return both teachers, each with its own preprocessing."""
        second = self.own_teacher()
        return {
            "published": Frozen(self.published, preprocessing=IMAGENET),
            "own": Frozen(second, preprocessing=HALF),
        }

    def students(self, seed: int) -> Iterator[tuple[str, nn.Module]]:
        """Iterate over the students of a seed."""

        def knowledge() -> dict[str, Any]:
            return {"features": kdlab.Knowledge(Standardized(CosineSmoothL1(), "phi_s"), 2.0)}

        def cache() -> TeacherCache:
            return TeacherCache(str(self.out / "cache"), "float32")

        def label_free() -> tuple[Any, Any, int]:
            images = UnlabeledImages(
                str(self.folders["cifar100"] / "train.zip"), MEAN, STD, padding=4, seed=seed, augmentation_seed=0,
                distinct_epochs=VIEWS, batch_size=128,
            )  # fmt: skip
            module = kdlab.Distiller(headless(), self.teachers(), knowledge(), teacher_cache=cache(), **schedule())
            return module, images, self.epochs

        def with_labels() -> tuple[Any, Any, int]:
            module = kdlab.Distiller(
                resnet8(num_classes=100), self.teachers(), knowledge(), teacher_cache=cache(), **schedule()
            )
            return module, self._labeled("cifar100", seed), self.epochs

        def supervised() -> tuple[Any, Any, int]:
            return kdlab.Distiller(resnet8(num_classes=100), **schedule()), self._labeled("cifar100", seed), self.epochs

        for name, build in (("label_free", label_free), ("supervised", supervised), ("with_labels", with_labels)):
            yield name, self.trained(name, seed, build)
        pl.seed_everything(seed, verbose=False)
        yield "random", headless().eval()

    def features(self, network: Any, data: ImageFolder, split: str, change: Any = None) -> Features:
        """Return features of a split as in evaluation, perhaps of changed images."""
        batches = (Batch.of(raw) for raw in data._eval_loader(split))
        changed = (b._replace(inputs=change(b.inputs)) if change else b for b in batches)
        return features_of(network, (data.prepare(batch) for batch in changed))

    def probe(self, name: str, network: Any, seed: int, robust: bool) -> None:
        """Measure everything that needs no training of the network."""
        for dataset, data in self.labeled.items():
            wanted = ["knn", "linear"]
            if all((name, str(seed), dataset, metric) in self.done for metric in wanted):
                continue
            train, test = (self.features(network, data, split) for split in ("train", "test"))
            self.write(name, seed, dataset, "knn", lambda a=train, b=test: knn_accuracy(a, b))
            self.write(name, seed, dataset, "linear", lambda a=train, b=test: linear_probe_accuracy(a, b))
            for word in CORRUPTIONS if robust and dataset == "cifar100" else ():

                def noisy(a: Features = train, d: ImageFolder = data, word: str = word) -> float:
                    return knn_accuracy(a, self.features(network, d, "test", lambda x: corrupted(x, word)))

                self.write(name, seed, dataset, f"knn_{word}", noisy)

    def likeness(self, name: str, network: nn.Module, seed: int) -> None:
        """Compare a student with both teachers on the test images of CIFAR-100."""
        data, measures = self.labeled["cifar100"], (linear_cka, mapped_cosine, neighbor_agreement)
        features = self.features(network, data, "test").embedding
        for teacher, member in self.teachers().items():
            member.normalized = (MEAN, STD)
            if all((name, str(seed), "cifar100", f"{m.__name__}_{teacher}") in self.done for m in measures):
                continue
            teacher_features = self.features(observer(member), data, "test").embedding
            for measure in measures:
                value = partial(measure, features, teacher_features)
                self.write(name, seed, "cifar100", f"{measure.__name__}_{teacher}", value)

    def few_labels(self, name: str, network: nn.Module, seed: int) -> None:
        """Fine-tune with 1, 10 and 100 % of the labels."""
        for dataset, data in self.labeled.items():
            for share, epochs in ((0.01, 20), (0.1, 10), (1.0, 2)):
                self.write(
                    name, seed, dataset, f"fine_tuned_{share:g}",
                    lambda d=data, s=share, e=epochs: fine_tuned_accuracy(network, d, s, e, seed=seed),
                )  # fmt: skip

    def run(self, seeds: list[int]) -> None:
        """Measure teachers, then every student of every seed."""
        for seed in seeds:
            for name, network in self.students(seed):
                self.probe(name, network, seed, robust=name in ("label_free", "supervised"))
                if name != "random":
                    self.likeness(name, network, seed)
            if seed == seeds[0]:
                for name, member in self.teachers().items():
                    member.normalized = (MEAN, STD)
                    self.probe(f"teacher_{name}", observer(member), 0, robust=False)
        for seed in seeds:
            for name, network in self.students(seed):
                if name in ("label_free", "random"):
                    self.few_labels(name, network, seed)


def observer(member: Frozen) -> Callable[[Batch], Outputs]:
    """Return a function that runs a teacher with its own preprocessing."""
    return lambda batch: member(batch._replace(progress=None), {})[member.name]


def headless() -> nn.Module:
    """Return the student without a classifier."""
    network = resnet8(num_classes=100)
    network.fc = nn.Identity()
    assert Observer(network.eval())(torch.zeros(2, 3, 32, 32)).embedding is not None
    return network.train()


def schedule(lr: float = 0.01) -> dict[str, Any]:
    """Return optimizer and schedule, the same for all students."""
    optimizer = partial(torch.optim.AdamW, lr=lr, weight_decay=0.02)
    return {"optimizer": optimizer, "lr_scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=lr)}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--ledger")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=100, help="training images of each class of CIFAR-100")
    parser.add_argument("--tested", type=int, default=5000, help="test images of each data set")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--own-images", type=int, default=1000, help="training images of each class of CIFAR-10")
    parser.add_argument("--own-epochs", type=int, default=4, help="epochs of the project's own teacher")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    Study(arguments).run(arguments.seeds)


if __name__ == "__main__":
    main()
