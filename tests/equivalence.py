"""Compare the losses, gradients, checkpoints and logged values of two commits, for every loss and every teaching.

Run once in each checkout, then compare::

    git worktree add ../before COMMIT
    PYTHONPATH=../before python tests/equivalence.py dump before.pt
    PYTHONPATH=. python tests/equivalence.py dump after.pt
    python tests/equivalence.py compare before.pt after.pt

The script itself uses public names alone, so that one copy of it runs on both commits.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, Knowledge, losses, teaching
from kdlab.data import Digits, Mixed, RandAugment, Rotations
from kdlab.models import Branched, WithExits, resnet8
from kdlab.optimizers import DOT
from kdlab.schedules import Constant

VIEWS = {"rotations": Rotations, "strong": RandAugment, "mixed": Mixed}


class Watch(pl.Callback):
    """Every loss and gradient of a fit."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(outputs["loss"].detach().clone())

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.gradients.append(
            {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad and p.grad is not None}
        )


class Logged(pl.loggers.Logger):
    """What is logged."""

    name, version = "logged", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(metrics)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8(10, in_channels=1)


def soft(**options: Any) -> dict[str, Knowledge]:
    return {"soft": Knowledge(losses.SoftTargets(3.0, **options), 0.9)}


def hint() -> dict[str, Knowledge]:
    return {"hint": Knowledge(losses.Hint(), 0.3, student_layers=["layer2"], teacher_layers=["layer2"])}


def branched(**options: Any) -> nn.Module:
    return Branched(net(0), "layer3", **{"branches": 3, **options})


def exits() -> nn.Module:
    return WithExits(net(0), ["layer1", "layer2"], "layer3", image=[1, 8, 8])


def co(networks: dict[str, nn.Module], way: Any, knowledge: Any = None, **options: Any) -> CoTrainer:
    return CoTrainer(networks, knowledge or soft(), way, **{"optimizer": sgd, **options})


def trio() -> dict[str, nn.Module]:
    return {name: net(number) for number, name in enumerate("abc")}


def pair() -> dict[str, nn.Module]:
    return {name: net(number) for number, name in enumerate("ab")}


def one() -> dict[str, nn.Module]:
    return {"net": net(0)}


def distiller(knowledge: Any = None, teachers: int = 1, **options: Any) -> Distiller:
    given = [net(1 + number) for number in range(teachers)]
    made = soft() if knowledge is None else knowledge
    return Distiller(net(0), given[0] if teachers == 1 else given, made, **{"optimizer": sgd, **options})


def ways() -> dict[str, Callable[[], Any]]:
    """Every way of teaching, with its options."""
    t = teaching
    table: dict[str, Callable[[], Any]] = {
        "plain": lambda: Distiller(net(0), optimizer=sgd),
        "frozen": lambda: distiller({**soft(), **hint()}),
        "frozen, taps only": lambda: distiller(hint()),
        "frozen, not fast": lambda: distiller({**soft(), **hint()}, teacher_fast=None),
        "frozen, batch statistics": lambda: distiller(teacher_batchnorm="batch"),
        "frozen, DOT": lambda: distiller(optimizer=lambda p: DOT(p, lr=0.1)),
        "frozen, schedules": lambda: distiller(
            {"soft": Knowledge(losses.SoftTargets(), 0.5, Constant(begin=1))}, task_schedule=Constant(until=1)
        ),
        "frozen, a view": lambda: distiller(
            {"ss": Knowledge(losses.SelfSupervision()), "k": Knowledge(losses.SSKD("ss"))}
        ),
        "ensemble, probabilities": lambda: distiller(teachers=3, teacher_weights=[1.0, 2.0, 3.0]),
        "ensemble, logits": lambda: distiller(teachers=2, ensemble=t.MeanOfLogits()),
        "ensemble, losses": lambda: distiller(teachers=2, ensemble=t.MeanOfLosses()),
        "ensemble, EBKD": lambda: distiller(teachers=2, ensemble=t.EBKD()),
        "ensemble, CAMKD": lambda: distiller(teachers=2, ensemble=t.CAMKD()),
        "ensemble, AEKD": lambda: distiller(teachers=3, ensemble=t.AEKD(nu=0.6)),
        "peers": lambda: co(trio(), t.Peers(), {**soft(), **hint()}),
        "peers, branches": lambda: co({"net": branched()}, t.Peers()),
        "peers, sequential": lambda: co(pair(), t.Peers("sequential"), {**soft(), **hint()}),
        "alone": lambda: co(one(), t.Alone(), {"zipf": Knowledge(losses.ZipfLabelSmoothing())}),
        "alone, three": lambda: co(trio(), t.Alone(), {"ls": Knowledge(losses.LabelSmoothing())}),
        "exits": lambda: co({"net": exits()}, t.DeepestExit(0.5)),
        "own views": lambda: co(trio(), t.Consensus(own_views=True)),
        "consensus, others": lambda: co(trio(), t.Consensus(others=True)),
        "gated": lambda: co({"net": branched()}, t.Gated("layer2"), deploy="ensemble"),
        "leader": lambda: co(trio(), t.Leader(), soft(teacher_gradient=True)),
        "leader, branches": lambda: co({"net": branched()}, t.Leader(), soft(teacher_gradient=True)),
        "pcl, branches": lambda: co({"net": branched(own_inputs=True)}, t.PeerEnsemble(0.9), deploy="average_net"),
        "pcl, networks": lambda: co(pair(), t.PeerEnsemble(0.9)),
        "average": lambda: co(one(), t.MovingAverage(0.9), {**soft(), **hint()}, deploy="average_net"),
        "average, three, view": lambda: co(trio(), t.MovingAverage(0.9, "copy", "frozen", second_view=True)),
        "average, exits": lambda: co({"net": exits()}, t.MovingAverage(0.9)),
        "stale, two": lambda: co(pair(), t.Stale(2), {**soft(), **hint()}),
        "stale, three": lambda: co(trio(), t.Stale(2)),
        "stale, self": lambda: co(one(), t.Stale(1, "epoch", of="self")),
        "past": lambda: co(one(), t.PreviousEpoch()),
        "past, two, half": lambda: co(pair(), t.PreviousEpoch(dtype="float16")),
        "past, wait": lambda: co(one(), t.PreviousEpoch(1, wait=True)),
        "last batch": lambda: co(one(), t.LastMiniBatch()),
        "last batch, two": lambda: co(pair(), t.LastMiniBatch()),
        "two views": lambda: co(one(), t.TwoViews()),
        "two views, two, gradient": lambda: co(pair(), t.TwoViews(detach=False), soft(teacher_gradient=True)),
        "classmate": lambda: co(one(), t.Classmate()),
        "classmates": lambda: co(one(), t.Classmates(2), {"bake": Knowledge(losses.BAKE())}),
        "accumulated": lambda: co(trio(), t.Peers()),
        "one network's groups": lambda: co(pair(), t.Peers(), parameter_groups={"networks.b": {"lr": 0.01}}),
    }
    for rule in ("Average", "Naive", "MinLogit", "Linear", "General"):
        table[f"consensus, {rule}"] = lambda rule=rule: co(trio(), t.Consensus(getattr(t, rule)()))  # type: ignore[misc]
    return table


