"""Networks that learn together: gradients, turns, names, reports, checkpoints, what is deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.cli.export import export
from kdlab.losses import Hint, SoftTargets
from kdlab.models import Branched, WithExits, resnet8
from kdlab.models.reading import read_tensors
from kdlab.outputs import Batch
from kdlab.teaching import (
    Average,
    Consensus,
    DeepestExit,
    Ensemble,
    Gated,
    Leader,
    MovingAverage,
    PeerEnsemble,
    Peers,
    Stale,
)
from tests.modules.tiny import digits, network, sgd, trainer, weights


def soft(temperature: float = 2.0, weight: float = 1.0, **options: Any) -> dict[str, Knowledge]:
    return {"soft": Knowledge(SoftTargets(temperature, **options), weight)}


def peers(count: int = 2) -> dict[str, nn.Module]:
    return {name: network(seed) for seed, name in enumerate("abc"[:count])}


def cotrainer(networks: dict[str, nn.Module] | None = None, **options: Any) -> CoTrainer:
    defaults: dict[str, Any] = {"knowledge": soft(), "optimizer": sgd}
    return CoTrainer(networks or peers(), **(defaults | options))


def image_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return resnet8(10, in_channels=1)


def branched(**options: Any) -> Branched:
    return Branched(image_net(), "layer3", **({"branches": 3} | options))


def steps(module: CoTrainer, count: int = 2, **options: Any) -> pl.Trainer:
    run = trainer(max_steps=count, **options)
    run.fit(module, digits())
    return run


def one_batch(module: CoTrainer) -> tuple[Tensor, dict[str, Any], Batch]:
    """The loss of one step of a module that has been set up, its outputs, and the batch."""
    data = digits()
    data.setup()
    batch = data.prepare(next(iter(data.train_dataloader())))
    module.train()
    outputs = module.observe(batch)
    return module, outputs, batch


# The oracles of section K


def test_nothing_flows_between_peers() -> None:
    module = cotrainer(task_weight=0.0)
    steps(module, 1)
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x for x in module.lessons(outputs, batch)}
    module.zero_grad()
    assert not any(each.requires_grad for x in lessons.values() for each in x.teacher.tensors())
    value = module.knowledge["soft"].compare(outputs["a"], lessons["a"].teacher, batch.target)
    value.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in module.networks["a"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in module.networks["b"].parameters())


@pytest.mark.parametrize("average", [False, True])
def test_the_trunk_gets_the_mean_of_the_heads_gradients(average: bool) -> None:
    torch.manual_seed(0)
    net = branched(average_gradient=average).double().eval()
    images = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 3, 9, 1])
    trunk = net.network.get_submodule("conv1").weight
    heads = [
        torch.autograd.grad(F.cross_entropy(net(images)[name], target), trunk)[0]
        for name in ("logits", "branch1", "branch2")
    ]
    if average:  # each head's own gradient is divided already
        heads = [3 * each for each in heads]
    (whole,) = torch.autograd.grad(sum(F.cross_entropy(z, target) for z in net(images).values()), trunk)
    expected = torch.stack(heads).mean(0) if average else torch.stack(heads).sum(0)
    torch.testing.assert_close(whole, expected, rtol=1e-10, atol=1e-14)


def test_identical_peers_have_nothing_to_say() -> None:
    outputs = {"a": alike(), "b": alike()}
    lessons = Peers().lessons(outputs, Batch(torch.empty(0), torch.zeros(4, dtype=torch.long)))
    for lesson in lessons:
        student = outputs[lesson.learner]
        value = SoftTargets(3.0)(student, lesson.teacher, torch.zeros(4))
        (gradient,) = torch.autograd.grad(value, student.logits)
        assert abs(float(value.detach())) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


def alike() -> Any:
    from kdlab.outputs import Outputs

    generator = torch.Generator().manual_seed(3)
    return Outputs(torch.randn(4, 10, generator=generator, dtype=torch.float64).requires_grad_())


def test_the_step_is_the_papers_sum() -> None:
    """Three peers: labels of each, and (K - 1)-th parts of the KL to each other one."""
    module = cotrainer(peers(3), knowledge=soft(3.0))
    run = steps(module, 1)
    before = {name: weights(net) for name, net in module.networks.items()}
    _, outputs, batch = one_batch(module)
    module.trainer = run
    run.optimizers[0].zero_grad()
    run.log_every_n_steps = 0
    value = module.training_step(batch, 0)
    expected = 0.0
    z = {name: each.logits.detach().double() for name, each in outputs.items()}
    for i, own in z.items():
        expected += float(F.cross_entropy(own, batch.target))
        for j, other in z.items():
            if i != j:
                p, q = (other / 3).softmax(1), (own / 3).softmax(1)
                expected += 9 * float((p * (p / q).log()).sum(1).mean()) / 2
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert before["a"].keys() == weights(module.networks["a"]).keys()


# One optimiser step after another


def reference(sequential: bool, count: int) -> dict[str, dict[str, Tensor]]:
    """DML by hand: plain loops, one optimiser a network."""
    nets = peers()
    optimizers = {name: sgd(net.parameters()) for name, net in nets.items()}
    data = digits()
    data.setup()
    loader = data.train_dataloader()
    for number, raw in enumerate(loader):
        if number == count:
            break
        batch = data.prepare(raw, 0)
        said = {name: net(batch.inputs) for name, net in nets.items()}
        for name in nets:
            if sequential:
                said = {each: other(batch.inputs) for each, other in nets.items()}
            own, (teacher,) = said[name], [z for each, z in said.items() if each != name]
            p, log_q = (teacher.detach() / 2).softmax(1), F.log_softmax(own / 2, 1)
            loss = F.cross_entropy(own, batch.target) + 4 * F.kl_div(log_q, p, reduction="batchmean")
            optimizers[name].zero_grad()
            loss.backward()
            if sequential:
                optimizers[name].step()
        if not sequential:
            for each in optimizers.values():
                each.step()
    return {name: weights(net) for name, net in nets.items()}


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_updates_are_those_of_plain_loops(update: Any) -> None:
    module = cotrainer(teaching=Peers(update))
    run = steps(module, 4)
    assert run.global_step == 4  # a step is a batch, however many networks take turns
    other = reference(update != "sequential", 4)
    expected = reference(update == "sequential", 4)
    for name, net in module.networks.items():
        for key, value in weights(net).items():
            assert float((value - expected[name][key]).abs().max()) < 1e-6, (name, key)
    first = max(float((weights(module.networks["b"])[k] - v).abs().max()) for k, v in other["b"].items())
    assert first > 1e-5  # the two kinds of update differ


def test_turns_and_gathered_gradients_exclude_each_other() -> None:
    with pytest.raises(InputError, match="accumulate_grad_batches"):
        steps(cotrainer(teaching=Peers("sequential")), accumulate_grad_batches=2)


# Moving averages and stale copies


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


# Targets made of all


def test_collaborative_learning_leaves_the_learner_out() -> None:
    module = cotrainer(peers(3), teaching=Consensus(others=True))
    steps(module, 1)
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    torch.testing.assert_close(lessons["a"], (outputs["b"].logits + outputs["c"].logits).detach() / 2)


def test_the_mean_of_the_others_probabilities() -> None:
    module = cotrainer(peers(3), teaching=Consensus(Average(Ensemble()), others=True))
    steps(module, 1)
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    expected = (outputs["b"].logits.softmax(1) + outputs["c"].logits.softmax(1)).detach() / 2
    torch.testing.assert_close(lessons["a"].softmax(1), expected)


def test_every_network_sees_its_own_augmentation() -> None:
    module = cotrainer(teaching=Consensus(own_views=True))
    data = digits(padding=1)
    trainer(max_steps=1).fit(module, data)
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    inputs = module.teaching.views(batch, ["a", "b"])
    assert inputs["a"] is batch.inputs
    assert inputs["b"].shape == inputs["a"].shape
    assert not torch.equal(inputs["a"], inputs["b"])


# Branches, gates, leaders, exits


TEACHINGS = {
    "one": lambda: (branched(), Gated("layer2"), {}),
    "cl": lambda: (branched(average_gradient=True), Consensus(others=True), {}),
    "okddip": lambda: (branched(branches=4), Leader(), {"teacher_gradient": True}),
    "pcl": lambda: (branched(own_inputs=True), PeerEnsemble(), {}),
    "byot": lambda: (WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8]), DeepestExit(), {}),
    "dks": lambda: (WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8]), Peers(), {}),
}


@pytest.mark.parametrize("name", TEACHINGS)
def test_several_outputs_learn_and_are_reported(name: str, tmp_path: Path) -> None:
    net, teaching, options = TEACHINGS[name]()
    module = cotrainer({"net": net}, teaching=teaching, knowledge=soft(3.0, **options))
    idle: list[set[str]] = []

    class Watch(pl.Callback):
        def on_after_backward(self, trainer: Any, module: Any) -> None:
            idle.append({name for name, p in module.named_parameters() if p.requires_grad and p.grad is None})

    keep = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1)
    run = trainer(1, limit_val_batches=1.0, enable_checkpointing=True, callbacks=[keep, Watch()])
    run.fit(module, digits(train_size=100))
    after = weights(module)
    assert idle == [set()] * 4
    learners = [name for name in run.callback_metrics if name.endswith("_accuracy") and name.startswith("val/net")]
    assert len(learners) == len(module.names)
    assert {"val/ensemble_accuracy", "val/ensemble_gain", "val/agreement", "val/deployed_accuracy"} <= {
        *run.callback_metrics
    }
    assert float(run.callback_metrics["val/deployed_accuracy"]) == float(run.callback_metrics["val/net_accuracy"])
    # What is deployed is the network alone, with its own names.
    weights_file, _ = export(tmp_path, tmp_path)
    assert read_tensors(weights_file).keys() == image_net().state_dict().keys()
    alone = image_net(5)
    alone.load_state_dict(read_tensors(weights_file))
    images = torch.randn(3, 1, 8, 8)
    module.eval()
    torch.testing.assert_close(alone.eval()(images), module(images)["logits"])
    # And a checkpoint is loaded strictly.
    net, teaching, options = TEACHINGS[name]()
    again = CoTrainer.load_from_checkpoint(
        tmp_path / "checkpoints" / "last.ckpt",
        networks={"net": net},
        teaching=teaching,
        knowledge=soft(3.0, **options),
        weights_only=True,
    )
    assert all(torch.equal(value, after[key]) for key, value in weights(again).items())
    data = digits(train_size=100)
    data.setup()
    data.provide(teaching.asks(module.names))
    module.train()
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    for lesson in module.lessons(module.observe(batch), batch):  # OKDDip's targets carry gradient, as released
        assert any(each.requires_grad for each in lesson.teacher.tensors()) == (name == "okddip")


def test_what_labels_count_for_exits() -> None:
    net = WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8])
    module = cotrainer({"net": net}, teaching=DeepestExit(0.25))
    trainer(max_steps=1).fit(module, digits())
    _, outputs, batch = one_batch(module)
    weighed = {answer.learner: answer.weight for answer in module.answers(outputs, batch)}
    assert weighed == {"net": 1.0, "net_exit1": 0.25, "net_exit2": 0.25}


def test_the_gate_learns_from_the_labels_of_the_ensemble_alone() -> None:
    module = cotrainer({"net": branched()}, teaching=Gated("layer2"), task_weight=0.0)
    trainer(max_steps=1).fit(module, digits())
    gate = module.teaching.gate
    _, outputs, batch = one_batch(module)
    lesson = module.lessons(outputs, batch)[0]
    value = module.knowledge["soft"].compare(outputs[lesson.learner], lesson.teacher, batch.target)
    assert torch.autograd.grad(value, gate.linear.weight, allow_unused=True) == (None,)


def test_the_gates_ensemble_is_what_is_reported() -> None:
    module = cotrainer({"net": branched()}, teaching=Gated("layer2"), deploy="ensemble")
    data = digits()
    run = trainer(2, limit_val_batches=1.0)
    run.fit(module, data)
    module.eval()
    right = mean_right = count = 0
    with torch.no_grad():
        for raw in data.val_dataloader():
            batch = data.prepare(raw)
            net = module.networks["net"]
            trunk = net.network.layer2(
                net.network.layer1(net.network.relu(net.network.bn1(net.network.conv1(batch.inputs))))
            )
            gate = module.teaching.gate
            shares = F.relu(gate.norm(gate.linear(trunk.mean((2, 3))))).softmax(1)
            logits = torch.stack([*net(batch.inputs).values()], 2)
            right += int(((logits * shares[:, None]).sum(2).argmax(1) == batch.target).sum())
            mean_right += int((logits.softmax(1).mean(2).argmax(1) == batch.target).sum())
            count += len(batch.target)
            torch.testing.assert_close(module(batch.inputs), (logits * shares[:, None]).sum(2))
    assert right != mean_right  # else the two could not be told apart
    for name in ("ensemble", "deployed"):
        assert float(run.callback_metrics[f"val/{name}_accuracy"]) == pytest.approx(right / count, abs=1e-6)


def test_okddip_is_its_formula() -> None:
    module = cotrainer({"net": branched(branches=4)}, teaching=Leader(), knowledge=soft(3.0, teacher_gradient=True))
    trainer(max_steps=1).fit(module, digits())
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    peers = ["net", "net_branch1", "net_branch2"]
    assert set(lessons) == {*peers, "net_branch3"}
    attention = module.teaching.attention
    query, key = attention.query.weight, attention.key.weight
    assert query.shape == (8, 64)
    for b in range(3):
        h = [outputs[name].embedding[b] for name in peers]
        z = [outputs[name].logits[b] for name in peers]
        for place, name in enumerate(peers):
            share = torch.stack([(query @ h[place]) @ (key @ other) for other in h]).softmax(0)
            torch.testing.assert_close(lessons[name][b], sum(a * each for a, each in zip(share, z, strict=True)))
        torch.testing.assert_close(lessons["net_branch3"][b], sum(z) / 3)


def test_the_leaders_attention_is_trained_where_the_loss_lets_it() -> None:
    for through in (False, True):
        module = cotrainer(
            {"net": branched(branches=4)}, teaching=Leader(), knowledge=soft(3.0, teacher_gradient=through)
        )
        trainer(max_steps=1).fit(module, digits())
        start = weights(module.teaching.attention)
        trainer(max_steps=2).fit(module, digits())
        moved = not torch.equal(start["query.weight"], weights(module.teaching.attention)["query.weight"])
        assert moved == through


# A loss with parts of its own has them for each pair


def test_adapters_belong_to_a_pair() -> None:
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"])
    nets = {"a": network(0, (16,)), "b": network(1, (24,)), "c": network(2, (8,))}
    module = cotrainer(nets, knowledge={"hint": hint})
    steps(module, 2)
    shapes = {pair: tuple(loss.regressors[0].weight.shape[:2]) for pair, loss in module.losses["hint"].items()}
    assert shapes["a_from_b"] == (24, 16)
    assert shapes["b_from_a"] == (16, 24)
    assert shapes["c_from_b"] == (24, 8)
    optimizer = module.trainer.optimizers[0]
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(id(p) in owned for p in module.losses.parameters())


# Names, deployment, refusals


def test_the_deployed_one_answers(tmp_path: Path) -> None:
    images = torch.randn(5, 1, 8, 8)
    nets = peers()
    for deploy in ("a", "b", "ensemble"):
        module = cotrainer(nets, deploy=deploy)
        z = {name: net(images) for name, net in nets.items()}
        expected = z.get(deploy, sum(each.softmax(1) for each in z.values()).div(2).log())
        torch.testing.assert_close(module(images), expected)
    average = cotrainer({"net": network()}, teaching=MovingAverage(), deploy="average_net")
    torch.testing.assert_close(average(images), average.teaching.deployable["average_net"](images))
    ensemble = cotrainer(nets, deploy="ensemble")
    keep = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1)
    trainer(1, enable_checkpointing=True, callbacks=[keep]).fit(ensemble, digits())
    with pytest.raises(InputError, match="deploys an ensemble"):
        export(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: CoTrainer({}), "at least one network"),
        (lambda: cotrainer({"a b": network()}), "plain word"),
        (lambda: cotrainer({"items": network()}), "plain word"),
        (lambda: cotrainer(deploy="c"), "no 'c' to deploy"),
        (lambda: cotrainer({"a": network(0), "b": network(0)}), "start from the same weights"),
        (lambda: cotrainer({"a": network(0)}, teaching=Peers()), "at least two learners"),
        (lambda: cotrainer({"a": network(0)}, teaching=DeepestExit()), "one output alone"),
        (lambda: cotrainer({"net": branched()}, teaching=Peers("sequential")), "one after another"),
        (lambda: cotrainer({"net": branched()}, teaching=PeerEnsemble()), "own_inputs=True"),
        (lambda: cotrainer({"net": branched(branches=2)}, teaching=Leader()), "two peers at least"),
        (lambda: cotrainer({"net": branched()}, teaching=Consensus(own_views=True)), "own_views is for networks"),
        (lambda: cotrainer({"net": branched(), "net_branch1": network()}), "Two learners"),
        (lambda: Peers("later"), "'simultaneous' or 'sequential'"),
        (lambda: MovingAverage(1.0), "below 1"),
        (lambda: Stale(0), "every 1 or more"),
    ],
)
def test_what_cannot_work_is_one_sentence(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_optimiser_is_one_and_its_options_are_by_part() -> None:
    module = cotrainer(parameter_groups={"networks.b": {"lr": 0.01}})
    run = steps(module, 1)
    (optimizer,) = run.optimizers
    rates = {len(group["params"]): group["lr"] for group in optimizer.param_groups}
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.01, 0.1], rates


def test_a_report_is_what_plain_evaluation_gives() -> None:
    module = cotrainer()
    data = digits()
    run = trainer(1, limit_val_batches=1.0)
    run.fit(module, data)
    module.eval()
    right, both, same, count = {"a": 0, "b": 0}, 0, 0, 0
    with torch.no_grad():
        for raw in data.val_dataloader():
            batch = data.prepare(raw)
            z = {name: net(batch.inputs) for name, net in module.networks.items()}
            for name in right:
                right[name] += int((z[name].argmax(1) == batch.target).sum())
            mean = sum(each.softmax(1) for each in z.values())
            both += int((mean.argmax(1) == batch.target).sum())
            same += int((z["a"].argmax(1) == z["b"].argmax(1)).sum())
            count += len(batch.target)
    got = {key: float(value) for key, value in run.callback_metrics.items()}
    assert got["val/a_accuracy"] == pytest.approx(right["a"] / count, abs=1e-6)
    assert got["val/ensemble_accuracy"] == pytest.approx(both / count, abs=1e-6)
    assert got["val/ensemble_gain"] == pytest.approx((both - (right["a"] + right["b"]) / 2) / count, abs=1e-6)
    assert got["val/agreement"] == pytest.approx(same / count, abs=1e-6)
