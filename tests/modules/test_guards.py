"""A number that is not finite stops the training or skips the step, and never replaces a good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import CoTrainer, Distiller, InputError, Knowledge
from kdlab.losses import DIST, SoftTargets
from kdlab.losses.functional import full_precision
from kdlab.outputs import Outputs
from kdlab.teaching import Peers
from tests.modules.tiny import Logged, distiller, network, same, trainer, weights

SIZE = 8
BAD = 29
"""The sample that is not finite: in the fourth batch of five."""


def loader(bad: float | None = math.nan, drop: bool = False) -> DataLoader[Any]:
    """40 samples with their index in batches of 8; one pixel of one sample is ``bad``, or its batch is left out."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 64, generator=generator), torch.arange(40) % 10
    if bad is not None:
        x[BAD, 5] = bad
    index = torch.arange(40)
    rows = index[index // SIZE != BAD // SIZE] if drop else index
    return DataLoader(TensorDataset(x[rows], y[rows], index[rows]), SIZE)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def student(**options: Any) -> Distiller:
    return distiller(student=normed(), optimizer=momentum, **options)


def checkpoints(folder: Path, **every: int) -> dict[str, Any]:
    """A last.ckpt that every step replaces."""
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, **(every or {"every_n_train_steps": 1}))
    return {"callbacks": [last], "enable_checkpointing": True}


class Steep(nn.Module):
    """0 with a gradient that is not a number, from a step on."""

    needs = ("logits",)
    now = False

    def advance(self, epoch: int, step: int) -> None:
        self.now = step == 3

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return (student.logits * (0.0 if self.now else 1.0)).square().sum().sqrt()


def test_a_loss_stops_with_term_step_and_inputs(tmp_path: Path) -> None:
    module = student()
    with pytest.raises(InputError) as caught:
        trainer(2, **checkpoints(tmp_path)).fit(module, loader())
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Loss term 'task', 'soft' is not finite at step 3 of epoch 0.")
    assert "  soft: nan, weight 0.5" in lines
    (inputs,) = (line for line in lines if line.startswith("  inputs: "))
    x = loader().dataset.tensors[0][24:32]  # type: ignore[attr-defined]
    finite = x[x.isfinite()]
    assert (
        inputs
        == f"  inputs: (8, 64), from {finite.min():.6g} to {finite.max():.6g}, mean {finite.mean():.6g}, 1 nan, 0 inf"
    )
    assert "  teacher logits: (8, 10)" in str(caught.value)
    assert lines[-1].endswith("of 8 samples (index in the data set): 24, 25, 26, 27, 28, 29, 30, 31")  # by BatchNorm
    good = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert good["global_step"] == 3
    assert all(value.isfinite().all() for value in good["state_dict"].values())


def test_as_on_a_gpu_the_loss_is_read_a_step_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdlab.modules.guards.DELAYED", ("cpu",))
    for every in ({"every_n_train_steps": 1}, {"every_n_train_steps": 3}):  # found by the checkpoint, by the next step
        with pytest.raises(
            InputError, match=r"is not finite at step 3 of epoch 0[\s\S]*student logits.* 80 nan"
        ) as caught:
            trainer(**checkpoints(tmp_path / str(every), **every)).fit(student(), loader())
        assert "earlier step" not in str(caught.value)
        good = torch.load(tmp_path / str(every) / "last.ckpt", weights_only=True)
        assert good["global_step"] == 3
        assert all(value.isfinite().all() for value in good["state_dict"].values())
    with pytest.raises(InputError, match="at step 3 of epoch 0"):
        trainer(max_steps=4).fit(student(), loader())  # the last step


def test_the_sample_is_named() -> None:
    with pytest.raises(InputError, match=r"not finite for 1 of 8 samples \(index in the data set\): 29$"):
        trainer().fit(distiller(), loader(math.inf))


@pytest.mark.filterwarnings("ignore:.*fit")
@pytest.mark.parametrize("on_exception", [False, True])
def test_no_checkpoint_of_a_poisoned_state(tmp_path: Path, on_exception: bool) -> None:
    # The loss is finite and its gradient is not: the state after step 3 is poisoned.
    module = student(knowledge={"steep": Knowledge(Steep())})
    options = checkpoints(tmp_path)
    if on_exception:
        options["callbacks"] += [OnExceptionCheckpoint(tmp_path)]
    with pytest.raises(InputError, match=r"Weights are not finite.*0\.weight, .* and 3 more"):
        trainer(**options).fit(module, loader(None))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    good = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert good["global_step"] == 3
    assert all(value.isfinite().all() for value in good["state_dict"].values())


