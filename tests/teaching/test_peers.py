"""Networks and exits that teach each other: what flows, what is summed, who is updated after whom."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab import InputError
from kdlab.losses import SoftTargets
from kdlab.models import WithExits
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Alone, DeepestExit, Peers
from tests.losses.slow import draw
from tests.modules.cotraining import Product, cotrainer, image_net, one_batch, peers, soft, steps
from tests.modules.tiny import digits, sgd, trainer, weights

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


def test_identical_peers_have_nothing_to_say() -> None:
    outputs = {"a": alike(), "b": alike()}
    lessons = Peers().lessons(outputs, Batch(torch.empty(0), torch.zeros(4, dtype=torch.long)))
    for lesson in lessons:
        student = outputs[lesson.learner]
        value = SoftTargets(3.0)(student, lesson.teacher, torch.zeros(4))
        (gradient,) = torch.autograd.grad(value, student.logits)
        assert abs(float(value.detach())) < 1e-12
        assert float(gradient.abs().max()) < 1e-12


def alike() -> Outputs:
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


def test_what_labels_count_for_exits() -> None:
    net = WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8])
    module = cotrainer({"net": net}, teaching=DeepestExit(0.25))
    trainer(max_steps=1).fit(module, digits())
    _, outputs, batch = one_batch(module)
    weighed = {answer.learner: answer.weight for answer in module.answers(outputs, batch)}
    assert weighed == {"net": 1.0, "net_exit1": 0.25, "net_exit2": 0.25}


def test_a_learner_alone_is_its_own_constant() -> None:
    """For a loss that leaves its teacher in the graph: the gradient is that of the student's side, not of both."""
    z = draw(4, 3).requires_grad_()
    seen = Outputs(z, (z * 2,), z * 3)
    batch = Batch(torch.empty(0), torch.zeros(4, dtype=torch.long))
    (lesson,) = Alone().lessons({"net": seen}, batch)
    (gradient,) = torch.autograd.grad(Product()(seen, lesson.teacher, batch.target), z, retain_graph=True)
    for got, row in zip(gradient.tolist(), z.tolist(), strict=True):
        assert got == pytest.approx([value / 4 for value in row], rel=1e-12)
    assert not any(each.requires_grad for each in lesson.teacher.tensors())
