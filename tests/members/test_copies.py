"""Untrained copies of learners: averages and snapshots as members, and under SyncBatchNorm conversion."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn

from kdlab import CoTrainer, InputError
from kdlab.members import EMA, Learner, Snapshot
from kdlab.members.copies import Copies
from kdlab.outputs import Batch
from kdlab.schedules import Progress
from kdlab.teaching import MovingAverage, Stale
from tests.losses.slow import draw
from tests.modules.cotraining import cotrainer, image_net
from tests.modules.tiny import digits, same, trainer, weights


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()


def batch_at(step: int, epoch: int = 0) -> Batch:
    return Batch(draw(6, 3), torch.zeros(6, dtype=torch.long), progress=Progress(epoch, step))


def change(net: nn.Module, seed: int) -> None:
    """Change weights and floating buffers, as a step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator, dtype=value.dtype))


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_average_of_weights_and_buffers(buffers: str) -> None:
    """a_t = min(1 - 1 / (t + 1), a) after the t-th step."""
    learner = Learner("net", small())
    member = EMA("average", learner, 0.6, buffers)
    expected = weights(member.network)
    for step in (1, 2, 3):
        change(learner.network, step)
        member.on_step_end(Progress(0, step))
        decay = min(1 - 1 / (step + 1), 0.6)
        for key, value in weights(learner.network).items():
            averaged = value.is_floating_point() and (buffers == "average" or "running" not in key)
            expected[key] = decay * expected[key] + (1 - decay) * value if averaged else value
    for key, value in weights(member.network).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("unit", "renewed"), [("step", [2, 4]), ("epoch", [])])
def test_snapshot_gives_nothing_before_the_first_exchange(unit: Any, renewed: list[int]) -> None:
    learner = Learner("net", small())
    member = Snapshot("stale", learner, 2, unit)
    for step in range(5):
        change(learner.network, step)
        before = weights(member.network)
        outputs = member(batch_at(step), {})
        assert bool(outputs) == (step >= 2 and unit == "step")
        assert same(weights(member.network), before) == (step not in renewed)
    assert member(batch_at(10, epoch=2), {}).keys() == {"stale"}
    assert same(weights(member.network), weights(learner.network))


def test_a_snapshot_catches_up_after_steps_that_it_did_not_see() -> None:
    learner = Learner("net", small())
    member = Snapshot("stale", learner, 2)
    change(learner.network, 1)
    assert member(batch_at(5), {}).keys() == {"stale"}
    assert member.updates == 2
    assert same(weights(member.network), weights(learner.network))


def test_a_dry_run_exchanges_no_snapshot() -> None:
    learner = Learner("net", small())
    member = Snapshot("stale", learner, 1)
    before = weights(member.network)
    change(learner.network, 1)
    member.is_dry_run = True
    assert member(batch_at(1), {}).keys() == {"stale"}
    member.is_dry_run = False
    assert member(batch_at(0), {}) == {}
    assert same(weights(member.network), before)


def test_an_average_is_evaluated_with_running_statistics() -> None:
    member = EMA("average", Learner("net", small()), 0.5)
    batch = batch_at(1)
    few = batch._replace(inputs=batch.inputs[:2], target=batch.target[:2])

    def apart(progress: Progress | None) -> float:
        every, part = (member(each._replace(progress=progress), {})["average"].logits for each in (batch, few))
        return float((every[:2] - part).abs().max())

    assert apart(None) < 1e-12
    assert apart(batch.progress) > 0.01


def test_a_copy_of_several_inputs_is_left_in_eval_mode() -> None:
    learner = Learner("net", small())
    learner.inputs = ("", "other")
    member = EMA("average", learner, 0.5)
    member.observe(batch_at(1).inputs, batch_at(1))
    assert not member.network.training


def test_copies_stay_in_eval_mode_and_without_gradient() -> None:
    learner = Learner("net", small())
    copies = Copies([EMA("average", learner, 0.5)])
    nn.ModuleList([copies]).train()
    assert not any(part.training for part in copies.modules())
    assert not any(weight.requires_grad for weight in copies.parameters())
    assert all(weight.requires_grad for weight in learner.network.parameters())


def sync(module: CoTrainer, monkeypatch: pytest.MonkeyPatch) -> TorchSyncBatchNorm:
    """Convert BatchNorm as Trainer(sync_batchnorm=True) does; one process needs no exchange, on any device."""
    plugin = TorchSyncBatchNorm()
    plugin.apply(module)
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", nn.BatchNorm2d.forward)
    monkeypatch.setattr(nn.SyncBatchNorm, "_check_input_dim", lambda self, x: None)
    return plugin


