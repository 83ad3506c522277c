"""DOT against its formula, against SGD where they are equal, and in trainings that accumulate, resume or scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import Distiller, Knowledge
from kdlab.errors import InputError
from kdlab.losses import Hint, SoftTargets
from kdlab.optimizers import DOT
from kdlab.schedules import Constant
from tests.modules.test_ddp import train
from tests.modules.tiny import digits, distiller, network, pairs, same, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def dot(parameters: Any) -> DOT:
    return DOT(parameters, lr=0.1, momentum=0.9, delta=0.075, weight_decay=0.01)


def by_hand(student: nn.Module, teacher: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """The paper's two buffers with two backward passes, for KD with weights 0.1 and 0.9."""
    task_buffer = [torch.zeros_like(each) for each in student.parameters()]
    kd_buffer = [torch.zeros_like(each) for each in student.parameters()]
    for x, y in batches:
        logits = student(x)
        task = 0.1 * F.cross_entropy(logits, y)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(teacher(x).detach() / 4, 1), reduction="batchmean")
        first = torch.autograd.grad(task, list(student.parameters()), retain_graph=True)
        second = torch.autograd.grad(0.9 * 16 * soft, list(student.parameters()))
        with torch.no_grad():
            for p, a, b, u, v in zip(student.parameters(), task_buffer, kd_buffer, first, second, strict=True):
                a.mul_(0.825).add_(u + 0.01 * p)
                b.mul_(0.975).add_(v)
                p.sub_(0.1 * (a + b))


def kd() -> dict[str, Any]:
    return {"knowledge": {"soft": Knowledge(SoftTargets(4.0), 0.9)}, "task_weight": 0.1, "optimizer": dot}


def test_it_is_the_formula_of_the_paper() -> None:
    module = distiller(**kd())
    expected, teacher = network(), network(1).eval()
    by_hand(expected, teacher, list(pairs()))
    trainer(max_steps=5).fit(module, pairs())
    for ours, theirs in zip(module.student.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_accumulated_halves_equal_wholes() -> None:
    ends = []
    for size, count in ((8, 1), (4, 2)):
        module = distiller(**kd())
        trainer(max_steps=5, accumulate_grad_batches=count).fit(module, pairs(batch_size=size))
        ends.append(weights(module.student))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-6)


def test_without_delta_it_is_sgd() -> None:
    ends = []
    for optimizer in (
        lambda parameters: DOT(parameters, lr=0.1, momentum=0.9, delta=0.0, weight_decay=0.01),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    ):
        module = distiller(**(kd() | {"optimizer": optimizer}))
        trainer(max_steps=5).fit(module, pairs())
        ends.append(weights(module.student))
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-6)


def hint_only(optimizer: Any) -> Distiller:
    knowledge = {"hint": Knowledge(Hint("1x1"), student_layers=["hidden.0"], teacher_layers=["hidden.0"])}
    return distiller(knowledge=knowledge, optimizer=optimizer)


def test_what_one_gradient_reaches_has_the_usual_momentum() -> None:
    ends = []
    for optimizer in (dot, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)):
        torch.manual_seed(3)
        module = hint_only(optimizer)
        trainer(max_steps=1).fit(module, pairs())  # one step: what comes later depends on the rest of the network
        ends.append(weights(module))
    for name in ("student.fc.weight", "student.fc.bias", "losses.hint"):
        found = [each for each in ends[0] if each.startswith(name) and torch.is_tensor(ends[0][each])]
        assert found
        assert all(torch.allclose(ends[0][each], ends[1][each], atol=1e-7) for each in found)


