"""Learners taught by their moving average, or by how they and the others were some time ago."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kdlab import CoTrainer
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import MovingAverage, Stale
from tests.losses.slow import draw
from tests.modules.cotraining import cotrainer, image_net, one_batch, peers, soft, steps
from tests.modules.tiny import digits, network, same, trainer, weights


def test_the_average_follows_its_formula() -> None:
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
    got = weights(module.teaching.deployable["average_net"])
    for key, value in average.items():
        assert float((got[key] - value).abs().max()) < 1e-6, key


def test_an_average_without_decay_is_the_network() -> None:
    module = cotrainer({"net": image_net()}, teaching=MovingAverage(0.0, buffers="copy"))
    steps(module, 3)
    copy, own = weights(module.teaching.deployable["average_net"]), weights(module.networks["net"])
    assert all(torch.equal(copy[key], own[key]) for key in own)


@pytest.mark.parametrize("rule", ["average", "copy"])
def test_running_statistics_follow_their_rule(rule: Any) -> None:
    module = cotrainer({"net": image_net()}, teaching=MovingAverage(0.9, buffers=rule))
    steps(module, 3)
    copy, own = weights(module.teaching.deployable["average_net"]), weights(module.networks["net"])
    assert torch.equal(copy["bn1.running_mean"], own["bn1.running_mean"]) == (rule == "copy")
    assert torch.equal(copy["bn1.num_batches_tracked"], own["bn1.num_batches_tracked"])


def test_stale_copies_are_exchanged_when_it_is_time() -> None:
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
    assert module.teaching.exchanges == 2


def test_codistillation_is_taught_by_the_others_alone() -> None:
    module = cotrainer(peers(3), teaching=Stale(1), knowledge=soft())
    steps(module, 2)
    _, outputs, batch = one_batch(module)
    copies = {name: net(batch.inputs).softmax(1) for name, net in module.teaching.copies.networks.items()}
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    torch.testing.assert_close(lessons["a"].softmax(1), (copies["b"] + copies["c"]) / 2)
    torch.testing.assert_close(lessons["c"].softmax(1), (copies["a"] + copies["b"]) / 2)


def test_snapshots_wait_for_the_end_of_a_cycle() -> None:
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
def test_a_copy_normalises_by_its_rule_and_stays_as_it_is(make: Any, rule: str) -> None:
    net, teaching, x = normed(), make(), draw(6, 3)
    teaching.adopt({"net": net}, ["net"])
    teaching.advance(0, 1)
    before = weights(teaching)
    (lesson,) = teaching.lessons({"net": Outputs(draw(6, 2))}, Batch(x, torch.zeros(6, dtype=torch.long)))
    hidden, norm = net[0](x).tolist(), {name: value.tolist() for name, value in net[1].state_dict().items()}
    for k in range(2):
        column = [row[k] for row in hidden]
        mean = sum(column) / 6
        variance = sum((value - mean) ** 2 for value in column) / 6
        if rule == "frozen":
            mean, variance = norm["running_mean"][k], norm["running_var"][k]
        expected = [(each - mean) / math.sqrt(variance + 1e-5) * norm["weight"][k] + norm["bias"][k] for each in column]
        assert lesson.teacher.logits[:, k].tolist() == pytest.approx(expected, rel=1e-9)
    assert same(weights(teaching), before)  # the running statistics too


def average() -> CoTrainer:
    return cotrainer({"net": network()}, teaching=MovingAverage(0.9))


def codistilled() -> CoTrainer:
    return cotrainer(teaching=Stale(3))


def snapshot() -> CoTrainer:
    return cotrainer({"net": network()}, teaching=Stale(2, "epoch", "self"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the resumed run keeps none of its own
@pytest.mark.parametrize(("make", "stop"), [(average, 7), (codistilled, 7), (snapshot, 12)])
def test_a_resumed_run_has_the_copies_that_it_had(make: Any, stop: int, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, between two exchanges: same bits as a run that was not."""
    whole, resumed = make(), make()
    trainer(3).fit(whole, digits())
    keep = ModelCheckpoint(tmp_path, filename="middle", every_n_train_steps=stop, save_top_k=-1)
    trainer(max_steps=stop, enable_checkpointing=True, callbacks=[keep]).fit(make(), digits())
    trainer(3).fit(resumed, digits(), ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert same(weights(resumed), weights(whole))
