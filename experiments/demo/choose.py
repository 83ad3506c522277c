"""Choose the setting of ``kdlab demo`` on held-out training images; the test images are never read.

    OMP_NUM_THREADS=1 python -m experiments.demo.choose

300 of the 1,297 training images are held out, the same for all. With and without Mixup, which both students see alike,
the learning rate is that with the best mean accuracy of the student ALONE on the held-out images; then the temperature
is that with the best mean accuracy of the distilled student. Of these two settings it is that with the largest mean
gain, in units of its standard deviation over the seeds. Seeds are 100 to 104, which the demo does not use. Each
training is a row of ``trials.csv``; what has a row there is not trained again.
"""

from __future__ import annotations

import csv
import logging
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdlab.data import Digits
from kdlab.data.subsets import stratified
from kdlab.studies.digits_demo import ALONE, DISTILLED, TEACHER_EPOCHS, Run, Setting, train_student, train_teacher

TRIALS = Path(__file__).with_name("trials.csv")
SEEDS = range(100, 105)
MIXUPS, RATES, TEMPERATURES = (1.0, 0.0), (0.003, 0.01), (4.0, 8.0)
UNREAD = 4.0
"""Temperature in the rows of the student alone, which does not read it."""
HELD_OUT = 300


class HeldOut(Digits):
    """The training images of the digits alone: 997 to train and 300 in the place of the test images."""

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Return the images, (N, 1, 8, 8) uint8, and labels, (N,) int64, of one part."""
        images, labels = super().read(train=True)
        chosen = torch.zeros(len(labels), dtype=torch.bool)
        chosen[stratified(labels, HELD_OUT, seed=1)] = True
        return images[chosen != train], labels[chosen != train]


def best(settings: Sequence[Setting], accuracies: Sequence[Sequence[float]]) -> int:
    """Return the position of the setting with the best mean accuracy; of equal ones the first."""
    means = [statistics.mean(values) for values in accuracies]
    return means.index(max(means))


def main() -> None:
    """Train everything and print what is chosen."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    known = recorded()
    teacher = train_teacher(HeldOut, TEACHER_EPOCHS, _silent)
    with TRIALS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not known:
            writer.writerow([*Setting._fields, "network", "seed", "accuracy"])

        def measured(name: str, setting: Setting) -> list[float]:
            accuracies = []
            for seed in SEEDS:
                if (key := (setting, name, seed)) not in known:
                    run: Run = train_student(name, seed, teacher.network, setting, HeldOut, _silent)
                    known[key] = run.last("student_accuracy")
                    writer.writerow([*setting, name, seed, known[key]])
                    file.flush()
                accuracies.append(known[key])
            return accuracies

        chosen: list[tuple[float, Setting]] = []
        for mixup in MIXUPS:
            plain = [Setting(mixup=mixup, rate=rate, temperature=UNREAD) for rate in RATES]
            alone = [measured(ALONE, setting) for setting in plain]
            first = best(plain, alone)
            soft = [plain[first]._replace(temperature=value) for value in TEMPERATURES]
            distilled = [measured(DISTILLED, setting) for setting in soft]
            second = best(soft, distilled)
            gains = [100 * (b - a) for a, b in zip(alone[first], distilled[second], strict=True)]
            mean, std = statistics.mean(gains), statistics.stdev(gains)
            print(f"{soft[second]}: gain {mean:+.2f} ± {std:.2f}", flush=True)
            chosen.append((mean / std, soft[second]))
    print("chosen:", max(chosen)[1])


def recorded() -> dict[tuple[Setting, str, int], float]:
    """Return the accuracies in :data:`TRIALS` by setting, network and seed."""
    if not TRIALS.is_file():
        return {}
    with TRIALS.open(newline="") as file:
        return {
            (setting_of(row), row["network"], int(row["seed"])): float(row["accuracy"]) for row in csv.DictReader(file)
        }


def setting_of(row: Mapping[str, str]) -> Setting:
    """Return the setting of a row of :data:`TRIALS`."""
    return Setting(**{name: type(value)(row[name]) for name, value in Setting._field_defaults.items()})


def _silent(name: str, seed: int, epochs: int) -> pl.Callback:
    return pl.Callback()


if __name__ == "__main__":
    main()
