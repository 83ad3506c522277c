"""Networks that learn together: several outputs, names, reports, checkpoints, what is deployed."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.export.student import export
from kdlab.losses import Hint
from kdlab.models import WithExits
from kdlab.models.checkpoint_reader import read_tensors
from kdlab.outputs import Outputs
from kdlab.schedules import Progress
from kdlab.teaching import (
    Consensus,
    DeepestExit,
    Gated,
    General,
    Graph,
    Leader,
    MovingAverage,
    PeerEnsemble,
    Peers,
    Stale,
)
from kdlab.teaching.plan import source_of
from tests.losses.slow import dot, softmax
from tests.modules.cotraining import branched, cotrainer, image_net, peers, soft, steps
from tests.modules.tiny import count_calls, digits, network, pairs, trainer, weights
from tests.tiers import tiered


class Side(nn.Module):
    """A loss of the teacher's side alone."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return torch.stack([tensor.sum() for tensor in teacher.tensors()]).sum()


TEACHINGS = {
    "one": lambda: (branched(), Gated("layer2"), {}),
    "cl": lambda: (branched(average_gradient=True), Consensus(others=True), {}),
    "okddip": lambda: (branched(branches=4), Leader(), {"teacher_gradient": True}),
    "pcl": lambda: (branched(own_inputs=True), PeerEnsemble(), {}),
    "byot": lambda: (WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8]), DeepestExit(), {}),
    "dks": lambda: (WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8]), Peers(), {}),
}


@pytest.mark.parametrize("name", tiered(TEACHINGS, ["okddip", "byot"]))
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
    data.provide(dict(module.plan.views))
    module.train()
    batch = data.prepare(next(iter(data.train_dataloader())), 0)._replace(progress=Progress(0, 0))
    outputs = module.observe(batch)
    assert {name for edge in module.plan.edges for name in edge[:2]} <= outputs.keys()
    assert {source_of(edge.student) for edge in module.plan.edges} <= {*module.names}
    for edge in module.plan.edges:  # OKDDip's targets carry gradient, as released
        loss = Side()
        value = Knowledge(loss).compare(edge, loss, outputs, batch)
        assert value is not None
        assert value.requires_grad == (name == "okddip")


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
    torch.testing.assert_close(average(images), average.teaching.copies.networks["net"](images))
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
        (lambda: cotrainer(deploy="c"), "No output 'c' to deploy"),
        (lambda: cotrainer({"a": network(0), "b": network(0)}), "start from the same weights"),
        (lambda: cotrainer({"a": network(0)}, teaching=Peers()), "at least two students"),
        (lambda: cotrainer({"a": network(0)}, teaching=DeepestExit()), "one output alone"),
        (lambda: cotrainer({"net": branched()}, teaching=Peers("sequential")), "one after another"),
        (lambda: cotrainer({"net": branched()}, teaching=PeerEnsemble()), "own_inputs=True"),
        (lambda: cotrainer({"net": branched(branches=2)}, teaching=Leader()), "two peers at least"),
        (lambda: cotrainer({"net": branched()}, teaching=Consensus(own_views=True)), "own_views is for networks"),
        (lambda: cotrainer({"net": branched(), "net_branch1": network()}), "outputs named 'net_branch1'"),
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


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_clipping_bounds_a_step_in_bf16(update: Any) -> None:
    module = cotrainer(teaching=Peers(update), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    start = weights(module)
    steps(module, 1, precision="bf16-mixed", gradient_clip_val=0.01)
    moved = {name: value - start[name] for name, value in weights(module).items()}
    parts = ["networks.a.", "networks.b."] if update == "sequential" else [""]
    for part in parts:
        step = torch.cat([value.flatten() for name, value in moved.items() if name.startswith(part)])
        assert float(step.norm()) == pytest.approx(0.01, rel=1e-3)


def test_accumulated_batches_equal_one_of_their_size() -> None:
    results = []
    for batch_size, accumulate in ((16, 1), (4, 4)):
        module = cotrainer(lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, T_max=2))
        options = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5, "max_steps": 8}
        run = trainer(**options)
        run.fit(module, pairs(64, batch_size))
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)  # two epochs of four steps
        results.append(weights(module))
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-6), name
    assert not torch.allclose(results[0]["networks.a.fc.weight"], weights(cotrainer())["networks.a.fc.weight"])


def test_a_teacher_may_learn_in_part() -> None:
    big = network(1, (24,))
    big.requires_grad_(False).get_submodule("fc").requires_grad_(True)
    start = weights(big)
    graph = Graph(edges=[{"student": "small", "teacher": "big"}])
    groups = {"networks.big.fc": {"lr": 0.01}}
    module = cotrainer({"small": network(), "big": big}, teaching=graph, parameter_groups=groups)
    run = steps(module)
    moved = [name for name, value in weights(big).items() if not torch.equal(value, start[name])]
    assert moved == ["fc.weight", "fc.bias"]
    assert [(group["lr"], len(group["params"])) for group in run.optimizers[0].param_groups] == [(0.01, 2), (0.1, 4)]


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


# What is learnt from held-out samples (KDCL-General's shares)


def general() -> tuple[CoTrainer, General, Any]:
    """Two networks that are taught by their weighted mean, and data with samples held out for the weights."""
    rule = General()
    return cotrainer(teaching=Consensus(rule)), rule, digits(validation=100)


def held_out(module: CoTrainer, data: Any) -> list[float]:
    """The shares of two members, from the products of their errors on every validation sample."""
    products = [[0.0, 0.0], [0.0, 0.0]]
    for raw in data.val_dataloader():
        batch = data.prepare(raw)
        said = [net(batch.inputs).tolist() for net in module.networks.values()]
        for n, label in enumerate(batch.target.tolist()):
            errors = [[p - (k == label) for k, p in enumerate(softmax(rows[n]))] for rows in said]
            for i, j in itertools.product(range(2), repeat=2):
                products[i][j] += dot(errors[i], errors[j])
    (a, b), (_, d) = products
    return [(d - b) / (a + d - 2 * b), (a - b) / (a + d - 2 * b)]


def test_the_sanity_check_is_no_validation() -> None:
    module, rule, data = general()
    trainer(1, limit_val_batches=1.0, num_sanity_val_steps=2).fit(module, data)
    assert rule.shares.tolist() == pytest.approx(held_out(module, data), rel=1e-4)


def test_nothing_is_learnt_from_the_test_set() -> None:
    module, rule, data = general()
    run = trainer(1, limit_val_batches=1.0)
    run.fit(module, data)
    run.test(module, data, verbose=False)
    assert not rule.products.numel()
    run.validate(module, data, verbose=False)
    assert rule.shares.tolist() == pytest.approx(held_out(module, data), rel=1e-4)


def test_evaluation_runs_no_members_of_the_training_alone() -> None:
    module = cotrainer(teaching=Consensus())
    (values,) = trainer(limit_val_batches=1.0).validate(module, pairs(), verbose=False)
    named = {key.split("/")[1] for key in values if key.endswith("_accuracy")}
    assert named == {"a_accuracy", "b_accuracy", "ensemble_accuracy", "deployed_accuracy"}
    stale = cotrainer(teaching=Stale(1))
    stale.teaching.copies.updates = 1  # as after an exchange
    calls = count_calls(stale.teaching.copies.networks["a"])
    trainer(limit_val_batches=1.0).validate(stale, pairs(), verbose=False)
    assert not calls