def fitted(made: Any, **options: Any) -> dict[str, Any]:
    """Two epochs of three batches, with validation; what came of them."""
    torch.manual_seed(11)
    watch, logged = Watch(), Logged()
    views = {view: VIEWS[view]() for each in made.knowledge.values() for view in each.views}
    silent = {"accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False}
    silent |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1, "max_epochs": 2}
    limits = {"limit_train_batches": 3, "limit_val_batches": 2}
    run = pl.Trainer(logger=logged, callbacks=[watch], **{**silent, **limits, **options})
    run.fit(made, datamodule=Digits(train_size=64, batch_size=16, views=views))
    saved = run._checkpoint_connector.dump_checkpoint()["state_dict"]
    return {
        "loss": watch.losses,
        "gradients": watch.gradients,
        "logged": logged.rows,
        "state": {name: value.clone() for name, value in saved.items()},
    }


def dump(path: str) -> None:
    """Run everything and write it."""
    from tests.modules.test_matrix import CASES, REFUSED, module

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    found: dict[str, Any] = {}
    for name, make in ways().items():
        options = {"accumulate_grad_batches": 2} if name == "accumulated" else {}
        found[name] = fitted(make(), **options)
        print(name, float(found[name]["loss"][-1]), flush=True)
    for loss, way in CASES:
        if (loss, way) not in REFUSED:
            found[f"{loss} / {way}"] = fitted(module(loss, way), max_epochs=1, limit_train_batches=2)
    torch.save(found, path)
    print(len(found), "cases")


def compare(first: str, second: str) -> int:
    """Print what differs; 1 if anything differs by more than 1e-6 of its size."""
    before, after = (torch.load(path, weights_only=False) for path in (first, second))
    equal, close, wrong = 0, [], []
    for name in before:
        if name not in after:
            wrong.append(f"{name}: missing")
            continue
        worst, problems = 0.0, []
        old, new = before[name], after[name]
        for what in ("loss", "gradients", "state", "logged"):
            off, text = _apart(old[what], new[what], what)
            worst = max(worst, off)
            problems += text
        if problems or worst > 1e-6:
            wrong.append(f"{name}: {worst:.2g} {'; '.join(problems[:4])}")
        elif worst:
            close.append(f"{name}: {worst:.2g}")
        else:
            equal += 1
    print(f"{equal} of {len(before)} cases equal to the bit, {len(close)} within 1e-6, {len(wrong)} different")
    print("\n".join([*(f"  close  {each}" for each in close), *(f"  WRONG  {each}" for each in wrong)]))
    return int(bool(wrong))


def _apart(old: Any, new: Any, where: str) -> tuple[float, list[str]]:
    if isinstance(old, dict):
        if old.keys() != new.keys():
            gone, added = sorted(old.keys() - new.keys())[:4], sorted(new.keys() - old.keys())[:4]
            return 0.0, [f"{where}: only before {gone}, only after {added}"]
        parts = [_apart(old[key], new[key], f"{where}.{key}") for key in old]
    elif isinstance(old, list):
        if len(old) != len(new):
            return 0.0, [f"{where}: {len(old)} before, {len(new)} after"]
        parts = [_apart(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        a, b = (torch.as_tensor(each).double() for each in (old, new))
        if a.shape != b.shape:
            return 0.0, [f"{where}: {tuple(a.shape)} before, {tuple(b.shape)} after"]
        off = (a - b).abs().nan_to_num(0.0)
        if torch.equal(a.isnan(), b.isnan()) is False:
            return 0.0, [f"{where}: nan"]
        size = max(float(a.abs().max()), 1.0) if a.numel() else 1.0
        return (float(off.max()) / size if off.numel() else 0.0), []
    return max((off for off, _ in parts), default=0.0), [text for _, texts in parts for text in texts]


if __name__ == "__main__":
    command, *paths = sys.argv[1:]
    raise SystemExit(compare(*paths) if command == "compare" else dump(*paths))
