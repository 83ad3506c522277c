"""Resume checkpoints that another commit wrote, and compare the final state with that commit's uninterrupted run.

Write with the commit before, resume with the one after, then compare::

    git worktree add ../before COMMIT
    PYTHONPATH=../before python tests/resume_across_commits.py dump FOLDER
    PYTHONPATH=. python tests/resume_across_commits.py resume FOLDER
    python tests/resume_across_commits.py compare FOLDER

Every run takes three epochs of three batches; it is resumed after two epochs, and in the middle of the second one. The
script uses public names alone, so that one copy of it runs on both commits.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, Knowledge, losses, teaching
from kdlab.data import Digits
from kdlab.models import Branched, WithExits, resnet8
from kdlab.optimizers import DOT

EPOCHS, BATCHES = 3, 3
PLACES = {"epoch": 6, "middle": 4}
"""The optimizer steps after which a run is resumed."""


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8(10, in_channels=1)


def nets(count: int) -> dict[str, nn.Module]:
    return {name: net(number) for number, name in enumerate("abc"[:count])}


def branched(**options: Any) -> dict[str, nn.Module]:
    return {"net": Branched(net(0), "layer3", **{"branches": 3, **options})}


def exits() -> dict[str, nn.Module]:
    return {"net": WithExits(net(0), ["layer1", "layer2"], "layer3", image=[1, 8, 8])}


def soft(**options: Any) -> dict[str, Knowledge]:
    return {"soft": Knowledge(losses.SoftTargets(3.0, **options), 0.9)}


def hint() -> dict[str, Knowledge]:
    return {"hint": Knowledge(losses.Hint(), 0.3, student_layers=["layer2"], teacher_layers=["layer2"])}


def co(networks: dict[str, nn.Module], way: Any, knowledge: Any = None, **options: Any) -> CoTrainer:
    return CoTrainer(networks, knowledge or soft(), way, optimizer=sgd, **options)


def distiller(*teachers: nn.Module, **options: Any) -> Distiller:
    return Distiller(net(0), [*teachers], {**soft(), **hint()}, **{"optimizer": sgd, **options})


def cases() -> dict[str, Callable[[], Any]]:
    """Everything that keeps something of its own in checkpoints."""
    t = teaching
    return {
        "frozen teacher": lambda: distiller(net(1)),
        "frozen teacher, DOT": lambda: distiller(net(1), optimizer=lambda p: DOT(p, lr=0.1)),
        "frozen teacher, CRD": lambda: Distiller(net(0), net(1), {"crd": Knowledge(losses.CRD())}, optimizer=sgd),
        "peers": lambda: co(nets(2), t.Peers(), {**soft(), **hint()}),
        "peers, sequential": lambda: co(nets(2), t.Peers("sequential"), {**soft(), **hint()}),
        "average": lambda: co(nets(1), t.MovingAverage(0.9), {**soft(), **hint()}, deploy="average_a"),
        "average, three, view": lambda: co(nets(3), t.MovingAverage(0.9, "copy", "frozen", second_view=True)),
        "gated": lambda: co(branched(), t.Gated("layer2"), deploy="ensemble"),
        "leader": lambda: co(nets(3), t.Leader(), soft(teacher_gradient=True)),
        "peer ensemble": lambda: co(branched(own_inputs=True), t.PeerEnsemble(0.9), deploy="average_net"),
        "peer ensemble, networks": lambda: co(nets(2), t.PeerEnsemble(0.9)),
        "previous epoch": lambda: co(nets(1), t.PreviousEpoch()),
        "previous epoch, half": lambda: co(nets(2), t.PreviousEpoch(dtype="float16")),
        "last batch": lambda: co(nets(1), t.LastMiniBatch()),
        "stale, others": lambda: co(nets(3), t.Stale(2), soft()),
        "stale, self": lambda: co(nets(1), t.Stale(1, "epoch", of="self")),
        "consensus, general": lambda: co(nets(3), t.Consensus(t.General())),
        "exits": lambda: co(exits(), t.DeepestExit(0.5)),
    }


def run(epochs: int, **options: Any) -> pl.Trainer:
    """A silent Trainer."""
    silent = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"limit_train_batches": BATCHES, "limit_val_batches": 2, "num_sanity_val_steps": 0}
    return pl.Trainer(max_epochs=epochs, **{**silent, **limits, **options})


def data() -> Digits:
    return Digits(train_size=64, batch_size=16, validation=64)


def state(trainer: pl.Trainer) -> dict[str, Any]:
    """Everything of a checkpoint that is a number."""
    saved = trainer._checkpoint_connector.dump_checkpoint()
    return {"weights": saved["state_dict"], "optimizer": [each["state"] for each in saved["optimizer_states"]]}


def path(folder: str, name: str, suffix: str) -> Path:
    return Path(folder) / f"{name.replace(', ', '-').replace(' ', '_')}.{suffix}"


def dump(folder: str) -> None:
    """Run every case without interruption, and write its final state and its checkpoints."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, make in cases().items():
        torch.manual_seed(11)
        whole, half = run(EPOCHS, callbacks=[Saved(path(folder, name, "middle.ckpt"))]), run(EPOCHS - 1)
        whole.fit(make(), datamodule=data())
        torch.save(state(whole), path(folder, name, "whole.pt"))
        torch.manual_seed(11)
        half.fit(make(), datamodule=data())
        half.save_checkpoint(path(folder, name, "epoch.ckpt"))
        print(name, flush=True)


class Saved(pl.Callback):
    """A checkpoint in the middle of an epoch."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == PLACES["middle"]:
            trainer.save_checkpoint(self.file)


def resume(folder: str) -> None:
    """Resume every checkpoint, and write the final state."""
    for name, make in cases().items():
        for place in PLACES:
            torch.manual_seed(12)
            rest = run(EPOCHS)
            rest.fit(make(), datamodule=data(), ckpt_path=str(path(folder, name, f"{place}.ckpt")))
            torch.save(state(rest), path(folder, name, f"{place}.pt"))
        print(name, flush=True)


def compare(folder: str) -> int:
    """Print the largest differences; 1 if anything differs by more than 1e-6 of its size."""
    wrong = 0
    for name in cases():
        whole = flat(torch.load(path(folder, name, "whole.pt"), weights_only=False))
        row = [f"{name:26s}"]
        for place in PLACES:
            off, text = apart(whole, flat(torch.load(path(folder, name, f"{place}.pt"), weights_only=False)))
            wrong += off > 1e-6
            row.append(f"{place}: {text}")
        print("  ".join(row))
    print(f"{wrong} wrong")
    return int(bool(wrong))


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference of two states, relative to each tensor's size, and where it is."""
    if one.keys() != other.keys():
        lost, new = sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys())
        return float("inf"), f"only before {lost[:4]}, only after {new[:4]}"
    if bad := [name for name in one if one[name].shape != other[name].shape]:
        return float("inf"), f"other shapes: {bad[:4]}"
    off = {}
    for name, value in one.items():
        if value.numel():
            size = max(float(value.double().abs().max()), 1.0)
            off[name] = float((value.double() - other[name].double()).abs().max()) / size
    worst = max(off, key=lambda name: off[name])
    return off[worst], f"{off[worst]:.2g} ({worst})" if off[worst] else "0"


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors and numbers of a nested container, by path."""
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for part, below in parts for key, leaf in flat(below, f"{name}.{part}").items()}
    return {} if value is None else {name: torch.as_tensor(value)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    command, folder = sys.argv[1:]
    raise SystemExit({"dump": dump, "resume": resume, "compare": compare}[command](folder))
