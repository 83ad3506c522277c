"""Whether the fast path costs accuracy: 5 epochs of half of CIFAR-100, plain and fast, from the same seed.

Usage: accuracy.py ROOT teacher TEACHER.safetensors, then for each seed accuracy.py ROOT plain|fast FILE --seed 0
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import save_file

from kdlab import Distiller, Knowledge
from kdlab.data import CIFAR100, ImageFolder
from kdlab.losses import SoftTargets
from kdlab.models import resnet8, resnet20
from kdlab.teaching import Fast


def main() -> None:
    """Train one network and print its accuracy on the test set after the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", help="folder with train.zip and test.zip of CIFAR-100, as ImageFolder takes them")
    parser.add_argument("what", choices=["teacher", "plain", "fast"])
    parser.add_argument("weights", type=Path, help="the teacher's; written by 'teacher', read by the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--images", type=int, default=25_000, help="training images, stratified")
    parser.add_argument("--bf16", action="store_true", help="the fast student in bf16")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pl.seed_everything(given.seed, verbose=False)
    mean, std = CIFAR100.statistics
    data = ImageFolder(given.root, mean, std, padding=4, batch_size=128, seed=given.seed, train_size=given.images)
    student = resnet20(100) if given.what == "teacher" else resnet8(100)
    optimizer = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.2)
    fast = given.what == "fast"
    choice = str(given.weights.with_suffix(".fast.json"))  # one for all seeds
    if given.what == "teacher":
        module = Distiller(student, optimizer=optimizer, lr_scheduler=schedule, channels_last=True)
    else:
        module = Distiller(
            student,
            resnet20(100, weights=str(given.weights)),
            {"kd": Knowledge(SoftTargets(4.0), 0.9)},
            task_weight=0.1,
            optimizer=optimizer,
            lr_scheduler=schedule,
            teacher_fast=Fast(precision="auto", timed=choice) if fast else None,
            channels_last=fast,
        )
    trainer = pl.Trainer(
        max_epochs=given.epochs,
        accelerator="cpu",
        precision="bf16-mixed" if fast and given.bf16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=given.epochs,
        num_sanity_val_steps=0,
    )
    begin = time.perf_counter()
    trainer.fit(module, data)
    if given.what == "teacher":
        save_file({name: value.contiguous() for name, value in module.student.state_dict().items()}, given.weights)
    accuracy = 100 * float(trainer.callback_metrics["val/student_accuracy"])
    print(
        f"{given.what} seed {given.seed} epochs {given.epochs} images {data.sizes['train']} "
        f"precision {trainer.precision}: {accuracy:.2f} % in {time.perf_counter() - begin:.0f} s"
    )


if __name__ == "__main__":
    main()