@pytest.mark.parametrize("batchnorm", ["batch", "frozen"])
def test_average_is_the_same_under_syncbatchnorm(batchnorm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = cotrainer({"net": image_net()}, teaching=MovingAverage(0.9, batchnorm=batchnorm))
    converted = copy.deepcopy(plain)
    trainer(max_steps=3).fit(plain, digits())
    plugin = sync(converted, monkeypatch)
    trainer(max_steps=3).fit(converted, digits())
    average = converted.teaching.copies.networks["net"]
    assert any(isinstance(part, nn.SyncBatchNorm) for part in average.modules())
    assert not any(part.training for part in average.modules())
    plugin.revert(converted)
    assert not any(isinstance(part, nn.SyncBatchNorm) for part in converted.modules())
    assert not any(part.training for part in average.modules())
    assert same(weights(converted), weights(plain))


def test_reverted_average_answers_without_changing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = cotrainer({"net": image_net()}, teaching=MovingAverage(0.9), deploy="average_net")
    plugin = sync(module, monkeypatch)
    trainer(max_steps=2).fit(module, digits())
    plugin.revert(module)
    images: Tensor = torch.rand(4, 1, 8, 8)
    before = weights(module.teaching.copies)
    first, second = module(images), module(images[:2])
    torch.testing.assert_close(first[:2], second)  # running statistics, not the batch's
    assert same(weights(module.teaching.copies), before)


def test_snapshot_follows_after_syncbatchnorm_conversion() -> None:
    module = cotrainer({"net": image_net()}, teaching=Stale(1, of="self"))
    plugin = TorchSyncBatchNorm()
    plugin.apply(module)
    change(module.networks["net"], 1)
    member = module.plan.members["stale@net"]
    batch = Batch(torch.rand(4, 1, 8, 8), torch.zeros(4).long(), progress=Progress(0, 1))
    member(batch, {})
    assert same(weights(module.teaching.copies.networks["net"]), weights(module.networks["net"]))
    plugin.revert(module)
    assert same(weights(module.teaching.copies.networks["net"]), weights(module.networks["net"]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MovingAverage(1.0), "decay is at least 0 and below 1, not 1.0"),
        (lambda: MovingAverage(1.5), "decay is at least 0"),
        (lambda: MovingAverage(-0.1), "decay is at least 0"),
        (lambda: MovingAverage(buffers="sum"), "buffers is 'average' or 'copy', not 'sum'"),  # type: ignore[arg-type]
        (lambda: MovingAverage(batchnorm="off"), "batchnorm is 'frozen' or 'batch'"),  # type: ignore[arg-type]
        (lambda: Stale(0), "every 1 or more steps, not 0"),
        (lambda: Stale(1, "day"), "unit is 'step' or 'epoch', not 'day'"),  # type: ignore[arg-type]
        (lambda: Stale(1, of="us"), "of is 'others' or 'self', not 'us'"),  # type: ignore[arg-type]
        (lambda: cotrainer({"net": small()}, teaching=Stale(1)), "at least two networks"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_decay_of_0_is_allowed() -> None:
    EMA.check(0, "copy", "frozen")
    Snapshot.check(1, "epoch", "batch")


class Mode(nn.Module):
    """A network that keeps whether it ran in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.modes = nn.Linear(3, 2).double(), list[bool]()

    def forward(self, *inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        output: Tensor = self.layer(inputs[0])
        return output


@pytest.mark.parametrize(("inputs", "training"), [(("",), False), (("", "other"), True)])
def test_a_copy_is_in_train_mode_where_its_network_splits_inputs(inputs: tuple[str, ...], training: bool) -> None:
    learner = Learner("net", Mode())
    learner.inputs = inputs
    member = EMA("average", learner, 0.5)
    batch = batch_at(1)
    member.observe(batch.inputs, batch)
    member.observe(batch.inputs, batch._replace(progress=None))
    assert member.network.modes[-2:] == [training, False]


def test_a_copy_carries_no_gradient() -> None:
    learner = Learner("net", small())
    member = EMA("average", learner, 0.5, "copy")
    for decay in (0.0, 0.5):
        member.follow(decay, False)
        assert not any(value.requires_grad for value in member.network.state_dict(keep_vars=True).values())
    assert not member.observe(draw(6, 3).requires_grad_(), batch_at(1)).logits.requires_grad


def test_updates_are_kept_for_checkpoints() -> None:
    teaching = MovingAverage(0.5)
    teaching.plan({name: Learner(name, small()) for name in "ab"})
    teaching.set_extra_state(torch.tensor(3))
    assert [member.updates for member in teaching.copies.members] == [3, 3]
    assert teaching.get_extra_state().item() == 3
