"""The frozen teacher: never changed, never trained, one or several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import FrozenTeacher


def network(seed: int = 0, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)]
    net = nn.Sequential(*layers)
    for _ in range(3):
        net(torch.randn(16, 4) + 1)
    return net


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))


def unfrozen(teacher: FrozenTeacher, how: str) -> None:
    {
        "itself": lambda: teacher.train(),
        "around": lambda: nn.ModuleList([teacher]).train(),
        "network": lambda: teacher.networks[0].train(),
        "each": lambda: [module.train() for module in teacher.modules()],
    }[how]()


@pytest.mark.parametrize("how", ["itself", "around", "network", "each"])
def test_stays_in_eval_mode_through_train(how: str) -> None:
    net = network()
    expected, before = net.eval()(X), {name: value.clone() for name, value in net.state_dict().items()}
    teacher = FrozenTeacher([net.train()], fast=None)
    unfrozen(teacher, how)
    if how in ("itself", "around"):
        assert not any(module.training for module in teacher.modules())
    seen = teacher.observe(X)
    assert torch.equal(seen.logits, expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in teacher.networks[0].modules())


def test_has_no_gradients() -> None:
    teacher = FrozenTeacher([network()])
    assert not any(each.requires_grad for each in teacher.parameters())
    teacher.requires_grad_(True)
    teacher.listen(["0"])
    seen = teacher.observe(X.clone().requires_grad_())
    assert not any(each.requires_grad for each in [*teacher.parameters(), seen.logits, *seen.layers])
    assert not seen.logits.is_inference()  # a trainable embedding may keep it for its backward
    assert seen.layers[0].shape == (6, 8)


def test_batch_statistics_leave_the_running_ones_alone() -> None:
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    seen = FrozenTeacher([net], batchnorm="batch").observe(X).logits
    hidden = net[0](X)
    scale = net[1].weight / (hidden.var(0, unbiased=False) + net[1].eps).sqrt()
    expected = net[4](((hidden - hidden.mean(0)) * scale + net[1].bias).relu())
    assert torch.allclose(seen, expected, atol=1e-5)
    assert not torch.allclose(seen, FrozenTeacher([net]).observe(X).logits, atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[1].track_running_stats
    assert not net[1].training


def test_a_norm_without_running_statistics_stays_without() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 5))
    teacher = FrozenTeacher([net], batchnorm="batch")
    assert torch.equal(teacher.observe(X).logits, net(X))
    assert not net[1].track_running_stats
    assert net[1].running_mean is None


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_ensemble_is_the_mean_of_probabilities(weights: list[float] | None) -> None:
    nets = [network(seed) for seed in range(3)]
    seen = FrozenTeacher(nets, weights).observe(X).logits
    shares = [1 / 3] * 3 if weights is None else [w / 8 for w in weights]
    expected = sum(w * net.double()(X.double()).softmax(-1) for w, net in zip(shares, nets, strict=True))
    assert torch.allclose(seen.double().exp(), expected, atol=1e-6)  # type: ignore[arg-type]


def test_ensemble_of_sure_teachers_stays_finite() -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 200.0], [200.0, 0.0]])

    seen = FrozenTeacher([Sure(), Sure()]).observe(X).logits
    assert torch.allclose(seen, torch.tensor([[-200.0, 0.0], [0.0, -200.0]]))


def test_every_learner_gets_a_lesson_on_the_unchanged_batch() -> None:
    net = network()
    teacher = FrozenTeacher([net], fast=None)
    batch = Batch(X, torch.zeros(6).long())
    student = Outputs(torch.zeros(6, 5))
    assert teacher.views(batch, ["student"])["student"] is X
    (lesson,) = teacher.lessons({"student": student}, batch)
    assert (lesson.learner, lesson.weight) == ("student", 1.0)
    assert torch.equal(lesson.teacher.logits, net(X))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenTeacher([]), "at least one network"),
        (lambda: FrozenTeacher([network()], [1.0, 2.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()] * 2, [1.0, 0.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()] * 2, [1.0, float("inf")]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()], batchnorm="off"), "'frozen' or 'batch'"),  # type: ignore[arg-type]
        (lambda: FrozenTeacher([network(), network(1)]).listen(["0"]), "number of the teacher.* '0.0'"),
        (lambda: FrozenTeacher([network(), network(1, 6)]).observe(X), r"same classes.*\(5,\), \(6,\)"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("how", [{}, {"fast": None}, {"batchnorm": "batch"}])
def test_a_rehearsal_runs_the_networks_as_they_are(how: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [network(), network(1)]
    teacher = FrozenTeacher(nets, **how)
    plainly: list[nn.Module] = []
    ran = "kdlab.members.fast_inference.FastObserver.plainly"
    monkeypatch.setattr(ran, lambda self, x: plainly.append(self.network) or self._plain(x))
    with teacher.rehearsing():
        seen = teacher.observe(X).logits
    assert plainly == ([] if how else nets)
    assert torch.allclose(teacher.observe(X).logits, seen, atol=1e-5)
    assert plainly == ([] if how else nets)
