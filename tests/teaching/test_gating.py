"""Branches with a trained part between them: the gate of ONE, the attention and the leader of OKDDip."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from kdlab.teaching import Gated, Leader
from tests.modules.cotraining import branched, cotrainer, soft
from tests.modules.tiny import digits, trainer, weights
from tests.teaching.step import compared, seen_by, teachers


def test_branches_and_gated_ensemble_learn_from_labels_alike() -> None:
    module = cotrainer({"net": branched()}, teaching=Gated("layer2"))
    assert module.plan.supervision == dict.fromkeys(["net", "net_branch1", "net_branch2", "ensemble"], 1.0)


def test_any_student_may_lead() -> None:
    students = ["net", "net_branch1", "net_branch2"]
    for leader in students:
        module = cotrainer({"net": branched()}, teaching=Leader(leader))
        expected = {name: "group" if name == leader else f"group@{name}" for name in students}
        assert {edge.student: edge.teacher for edge in module.plan.edges} == expected


@pytest.mark.parametrize("average", [False, True])
def test_trunk_gets_the_mean_of_the_heads_gradients(average: bool) -> None:
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


def test_gate_learns_from_the_ensembles_labels_alone() -> None:
    module = cotrainer({"net": branched()}, teaching=Gated("layer2"), task_weight=0.0)
    trainer(max_steps=1).fit(module, digits())
    gate = module.teaching.gate
    seen, batch = seen_by(module)
    for value in compared(module, seen, batch).values():
        assert torch.autograd.grad(value, gate.linear.weight, allow_unused=True, retain_graph=True) == (None,)
    (gradient,) = torch.autograd.grad(module.supervised(seen, batch), gate.linear.weight)
    assert gradient.any()


def test_gated_ensemble_is_reported_and_deployed() -> None:
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


def test_okddip_follows_its_formula() -> None:
    module = cotrainer({"net": branched(branches=4)}, teaching=Leader(), knowledge=soft(3.0, teacher_gradient=True))
    trainer(max_steps=1).fit(module, digits())
    seen, _ = seen_by(module)
    targets = teachers(module, seen)
    peers = ["net", "net_branch1", "net_branch2"]
    assert set(targets) == {*peers, "net_branch3"}
    attention = module.teaching.attention
    query, key = attention.query.weight, attention.key.weight
    assert query.shape == (8, 64)
    for b in range(3):
        h = [seen[name].embedding[b] for name in peers]
        z = [seen[name].logits[b] for name in peers]
        for place, name in enumerate(peers):
            share = torch.stack([(query @ h[place]) @ (key @ other) for other in h]).softmax(0)
            torch.testing.assert_close(targets[name][b], sum(a * each for a, each in zip(share, z, strict=True)))
        torch.testing.assert_close(targets["net_branch3"][b], sum(z) / 3)


def test_attention_is_trained_if_the_loss_lets_gradient_through() -> None:
    for through in (False, True):
        module = cotrainer(
            {"net": branched(branches=4)}, teaching=Leader(), knowledge=soft(3.0, teacher_gradient=through)
        )
        trainer(max_steps=1).fit(module, digits())
        start = weights(module.teaching.attention)
        trainer(max_steps=2).fit(module, digits())
        moved = not torch.equal(start["query.weight"], weights(module.teaching.attention)["query.weight"])
        assert moved == through