def test_what_is_distilled_no_longer_has_the_usual_momentum() -> None:
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = DOT([parameter], lr=1.0, momentum=0.5, delta=0.25)
    for task, distilled in ((1.0, 10.0), (2.0, None)):
        optimizer.zero_grad()
        rest = None if distilled is None else distilled * parameter.sum()
        optimizer.split(task * parameter.sum(), rest)
        parameter.grad = torch.full_like(parameter, task + (distilled or 0.0))
        optimizer.step()
    assert parameter.item() == -(1.0 + 10.0) - (0.5 * 1.0 + 2.0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_task_gradient_is_unscaled_in_mixed_precision(accumulate: int) -> None:
    net, (x, y) = network(), next(iter(pairs()))
    scalers = {"plain": None, "scaled": SimpleNamespace(get_scale=lambda: 1024.0)}
    noted = {}
    for name, scaler in scalers.items():
        plugin = SimpleNamespace(scaler=scaler)
        run: Any = SimpleNamespace(precision_plugin=plugin, accumulate_grad_batches=accumulate, world_size=1)
        module, loss = distiller(student=net, teacher=None, knowledge=None), F.cross_entropy(net(x), y)
        module.trainer, module._split, module._parts = run, (optimizer := dot(net.parameters())), (loss, None)
        module.backward(loss)
        noted[name] = optimizer._task
    expected = torch.autograd.grad(F.cross_entropy(net(x), y) / accumulate, list(net.parameters()))
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(noted["plain"][parameter], gradient)
        assert torch.allclose(noted["scaled"][parameter], gradient)


def test_buffers_of_one_gradient_and_of_both() -> None:
    module = hint_only(dot)
    run = trainer(max_steps=2)
    run.fit(module, pairs())
    (optimizer,) = run.optimizers
    names = {name: set(optimizer.state[p]) for name, p in module.named_parameters() if p in optimizer.state}
    assert names["student.fc.weight"] == {"task_momentum"}
    assert names["student.hidden.0.linear.weight"] == {"task_momentum", "distillation_momentum"}
    adapters = {frozenset(each) for name, each in names.items() if name.startswith("losses.")}
    assert adapters == {frozenset({"distillation_momentum"})}


def test_a_step_without_knowledge_is_sgd() -> None:
    knowledge = {"soft": Knowledge(SoftTargets(4.0), 0.9, Constant(begin=1))}
    ends = []
    for optimizer in (dot, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)):
        module = distiller(knowledge=knowledge, optimizer=optimizer)
        trainer(1).fit(module, pairs())
        ends.append(weights(module.student))
        knowledge = {"soft": Knowledge(SoftTargets(4.0), 0.9, Constant(begin=1))}
    assert all(torch.allclose(value, ends[1][name], atol=1e-7) for name, value in ends[0].items())


def test_two_processes_equal_one() -> None:
    ends = []
    for devices in (1, 2):
        module = distiller(**kd())
        train(module, digits(), devices)
        ends.append(weights(module.student))
    for name, value in ends[0].items():
        assert float((value - ends[1][name]).abs().max()) < 1e-6, name


def test_resumed_equals_uninterrupted(tmp_path: Any) -> None:
    whole, half, rest = (distiller(**kd()) for _ in range(3))
    trainer(4).fit(whole, digits())
    run = trainer(2)
    run.fit(half, digits())
    run.save_checkpoint(tmp_path / "half.ckpt")
    trainer(4).fit(rest, digits(), ckpt_path=tmp_path / "half.ckpt")
    assert same(weights(whole.student), weights(rest.student))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DOT([nn.Parameter(torch.ones(1))], delta=0.95), "delta"),
        (lambda: DOT([nn.Parameter(torch.ones(1))], momentum=0.95, delta=0.075), "below 1"),
        (lambda: DOT([nn.Parameter(torch.ones(1))], lr=float("nan")), "lr"),
        (lambda: trainer(gradient_clip_val=1.0).fit(distiller(**kd()), pairs()), "gradient clipping"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_ignored_labels_weigh_no_batch() -> None:
    data: Any = pairs()
    data.dataset.tensors[1][:12] = -100
    module = distiller(**kd())
    trainer(1, accumulate_grad_batches=2).fit(module, data)
    assert module.ignore == -100
    loss = torch.ones(())
    assert module._positions.weighted(loss) is loss
