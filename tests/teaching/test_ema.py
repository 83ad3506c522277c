"""Moving averages and snapshots of networks as their teachers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kdlab import CoTrainer, Knowledge
from kdlab.losses import SoftTargets
from kdlab.members import Learner
from kdlab.outputs import Batch, inputs_of
from kdlab.schedules import Constant, Progress
from kdlab.teaching import MovingAverage, Stale
from tests.losses.slow import draw
from tests.modules.cotraining import cotrainer, image_net, peers, soft, steps
from tests.modules.tiny import digits, network, same, trainer, weights
from tests.teaching.step import first_batch_of, seen_by, teachers


def test_average_follows_its_formula() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            seen.append(weights(module.networks["net"]))

    module = cotrainer({"net": network()}, teaching=MovingAverage(0.6), deploy="average_net")
    start = weights(module.networks["net"])
    steps(module, 4, callbacks=[Watch()])
    average = {key: value.double() for key, value in start.items()}
    for number, after in enumerate(seen, 1):
        decay = min(1 - 1 / (number + 1), 0.6)
        average = {key: decay * value + (1 - decay) * after[key].double() for key, value in average.items()}
    got = weights(module.teaching.copies.networks["net"])
    for key, value in average.items():
        assert float((got[key] - value).abs().max()) < 1e-6, key


def test_average_sees_the_second_view_on_request() -> None:
    module = cotrainer({"net": network()}, teaching=MovingAverage(0.9, second_view=True))
    data = digits(padding=1)
    trainer(max_steps=1).fit(module, data)
    seen, batch = seen_by(module, first_batch_of(data))
    second = inputs_of(batch.view("second"))
    assert not torch.equal(second, batch.inputs)
    torch.testing.assert_close(seen["net"].logits, module.networks["net"](batch.inputs))
    (average,) = module.teaching.copies.networks.values()
    torch.testing.assert_close(teachers(module, seen)["net"], average(second))


def test_average_without_decay_equals_the_network() -> None:
    module = cotrainer({"net": image_net()}, teaching=MovingAverage(0.0, buffers="copy"))
    steps(module, 3)
    copy, own = weights(module.teaching.copies.networks["net"]), weights(module.networks["net"])
    assert all(torch.equal(copy[key], own[key]) for key in own)


@pytest.mark.parametrize("rule", ["average", "copy"])
def test_running_statistics_follow_their_rule(rule: Any) -> None:
    module = cotrainer({"net": image_net()}, teaching=MovingAverage(0.9, buffers=rule))
    steps(module, 3)
    copy, own = weights(module.teaching.copies.networks["net"]), weights(module.networks["net"])
    assert torch.equal(copy["bn1.running_mean"], own["bn1.running_mean"]) == (rule == "copy")
    assert torch.equal(copy["bn1.num_batches_tracked"], own["bn1.num_batches_tracked"])


def test_snapshots_are_exchanged_every_n_steps() -> None:
    seen: list[dict[str, Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
            seen.append(weights(module.networks["b"]))

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            copies = weights(module.teaching.copies.networks["b"])
            last = (number // 2) * 2
            assert all(torch.equal(copies[key], seen[last][key]) for key in copies)
            assert number == last or not all(torch.equal(copies[key], seen[number][key]) for key in copies)

    module = cotrainer(teaching=Stale(2), knowledge=soft())
    run = steps(module, 5, callbacks=[Watch()])
    assert run.global_step == 5
    assert module.teaching.copies.members[0].updates == 2


def test_exchange_comes_before_the_networks_forward() -> None:
    """Running statistics too are those of the last step, not of this one."""
    net = normed()
    teaching = Stale(1, of="self")
    plan = teaching.plan({"net": Learner("net", net)})
    net.train()
    before = weights(net)
    batch, seen = Batch(draw(6, 3), torch.zeros(6, dtype=torch.long), progress=Progress(0, 1)), {}
    for member in plan.members.values():
        seen |= member(batch, seen)
    assert same(weights(teaching.copies.networks["net"]), before)
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])


def test_codistillation_averages_the_others_probabilities() -> None:
    module = cotrainer(peers(3), teaching=Stale(1), knowledge=soft())
    steps(module, 2)
    seen, batch = seen_by(module)
    copies = {name: net(batch.inputs).softmax(1) for name, net in module.teaching.copies.networks.items()}
    found = teachers(module, seen)
    torch.testing.assert_close(found["a"].softmax(1), (copies["b"] + copies["c"]) / 2)
    torch.testing.assert_close(found["c"].softmax(1), (copies["a"] + copies["b"]) / 2)


def test_snapshot_waits_for_the_end_of_a_cycle() -> None:
    losses: list[set[str]] = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            losses.append({key for key in trainer.callback_metrics if key.startswith("loss/")})

    module = cotrainer({"net": network()}, teaching=Stale(1, "epoch", "self"))
    trainer(2, callbacks=[Watch()]).fit(module, digits())
    assert "loss/soft" not in losses[0]
    assert "loss/soft" in losses[1]


def normed() -> nn.Sequential:
    """A linear layer and BatchNorm, whose running statistics are far from any batch's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    given = {"weight": [1.5, -0.7], "bias": [0.2, 0.1], "running_mean": [0.5, -1.0], "running_var": [4.0, 0.25]}
    net[1].load_state_dict({name: torch.tensor(value) for name, value in given.items()}, strict=False)
    return net


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (MovingAverage, "batch"),
        (lambda: MovingAverage(batchnorm="frozen"), "frozen"),
        (lambda: Stale(1, of="self"), "frozen"),
        (lambda: Stale(1, of="self", batchnorm="batch"), "batch"),
    ],
)
def test_copy_normalizes_by_its_rule_and_stays_unchanged(make: Any, rule: str) -> None:
    net, teaching, x = normed(), make(), draw(6, 3)
    plan = teaching.plan({"net": Learner("net", net)})
    ((_, copy),) = [item for item in plan.members.items() if item[0] != "net"]
    before = weights(teaching)
    outputs = copy(Batch(x, torch.zeros(6, dtype=torch.long), progress=Progress(0, 1)), {})[copy.name]
    hidden, norm = net[0](x).tolist(), {name: value.tolist() for name, value in net[1].state_dict().items()}
    for k in range(2):
        column = [row[k] for row in hidden]
        mean = sum(column) / 6
        variance = sum((value - mean) ** 2 for value in column) / 6
        if rule == "frozen":
            mean, variance = norm["running_mean"][k], norm["running_var"][k]
        expected = [(each - mean) / math.sqrt(variance + 1e-5) * norm["weight"][k] + norm["bias"][k] for each in column]
        assert outputs.logits[:, k].tolist() == pytest.approx(expected, rel=1e-9)
    networks = {key: value for key, value in weights(teaching).items() if key.startswith("copies.")}
    assert networks  # the running statistics too
    assert all(torch.equal(value, before[key]) for key, value in networks.items())