@pytest.mark.filterwarnings("ignore:.*fit")
def test_statistics_of_batchnorm_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not finite at step 3"):
        trainer(callbacks=[OnExceptionCheckpoint(tmp_path)], enable_checkpointing=True).fit(student(), loader())
    assert not any(tmp_path.iterdir())


def test_a_finite_loss_with_a_bad_gradient_is_found_a_step_later() -> None:
    module = student(knowledge={"steep": Knowledge(Steep())})
    with pytest.raises(InputError, match=r"at step 4 of epoch 0[\s\S]*earlier step left weights that are not finite"):
        trainer().fit(module, loader(None))


@pytest.mark.full
def test_the_last_step_is_checked_too() -> None:
    module = student(knowledge={"steep": Knowledge(Steep())})
    with pytest.raises(InputError, match="Weights are not finite"):
        trainer(max_steps=4).fit(module, loader(None))


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_skipped_step_leaves_no_trace(how: str) -> None:
    def run(drop: bool, **options: Any) -> tuple[Distiller, list[float]]:
        knowledge = {"steep": Knowledge(Steep())} if how == "gradient" and not drop else {}
        module, logged = student(knowledge=knowledge, task_weight=1.0, **options), Logged()
        if knowledge:  # counts in the step of the bad gradient alone
            knowledge["steep"].schedule = lambda progress: float(progress.step == 3)
        data = loader(math.nan if how == "loss" and not drop else None, drop=drop)
        trainer(logger=logged).fit(module, data)
        return module, [row["skipped_steps"] for _, row in logged.rows if "skipped_steps" in row]

    expected, _ = run(drop=True)
    module, counts = run(drop=False, skip_nonfinite=1)
    assert same(weights(module), weights(expected))
    assert counts == [0, 0, 0, 0, 1]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists")
def test_more_steps_than_allowed_stop(tmp_path: Path) -> None:
    module = student(skip_nonfinite=2)
    with pytest.raises(InputError, match=r"at step 13 of epoch 2[\s\S]*2 steps were skipped before"):
        trainer(3, **checkpoints(tmp_path, every_n_epochs=1)).fit(module, loader())
    assert all(value.isfinite().all() for value in weights(module).values())
    resumed = student(skip_nonfinite=2)  # the count is that of the run
    with pytest.raises(InputError, match="2 steps were skipped before"):
        trainer(3, **checkpoints(tmp_path, every_n_epochs=1)).fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt")
    with pytest.raises(InputError, match="at least 0, not -1"):
        student(skip_nonfinite=-1)


@pytest.mark.full
def test_skipped_with_accumulation_and_in_turns() -> None:
    module = student(skip_nonfinite=1)
    trainer(accumulate_grad_batches=2).fit(module, loader())  # batches 2 and 3 are one step
    kept = torch.cat([torch.arange(16), torch.arange(32, 40)])
    data = TensorDataset(*(part[kept] for part in loader(None).dataset.tensors))  # type: ignore[attr-defined]
    expected = student()
    trainer(accumulate_grad_batches=2).fit(expected, DataLoader(data, SIZE))
    assert same(weights(module), weights(expected))
    ends = []
    for drop in (False, True):
        peers = {"a": normed(), "b": network(1)}
        pair = CoTrainer(peers, {}, Peers("sequential"), optimizer=momentum, skip_nonfinite=2 * (not drop))
        trainer().fit(pair, loader(drop=drop))
        ends.append(weights(pair))
    assert same(*ends)


