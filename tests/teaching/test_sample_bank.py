"""What was said of each sample: written when it is time, read the epoch after, kept in checkpoints."""

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
from kdlab.schedules import Constant, Linear
from kdlab.teaching import Alone, LastMiniBatch, PreviousEpoch
from tests.modules.tiny import digits, network, pairs, same, sgd, trainer, weights

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
    """In epoch 0 for any weight, since the memory is one-hot; with weight 0 always."""
    ours, theirs = ps_kd(last, 3), plain()
    for module in (ours, theirs):
        trainer(epochs).fit(module, digits())
    for key, value in weights(theirs.networks["net"]).items():
        assert float((weights(ours.networks["net"])[key] - value).abs().max()) < 1e-6, key


class Said(pl.Callback):
    """What the network said of each sample in each epoch, by an independent forward before each step."""

    def __init__(self) -> None:
        self.epochs: list[dict[int, torch.Tensor]] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        self.epochs.append({})

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
        with torch.no_grad():
            logits = module.networks["net"](batch.inputs)
        self.epochs[-1].update(dict(zip(batch.index.tolist(), logits, strict=True)))


@pytest.mark.parametrize(("every", "read_at"), [(1, {1: 0, 2: 1}), (2, {2: 1, 3: 1})])
def test_the_teacher_is_what_was_said_then(every: int, read_at: dict[int, int]) -> None:
    said = Said()

    class Check(pl.Callback):
        checked = 0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
            epoch = trainer.current_epoch
            if epoch in read_at:
                outputs = {"net": Outputs(torch.zeros(len(batch.target), 10), index=batch.index)}
                (lesson,) = module.teaching.lessons(outputs, batch)
                expected = torch.stack([said.epochs[read_at[epoch]][i] for i in batch.index.tolist()])
                torch.testing.assert_close(lesson.teacher.logits, expected)
                self.checked += 1

    check = Check()
    module = ps_kd(every=every, epochs=4)
    module.teaching.advance(0, 0)
    trainer(4, callbacks=[said, check]).fit(module, digits())
    assert check.checked == 5 * len(read_at)


def test_waiting_means_no_lesson_before_the_first_refreshment() -> None:
    module = ps_kd(every=2, wait=True)
    seen: list[bool] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            seen.append("loss/past" in trainer.callback_metrics)

    trainer(3, callbacks=[Watch()]).fit(module, digits())
    assert seen == [False, False, True]


def test_nothing_of_the_graph_is_kept() -> None:
    module = ps_kd()
    trainer(1).fit(module, digits())
    table = module.teaching.table("net")
    assert not table.remembered.requires_grad
    assert table.remembered.grad_fn is None
    assert table.known.all()


def test_halves_are_enough_and_labels_exact() -> None:
    module = ps_kd(dtype="float16")
    trainer(1).fit(module, digits())
    assert module.teaching.table("net").remembered.dtype == torch.float16
    teaching = PreviousEpoch(dtype="float16")
    teaching.adopt({}, ["net"])
    outputs = {"net": Outputs(torch.randn(4, 10), index=torch.arange(4))}
    teaching.prepare(outputs, 4)
    target = torch.tensor([1, 0, 9, 4])
    (lesson,) = teaching.lessons(outputs, Batch(torch.empty(0), target))
    expected = F.cross_entropy(outputs["net"].logits, target)
    for loss in (SoftLabels(), SoftTargets(1.0)):
        torch.testing.assert_close(loss(outputs["net"], lesson.teacher, target), expected)


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    """Stopped in the middle of an epoch: same bits, and the same memory, as a run that was not."""
    whole = ps_kd()
    trainer(3).fit(whole, digits())
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=7, save_top_k=-1)
    first = ps_kd()
    trainer(max_steps=7, enable_checkpointing=True, callbacks=[keep]).fit(first, digits())
    second = ps_kd()
    trainer(3).fit(second, digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert same(weights(second), weights(whole))
    assert any(key.endswith("remembered") for key in weights(whole))


@pytest.mark.parametrize("stop", [7, 10])
def test_the_last_mini_batch_goes_on_after_a_stop(stop: int, tmp_path: Path) -> None:
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


def test_the_last_mini_batch_is_that_of_the_step_before() -> None:
    batches: list[list[int]] = []
    lessons: list[Any] = []

    class Watch(LastMiniBatch):
        def lessons(self, outputs: Any, batch: Batch) -> Any:
            found = super().lessons(outputs, batch)
            if not self.is_rehearsing:
                batches.append(batch.index.tolist())
                lessons.append([] if not found else found[0].student.index.tolist())
            return found

    module = CoTrainer({"net": network()}, {"soft": Knowledge(SoftTargets(3.0))}, Watch(), optimizer=sgd)
    trainer(2).fit(module, digits())
    assert lessons[0] == []
    assert lessons[1:] == batches[:-1]
    assert len(batches) == 10


def test_loaders_without_index_are_refused() -> None:
    with pytest.raises(InputError, match="yields \\(inputs, labels, index\\)"):
        trainer(1).fit(ps_kd(), pairs())


def test_lessons_can_be_switched_off_and_on() -> None:
    module = CoTrainer(
        {"net": network()},
        {"past": Knowledge(SoftLabels(), 0.5, Constant(begin=1))},
        PreviousEpoch(),
        optimizer=sgd,
    )
    trainer(2).fit(module, digits())
    assert module.teaching.table("net").known.all()
