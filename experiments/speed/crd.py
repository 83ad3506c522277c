"""What CRD costs: a step with it beside the same step without, student and teacher included, in one run.

Usage: python experiments/speed/crd.py [--pairs 20] [--threads 1]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.losses import CRD
from kdlab.losses.setting import Setting
from kdlab.models import resnet20, resnet56
from kdlab.outputs import Observer, Outputs

SAMPLES, BATCH, CLASSES = 50_000, 64, 100


class Steps:
    """resnet56 teaches resnet20 on random images of CIFAR-100's form; the labels are the plain step's only target."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        student, self.teacher = resnet20(CLASSES), resnet56(CLASSES).eval().requires_grad_(False)
        self.student_seen, self.teacher_seen = Observer(student), Observer(self.teacher)
        self.labels = torch.randint(CLASSES, (SAMPLES,))
        self.crd = CRD(negatives=16_384)
        self.crd.set_up(Setting(student, (self.teacher,), samples=SAMPLES, labels=self.labels))
        index = torch.randperm(SAMPLES)[:BATCH]
        self.crd(*self.outputs(torch.randn(BATCH, 3, 32, 32), index), self.labels[index])  # sizes its parts
        parameters: list[nn.Parameter] = [*student.parameters(), *self.crd.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def outputs(self, images: Tensor, index: Tensor) -> tuple[Outputs, Outputs]:
        """Both networks on a batch."""
        student = dataclasses.replace(self.student_seen(images), index=index)
        with torch.no_grad():
            return student, self.teacher_seen(images)

    def seconds(self, with_crd: bool) -> float:
        """One training step, timed without the making of its data."""
        images, index = torch.randn(BATCH, 3, 32, 32), torch.randperm(SAMPLES)[:BATCH]
        labels = self.labels[index]
        begin = time.perf_counter()
        student, teacher = self.outputs(images, index)
        loss = F.cross_entropy(student.logits, labels)
        if with_crd:
            loss = loss + 0.8 * self.crd(student, teacher, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if with_crd:
            self.crd.after_backward()
        self.optimizer.step()
        return time.perf_counter() - begin


def main() -> None:
    """Alternate both steps and print medians and the median of the ratios of neighbours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    steps = Steps()
    for _ in range(2):
        steps.seconds(False), steps.seconds(True)
    plain, contrastive = [], []
    for number in range(given.pairs):
        for with_crd in (False, True) if number % 2 else (True, False):
            (contrastive if with_crd else plain).append(steps.seconds(with_crd))
    ratios = [b / a for a, b in zip(plain, contrastive, strict=True)]
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, {given.threads} thread(s)")
    print(f"plain step   {1e3 * statistics.median(plain):7.1f} ms (student forward, backward, SGD; teacher forward)")
    print(f"with CRD     {1e3 * statistics.median(contrastive):7.1f} ms ({steps.crd.negatives} negatives of {SAMPLES})")
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"ratio        {middle:7.2f}    (quartiles {low:.2f} to {high:.2f}, {given.pairs} pairs)")


if __name__ == "__main__":
    main()
