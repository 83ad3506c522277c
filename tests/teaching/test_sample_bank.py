"""Banks of past outputs: written in time, read the epoch after, kept in checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import SoftLabels, SoftTargets
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Constant, Linear, Progress
from kdlab.teaching import Alone, LastMiniBatch, PreviousEpoch
from tests.modules.tiny import digits, network, pairs, same, sgd, trainer, weights
from tests.teaching.step import Given, compared, seen_by

# The resumed run keeps no checkpoints of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")


def ps_kd(last: float = 0.8, epochs: int = 3, **options: Any) -> CoTrainer:
    ramp = Linear(epochs, end=last, offset=1)
    return CoTrainer(
        {"net": network()},
        {"past": Knowledge(SoftLabels(), 1.0, ramp)},
        PreviousEpoch(**options),
        task_schedule=Linear(epochs, start=1.0, end=1 - last, offset=1),
        optimizer=sgd,
    )


def plain() -> CoTrainer:
    return CoTrainer({"net": network()}, optimizer=sgd, teaching=Alone())


@pytest.mark.parametrize(("last", "epochs"), [(0.8, 1), (0.3, 1), (0.0, 2)])
def test_without_a_past_it_is_cross_entropy(last: float, epochs: int) -> None:
    """In epoch 0 for any weight, since the bank is one-hot; with weight 0 always."""
    taught, alone = ps_kd(last, 3), plain()
    for module in (taught, alone):
        trainer(epochs).fit(module, digits())
    for key, value in weights(alone.networks["net"]).items():
        assert float((weights(taught.networks["net"])[key] - value).abs().max()) < 1e-6, key


class Forwards(pl.Callback):
    """The network's logits of each sample in each epoch, by an independent forward before each step."""

    def __init__(self) -> None:
        self.epochs: list[dict[int, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.epochs.append({})

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
        with torch.no_grad():
            logits = module.networks["net"](batch.inputs)
        self.epochs[-1].update(dict(zip(batch.index.tolist(), logits, strict=True)))


@pytest.mark.parametrize(("every", "read_at"), [(1, {1: 0, 2: 1}), (2, {2: 1, 3: 1})])
def test_teacher_is_the_recorded_epochs_output(every: int, read_at: dict[int, int]) -> None:
    past = Forwards()

    class Check(pl.Callback):
        checked = 0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
            epoch = trainer.current_epoch
            if epoch in read_at:
                outputs = {"net": Outputs(torch.zeros(len(batch.target), 10), index=batch.index)}
                bank = module.plan.members["net@past"]
                teacher = bank(batch._replace(progress=Progress(epoch, trainer.global_step)), outputs)["net@past"]
                expected = torch.stack([past.epochs[read_at[epoch]][i] for i in batch.index.tolist()])
                torch.testing.assert_close(teacher.logits, expected)
                self.checked += 1

    check = Check()
    module = ps_kd(every=every, epochs=4)
    trainer(4, callbacks=[past, check]).fit(module, digits())
    assert check.checked == 5 * len(read_at)


def test_wait_skips_edges_before_the_first_recording() -> None:
    module = ps_kd(every=2, wait=True)
    seen: list[bool] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seen.append("loss/past" in trainer.callback_metrics)

    trainer(3, callbacks=[Watch()]).fit(module, digits())
    assert seen == [False, False, True]


def test_bank_keeps_nothing_of_the_graph() -> None:
    module = ps_kd()
    trainer(1).fit(module, digits())
    bank = module.teaching.tables["net"]
    assert not bank.remembered.requires_grad
    assert bank.remembered.grad_fn is None
    assert bank.known.all()


def test_float16_rows_and_exact_labels() -> None:
    module = ps_kd(dtype="float16")
    trainer(1).fit(module, digits())
    assert module.teaching.tables["net"].remembered.dtype == torch.float16
    target, z = torch.tensor([1, 0, 9, 4]), torch.randn(4, 10)
    batch = Batch(torch.empty(4, 1), target, torch.arange(4))
    expected = F.cross_entropy(z, target)
    for loss in (SoftLabels(), SoftTargets(1.0)):
        fresh = CoTrainer({"net": Given(z)}, {"soft": Knowledge(loss)}, PreviousEpoch(dtype="float16"))
        bank = fresh.plan.members["net@past"]
        bank.setup(4)
        bank.is_dry_run = True  # sizes the bank
        seen, batch = seen_by(fresh, batch)
        torch.testing.assert_close(compared(fresh, seen, batch)["net", "net@past"], expected)


def test_resume_mid_epoch_keeps_the_bank(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch: the same bits, the bank's too, as a run that was not."""
    whole = ps_kd()
    trainer(3).fit(whole, digits())
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=7, save_top_k=-1)
    first = ps_kd()
    trainer(max_steps=7, enable_checkpointing=True, callbacks=[keep]).fit(first, digits())
    second = ps_kd()
    trainer(3).fit(second, digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert same(weights(second), weights(whole))
    assert any(key.endswith("remembered") for key in weights(whole))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_checkpoint_loads_into_an_unsized_bank(dtype: str, tmp_path: Path) -> None:
    """As for a test or an export: without a dry run."""
    module, fresh = ps_kd(dtype=dtype), ps_kd(dtype=dtype)
    run = trainer(1)
    run.fit(module, digits())
    run.save_checkpoint(tmp_path / "end.ckpt")
    (metrics,) = trainer().test(fresh, digits(), ckpt_path=tmp_path / "end.ckpt", weights_only=True, verbose=False)
    assert same(weights(fresh), weights(module))
    assert fresh.teaching.tables["net"].remembered.dtype == getattr(torch, dtype)
    assert "test/deployed_accuracy" in metrics


@pytest.mark.parametrize("stop", [7, 10])
def test_last_mini_batch_resumes_bit_exact(stop: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and between two."""

    def dlb() -> CoTrainer:
        return CoTrainer({"net": network()}, {"soft": Knowledge(SoftTargets(3.0))}, LastMiniBatch(), optimizer=sgd)

    whole = dlb()
    trainer(3).fit(whole, digits(padding=1))
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=stop, save_top_k=-1)
    trainer(max_steps=stop, enable_checkpointing=True, callbacks=[keep]).fit(dlb(), digits(padding=1))
    second = dlb()
    trainer(3).fit(second, digits(padding=1), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert same(weights(second), weights(whole))


class Watching(SoftTargets):
    """Keeps the positions of the samples that it compares."""

    def __init__(self) -> None:
        super().__init__(3.0)
        self.read: list[list[int]] = []

    def forward(self, student: Outputs, teacher: Outputs, target: torch.Tensor) -> torch.Tensor:
        assert student.index is not None
        assert teacher.index is not None
        assert torch.equal(student.index, teacher.index)
        self.read.append(student.index.tolist())
        return super().forward(student, teacher, target)


def test_last_mini_batch_is_that_of_the_step_before() -> None:
    batches: list[list[int]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
            batches.append(batch.index.tolist())

    loss = Watching()
    module = CoTrainer({"net": network()}, {"soft": Knowledge(loss)}, LastMiniBatch(), optimizer=sgd)
    trainer(2, callbacks=[Watch()]).fit(module, digits())
    assert len(batches) == 10
    assert loss.read[1:] == batches[:-1]  # the first is the dry run's; the first step has none


@pytest.mark.parametrize("count", [0, 2, 4])
def test_labels_of_the_last_batch_count_by_its_samples(count: int) -> None:
    module = CoTrainer({"net": network()}, {"soft": Knowledge(SoftTargets())}, LastMiniBatch())
    z, target, again = torch.randn(4, 10), torch.tensor([1, 0, 9, 4]), torch.arange(count)
    seen = {"net": Outputs(z), "net@last_batch": Outputs(2 * z[:count], target=again)}
    value = module.supervised(seen, Batch(torch.empty(4, 1), target))
    assert value is not None
    assert value.item() == pytest.approx(
        float(F.cross_entropy(torch.cat([z, 2 * z[:count]]), torch.cat([target, again])))
    )


def test_loaders_without_index_raise() -> None:
    with pytest.raises(InputError, match="yields \\(inputs, labels, index\\)"):
        trainer(1).fit(ps_kd(), pairs())


def test_bank_records_while_the_knowledge_is_off() -> None:
    module = CoTrainer(
        {"net": network()},
        {"past": Knowledge(SoftLabels(), 0.5, Constant(begin=1))},
        PreviousEpoch(),
        optimizer=sgd,
    )
    trainer(2).fit(module, digits())
    assert module.teaching.tables["net"].known.all()