def by_hand(module: Distiller, batches: int, parts: int = 1) -> dict[str, float]:
    """Norms and cosine of the first step's gradients, from the terms alone."""
    network, teacher = module.student, module.teacher.frozen[0].network  # type: ignore[union-attr]
    sums: dict[str, Tensor] = {}
    for number, (x, y, _) in enumerate(loader(None)):
        if number == batches:
            break
        student, target = network(x), (teacher(x) / 2).softmax(1)
        soft = (target * (target.log() - (student / 2).log_softmax(1))).sum(1).mean() * 4
        for name, value in {"task": nn.functional.cross_entropy(student, y), "soft": soft * 0.5}.items():
            gradient = torch.autograd.grad(value / batches, list(network.parameters()), retain_graph=True)
            flat = torch.cat([part.flatten() for part in gradient]).detach()
            sums[name] = sums.get(name, torch.zeros_like(flat)) + flat
    cosine = float(sums["soft"] @ sums["task"] / sums["soft"].norm() / sums["task"].norm())
    return {
        "grad/task_norm": float(sums["task"].norm()),
        "grad/soft_norm": float(sums["soft"].norm()),
        "grad/soft_cosine": cosine,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]},
        {"log_every_n_steps": 2},
    ],
    ids=["plain", "accumulated", "scaled", "seldom"],
)
def test_gradients_of_terms(options: dict[str, Any]) -> None:
    frozen = lambda parameters: torch.optim.SGD(parameters, lr=0.0)  # noqa: E731
    module, logged = distiller(optimizer=frozen, watch_gradients=True), Logged()
    expected = by_hand(module, options.get("accumulate_grad_batches", 1))
    trainer(logger=logged, max_steps=1 if "log_every_n_steps" not in options else 4, **options).fit(
        module, loader(None)
    )
    rows = [row for _, row in logged.rows if "grad/task_norm" in row]
    if "log_every_n_steps" in options:
        assert len(rows) == 2
        return
    got = {name: value for name, value in rows[0].items() if name.startswith("grad/")}
    assert got == pytest.approx(expected, rel=1e-5 if "plugins" not in options else 3e-3)


@pytest.mark.full
def test_watching_changes_no_weight() -> None:
    ends = []
    for watch in (False, True):
        module = distiller(watch_gradients=watch)
        trainer().fit(module, loader(None))
        ends.append(weights(module))
    assert same(*ends)


def test_a_scaler_hides_no_loss() -> None:
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(InputError, match="is not finite at step 3"):
        trainer(plugins=[precision]).fit(student(), loader())
    module = student(skip_nonfinite=1)
    trainer(plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]).fit(module, loader())
    assert all(value.isfinite().all() for value in weights(module).values())


class OnRankOne(pl.Callback):
    """Makes a batch of the second process not finite."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1 and batch_idx == 1:
            batch[0][0, 0] = math.nan


class Compare(pl.Callback):
    """Both processes end with the same finite weights, one step skipped."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        flat = torch.cat([value.flatten() for value in pl_module.parameters()]).detach()
        both = trainer.strategy.all_gather(flat)
        assert both.isfinite().all()
        assert torch.equal(both[0], both[1])
        assert pl_module._guards.callbacks[-1].skipped == 1


@pytest.mark.parametrize(
    ("loss", "logits"),
    [
        # https://github.com/MakazhanAlpamys/Soup/issues/719: finite reverse KL, gradient not a number
        (SoftTargets(0.05), 60.0),
        # https://github.com/lightonai/pylate/issues/239: 1e-8 is 0 in float16, so equal scores divide by 0
        (DIST(), 0.0),
    ],
    ids=["low temperature", "equal scores"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_public_reports_of_nan(loss: nn.Module, logits: float, dtype: torch.dtype) -> None:
    scores = (torch.eye(4, 10) * logits).to(dtype)
    one, two = scores.clone().requires_grad_(), scores.flip(1)
    with torch.autocast("cpu", torch.float16, enabled=dtype is torch.float16):
        value = full_precision(type(loss).forward)(loss, Outputs(one), Outputs(two), torch.arange(4))
    value.backward()
    assert value.isfinite()
    assert one.grad is not None
    assert one.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("skip", [0, 1])
def test_processes_agree(skip: int) -> None:
    module = distiller(student=network(0, (16,)), skip_nonfinite=skip)
    run = trainer(strategy="ddp_fork", devices=2, callbacks=[OnRankOne(), *([Compare()] if skip else [])])
    if skip:
        run.fit(module, loader(None))
    else:
        with pytest.raises(Exception, match="on process 1"):
            run.fit(module, loader(None))
