"""Networks and exits that teach each other: gradients, sums, order of updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.nn import functional as F

from kdlab import InputError, Knowledge
from kdlab.models import WithExits
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Alone, DeepestExit, Peers
from tests.losses.slow import draw
from tests.modules.cotraining import cotrainer, image_net, peers, soft, steps
from tests.modules.tiny import digits, network, same, sgd, weights
from tests.teaching.step import Kept, compared, seen_by


def test_peers_get_no_gradient_from_each_other() -> None:
    module = cotrainer(task_weight=0.0)
    seen, batch = seen_by(module)
    value = compared(module, seen, batch)["a", "b"]
    assert value is not None
    value.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in module.networks["a"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in module.networks["b"].parameters())


def test_peers_teacher_side_is_detached() -> None:
    loss = Kept()
    module = cotrainer(knowledge={"soft": Knowledge(loss)})
    compared(module, *seen_by(module))
    for part in module.knowledge["soft"].copies.values():
        ((student, teacher, _),) = part.read
        assert all(tensor.requires_grad for tensor in student.tensors())
        assert not any(tensor.requires_grad for tensor in teacher.tensors())


def test_equal_peers_have_zero_loss_and_gradient() -> None:
    module = cotrainer(knowledge=soft(3.0))
    seen = {"a": equal(), "b": equal()}
    values = compared(module, seen, Batch(torch.empty(0), torch.zeros(4, dtype=torch.long)))
    assert [*values] == [("a", "b"), ("b", "a")]
    for (student, _), value in values.items():
        assert value is not None
        (gradient,) = torch.autograd.grad(value, seen[student].logits)
        assert abs(value.item()) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


def equal() -> Outputs:
    generator = torch.Generator().manual_seed(3)
    return Outputs(torch.randn(4, 10, generator=generator, dtype=torch.float64).requires_grad_())


def test_step_is_the_papers_sum() -> None:
    """Three peers: labels of each, and (K - 1)-th parts of the KL to each other one."""
    module = cotrainer(peers(3), knowledge=soft(3.0))
    run = steps(module, 1)
    before = {name: weights(net) for name, net in module.networks.items()}
    seen, batch = seen_by(module)
    module.trainer = run
    run.optimizers[0].zero_grad()
    run.log_every_n_steps = 0
    value = module.training_step(batch, 0)
    expected = 0.0
    z = {name: outputs.logits.detach().double() for name, outputs in seen.items()}
    for i, student in z.items():
        expected += float(F.cross_entropy(student, batch.target))
        for j, teacher in z.items():
            if i != j:
                p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
                expected += 9 * float((p * (p / q).log()).sum(1).mean()) / 2
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert all(same(weights(net), before[name]) for name, net in module.networks.items())


def reference(sequential: bool, count: int) -> dict[str, dict[str, Tensor]]:
    """DML by hand: plain loops, one optimizer a network."""
    nets = peers()
    optimizers = {name: sgd(net.parameters()) for name, net in nets.items()}
    data = digits()
    data.setup()
    loader = data.train_dataloader()
    for number, raw in enumerate(loader):
        if number == count:
            break
        batch = data.prepare(raw, 0)
        logits = {name: net(batch.inputs) for name, net in nets.items()}
        for name in nets:
            if sequential:
                logits = {other: net(batch.inputs) for other, net in nets.items()}
            student, (teacher,) = logits[name], [z for other, z in logits.items() if other != name]
            p, log_q = (teacher.detach() / 2).softmax(1), F.log_softmax(student / 2, 1)
            loss = F.cross_entropy(student, batch.target) + 4 * F.kl_div(log_q, p, reduction="batchmean")
            optimizers[name].zero_grad()
            loss.backward()
            if sequential:
                optimizers[name].step()
        if not sequential:
            for optimizer in optimizers.values():
                optimizer.step()
    return {name: weights(net) for name, net in nets.items()}


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_updates_equal_plain_loops(update: Any) -> None:
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


def test_sequential_updates_refuse_scheduled_accumulation() -> None:
    with pytest.raises(InputError, match="cannot accumulate gradients"):
        steps(cotrainer(teaching=Peers("sequential")), callbacks=[GradientAccumulationScheduler({3: 2})])


def test_heads_are_updated_together() -> None:
    net = WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8])
    with pytest.raises(InputError, match="one after another"):
        steps(cotrainer({"net": net}, teaching=Peers("sequential")))


def test_sequential_updates_take_three_networks() -> None:
    nets = {name: network(seed) for seed, name in enumerate("abc")}
    steps(cotrainer(nets, teaching=Peers("sequential")))


def test_sequential_updates_refuse_accumulated_gradients() -> None:
    with pytest.raises(InputError, match="accumulate_grad_batches"):
        steps(cotrainer(teaching=Peers("sequential")), accumulate_grad_batches=2)


def test_exit_labels_weigh_the_exits_but_the_deepest() -> None:
    net = WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8])
    module = cotrainer({"net": net}, teaching=DeepestExit(0.25))
    seen, batch = seen_by(module)
    net_, *exits = (F.cross_entropy(seen[name].logits, batch.target) for name in ("net", "net_exit1", "net_exit2"))
    torch.testing.assert_close(module.supervised(seen, batch), net_ + 0.25 * sum(exits))


def test_alone_is_its_own_detached_teacher() -> None:
    """For a loss that leaves its teacher in the graph: the gradient is that of the student's side, not of both."""
    z, loss = draw(4, 3).requires_grad_(), Kept()
    module = cotrainer({"net": network()}, knowledge={"soft": Knowledge(loss)}, teaching=Alone())
    seen = {"net": Outputs(z, (z * 2,), z * 3)}
    (value,) = compared(module, seen, Batch(torch.empty(0), torch.zeros(4, dtype=torch.long))).values()
    (gradient,) = torch.autograd.grad(value, z)
    for got, row in zip(gradient.tolist(), z.tolist(), strict=True):
        assert got == pytest.approx([number / 4 for number in row], rel=1e-12)
    ((_, teacher, _),) = loss.read
    assert len([*teacher.tensors()]) == 3
    assert not any(tensor.requires_grad for tensor in teacher.tensors())
