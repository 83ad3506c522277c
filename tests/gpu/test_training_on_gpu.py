"""Training on a GPU: the values of the CPU, precision, processes, waiting and resuming."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.losses import DKD, Hint, SoftTargets
from kdlab.losses.relation import RKDDistance
from tests.modules.tiny import digits, same, sgd, trainer, weights
from tests.tiers import tiered

KINDS = ["offline", "features", "online"]


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    parts = [nn.Flatten(), nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def module(kind: str) -> Any:
    students = {"a": network(8, 0), "b": network(12, 1)}
    torch.manual_seed(0)
    if kind == "online":
        return CoTrainer(students, {"soft": Knowledge(SoftTargets(3.0))}, optimizer=sgd)
    knowledge = {"dkd": Knowledge(DKD())}
    if kind == "features":
        knowledge = {
            "hint": Knowledge(Hint(), student_layers=["2"], teacher_layers=["2"]),
            "rkd": Knowledge(RKDDistance()),
        }
    return Distiller(students["a"], students["b"], knowledge, optimizer=sgd)


class Losses(pl.Callback):
    """The loss of every step, on the device until it is read."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.seen.append(outputs["loss"].detach().clone())

    def values(self) -> Tensor:
        return torch.stack(self.seen).float().cpu()


def fitted(kind: str, steps: int = 4, **options: Any) -> tuple[Any, Tensor]:
    made, losses = module(kind), Losses()
    options.setdefault("callbacks", [])
    options["callbacks"] = [*options["callbacks"], losses]
    trainer(max_steps=steps, **options).fit(made, digits())
    return made, losses.values()


@pytest.mark.parametrize("kind", tiered(KINDS, ["offline"]))
def test_losses_are_those_of_the_cpu(kind: str, accelerator: str) -> None:
    _, expected = fitted(kind, accelerator="cpu")
    _, seen = fitted(kind, accelerator=accelerator, devices=1)
    torch.testing.assert_close(seen, expected, rtol=2e-3, atol=2e-4)  # TF32 in convolutions, four steps


@pytest.mark.parametrize("kind", tiered(KINDS, ["offline"]))
def test_mixed_precision_scales_and_trains(kind: str, accelerator: str) -> None:
    precision: Literal["16-mixed", "bf16-mixed"] = "16-mixed" if accelerator == "gpu" else "bf16-mixed"
    _, expected = fitted(kind, steps=1, accelerator=accelerator, devices=1)
    scales: list[float] = []

    class Scale(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            scales.append(float(scaler.get_scale()) if scaler else 1.0)

    made, losses = fitted(
        kind,
        steps=3,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        callbacks=[Scale()],
        gradient_clip_val=1.0,
    )
    torch.testing.assert_close(losses[:1], expected, rtol=2e-2, atol=1e-3)  # the logged loss is not the scaled one
    assert all(scale > 1 for scale in scales) == (accelerator == "gpu")
    assert all(bool(torch.isfinite(value).all()) for value in made.state_dict().values())


@pytest.mark.parametrize("kind", tiered(KINDS, ["offline"]))
def test_a_step_does_not_wait_for_the_device(kind: str, device: torch.device, accelerator: str) -> None:
    class NoWaiting(pl.Callback):
        """Every read of a value on the device in the middle of a step is an error."""

        steps = 0

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if device.type == "cuda" and trainer.global_step >= 2:  # the first ones time, check and allocate
                torch.cuda.set_sync_debug_mode("error")

        def on_before_zero_grad(self, *args: Any) -> None:
            self.steps += 1

        def on_train_batch_end(self, *args: Any) -> None:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")

    watch = NoWaiting()
    fitted(kind, steps=5, accelerator=accelerator, devices=1, callbacks=[watch], log_every_n_steps=100)
    assert watch.steps == 5


def test_one_process_of_nccl_is_plain_training(accelerator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    backend = "nccl" if accelerator == "gpu" else "gloo"
    plain, expected = fitted("offline", accelerator=accelerator, devices=1)
    try:
        strategy = DDPStrategy(process_group_backend=backend)
        spread, seen = fitted("offline", accelerator=accelerator, devices=1, strategy=strategy)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(spread.state_dict()[name].cpu(), value.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("kind", tiered(KINDS, ["offline"]))
def test_a_resumed_run_has_the_same_bits(kind: str, accelerator: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"accelerator": accelerator, "devices": 1, "deterministic": "warn"}
    options |= {"enable_checkpointing": True}

    def saves(folder: str) -> list[pl.Callback]:
        return [ModelCheckpoint(tmp_path / folder, save_last=True)]

    try:
        whole = module(kind)  # it seeds what a fit draws, such as an adapter's weights
        trainer(epochs=3, callbacks=saves("whole"), **options).fit(whole, digits())
        trainer(epochs=2, callbacks=saves("begun"), **options).fit(module(kind), digits())
        resumed = module(kind)
        run = trainer(epochs=3, callbacks=saves("begun"), **options)
        run.fit(resumed, digits(), ckpt_path=str(tmp_path / "begun/last.ckpt"), weights_only=False)
    finally:
        torch.use_deterministic_algorithms(False)
    assert same(weights(whole.cpu()), weights(resumed.cpu()))


def test_banks_and_memories_stay_on_the_device(device: torch.device, accelerator: str) -> None:
    from kdlab.data import Digits
    from kdlab.losses import CRD
    from kdlab.models import mlp

    torch.manual_seed(0)
    knowledge: dict[str, Callable[[], Knowledge]] = {"crd": lambda: Knowledge(CRD(negatives=16))}
    made = Distiller(
        mlp(64, [16], 10), mlp(64, [24], 10), {name: make() for name, make in knowledge.items()}, optimizer=sgd
    )
    trainer(max_steps=3, accelerator=accelerator, devices=1).fit(made, Digits(train_size=80, batch_size=16))
    on = {value.device.type for value in (*made.parameters(), *made.buffers())}
    assert on <= {device.type, "cpu"}  # Lightning moves a module back to the CPU at the end
