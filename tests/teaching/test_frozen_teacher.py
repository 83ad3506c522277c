"""The frozen teacher of a run: one or several, for every student."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.members import Learner
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from kdlab.teaching import FrozenTeacher
from tests.teaching.step import Given


def network(seed: int = 0, classes: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, classes)]
    net = nn.Sequential(*layers)
    for _ in range(3):
        net(torch.randn(16, 4) + 1)
    return net


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))


def seen_with(teacher: FrozenTeacher, dry: bool = False) -> dict[str, Outputs]:
    """The outputs of all members in a training step."""
    plan = teacher.plan({"student": Learner("student", Given(torch.zeros(6, 5)))})
    batch, seen = Batch(X, torch.zeros(6).long(), progress=Progress(0, 0)), dict[str, Outputs]()
    for member in plan.members.values():
        member.is_dry_run = dry
        seen |= member(batch, seen)
        member.is_dry_run = False
    return seen


@pytest.mark.parametrize("weights", [None, [1, 2, 5]])
def test_ensemble_is_the_mean_of_probabilities(weights: list[float] | None) -> None:
    nets = [network(seed) for seed in range(3)]
    logits = seen_with(FrozenTeacher(nets, weights))["teacher"].logits
    shares = [1 / 3] * 3 if weights is None else [w / 8 for w in weights]
    expected = sum(w * net.double()(X.double()).softmax(-1) for w, net in zip(shares, nets, strict=True))
    assert torch.allclose(logits.double().exp(), expected, atol=1e-6)  # type: ignore[arg-type]


def test_ensemble_of_confident_teachers_stays_finite() -> None:
    class Confident(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[0.0, 200.0], [200.0, 0.0]])

    logits = seen_with(FrozenTeacher([Confident(), Confident()]))["teacher"].logits
    assert torch.allclose(logits, torch.tensor([[-200.0, 0.0], [0.0, -200.0]]))


def test_each_student_learns_from_the_unchanged_batch() -> None:
    net = network()
    teacher = FrozenTeacher([net], fast=None)
    plan = teacher.plan({"student": Learner("student", Given(torch.zeros(6, 5)))})
    assert [edge[:3] for edge in plan.edges] == [("student", "teacher", 1.0)]
    assert plan.supervision == {"student": 1.0}
    assert torch.equal(seen_with(teacher)["teacher"].logits, net(X))


def test_a_teacher_normalizes_its_inputs_itself() -> None:
    class Normalized(nn.Module):
        """From the student's mean and deviation of the pixels to the teacher's."""

        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net((x * 0.25 + 0.4 - 0.5) / 0.5)

    net, pixels = network(), X * 0.25 + 0.4
    seen = seen_with(FrozenTeacher([Normalized(net)]))
    torch.testing.assert_close(seen["teacher"].logits, net((pixels - 0.5) / 0.5))
    assert not torch.allclose(seen["teacher"].logits, net(X), atol=1e-2)


def test_ensemble_layers_are_named_with_the_teachers_number() -> None:
    nets = [network(), network(1)]
    plan = FrozenTeacher(nets, fast=None).plan({"student": Learner("student", Given(torch.zeros(6, 5)))})
    plan.members["teacher"].set_taps(["1.0", "0.2"])
    batch, seen = Batch(X, torch.zeros(6).long(), progress=Progress(0, 0)), dict[str, Outputs]()
    for member in plan.members.values():
        seen |= member(batch, seen)
    assert seen["teacher"].names == ("1.0", "0.2")
    torch.testing.assert_close(seen["teacher"].layers[0], nets[1][0](X))  # type: ignore[index]
    torch.testing.assert_close(seen["teacher"].layers[1], nets[0][:3](X))  # type: ignore[index]


def tap(layer: str) -> None:
    plan = FrozenTeacher([network(), network(1)]).plan({"student": Learner("student", network(2))})
    plan.members["teacher"].set_taps([layer])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenTeacher([]), "at least one network"),
        (lambda: FrozenTeacher([network()], [1.0, 2.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()] * 2, [1.0, 0.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()] * 2, [1.0, float("inf")]), "one positive number per teacher"),
        (lambda: FrozenTeacher([network()], batchnorm="off"), "'frozen' or 'batch', not 'off'"),  # type: ignore[arg-type]
        (lambda: tap("0"), "number of the teacher.* '0.0'"),
        (lambda: tap("2.0"), "number of the teacher, from '0.' to '1.'"),
        (lambda: seen_with(FrozenTeacher([network(), network(1, 6)])), r"same classes.*\(5,\), \(6,\)"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("how", [{}, {"fast": None}, {"batchnorm": "batch"}])
def test_dry_run_runs_the_networks_themselves(how: Any) -> None:
    nets = [network(), network(1)]
    teacher = FrozenTeacher(nets, **how)
    seen = seen_with(teacher, dry=True)
    if how != {"batchnorm": "batch"}:
        for number, net in enumerate(nets):
            assert torch.equal(seen[f"teacher.{number}"].logits, net(X))
    assert torch.allclose(seen_with(teacher)["teacher"].logits, seen["teacher"].logits, atol=1e-5)


def test_the_only_teacher_can_be_observed() -> None:
    first, second = nn.Linear(3, 4), nn.Linear(3, 4)
    x = torch.randn(2, 3)
    assert torch.equal(FrozenTeacher([first]).observe(x).logits, first(x))
    with pytest.raises(InputError, match="several teachers"):
        FrozenTeacher([first, second]).observe(x)