def test_averages_move_with_optimizer_steps_alone() -> None:
    teaching = MovingAverage(0.9)
    module = cotrainer({"net": network()}, teaching=teaching)
    trainer(2, accumulate_grad_batches=2, gradient_clip_val=0.5, precision="bf16-mixed").fit(module, digits())
    assert module.trainer.global_step == 6  # three in each epoch of five batches
    assert teaching.copies.members[0].updates == 6


def average() -> CoTrainer:
    return cotrainer({"net": network()}, teaching=MovingAverage(0.9))


def codistilled() -> CoTrainer:
    return cotrainer(teaching=Stale(3))


def snapshot() -> CoTrainer:
    return cotrainer({"net": network()}, teaching=Stale(2, "epoch", "self"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run keeps none of its own
@pytest.mark.parametrize(("make", "stop"), [(average, 7), (codistilled, 7), (snapshot, 12)])
def test_resume_mid_epoch_keeps_the_copies(make: Any, stop: int, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, between two exchanges: same bits as a run that was not."""
    whole, resumed = make(), make()
    trainer(3).fit(whole, digits())
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=stop, save_top_k=-1)
    trainer(max_steps=stop, enable_checkpointing=True, callbacks=[keep]).fit(make(), digits())
    trainer(3).fit(resumed, digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert same(weights(resumed), weights(whole))


def test_snapshots_are_exchanged_while_no_knowledge_counts() -> None:
    late = {"soft": Knowledge(SoftTargets(2.0), schedule=Constant(begin=3))}
    module = cotrainer({"net": network()}, teaching=Stale(1, "epoch", of="self"), knowledge=late)
    trainer(2).fit(module, digits())
    assert module.teaching.copies.members[0].updates == 1
