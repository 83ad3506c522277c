"""A knowledge: its weight over time, the layers it hands on, and the precision of its loss."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.losses import SoftTargets
from kdlab.members import Learner
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Constant, Linear, Progress
from kdlab.teaching import Peers, TwoViews
from kdlab.teaching.plan import Edge


class Notes(nn.Module):
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.student, self.teacher = student, teacher
        self.autocast = torch.is_autocast_enabled("cpu")
        return student.logits.sum()


def seen(*names: str) -> Outputs:
    layers = tuple(torch.full((2, 3), float(i)) for i in range(len(names)))
    return Outputs(torch.ones(2, 3), layers=layers, names=names)


EDGE = Edge("a", "b")


def compared(knowledge: Knowledge, student: Outputs, teacher: Outputs | None, edge: Edge = EDGE) -> Any:
    outputs = {"a": student} if teacher is None else {"a": student, "b": teacher}
    return knowledge.compare(edge, knowledge.loss, outputs, Batch(torch.empty(0), torch.zeros(2)))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weight_must_be_at_least_zero(weight: float) -> None:
    with pytest.raises(InputError, match="weight must be a finite number of at least 0"):
        Knowledge(Notes(), weight=weight)


def test_weight_follows_the_schedule() -> None:
    assert Knowledge(Notes(), weight=3).weight_at(Progress(7, 0)) == 3.0
    ramped = Knowledge(Notes(), weight=3, schedule=Linear(length=10))
    assert [ramped.weight_at(Progress(epoch, 0)) for epoch in (0, 5, 20)] == [0.0, 1.5, 3.0]
    assert Knowledge(Notes(), schedule=Constant(until=1)).weight_at(Progress(1, 0)) == 0.0


def test_one_side_given_alone_serves_both() -> None:
    assert Knowledge(Notes(), student_layers=["a"]).teacher_layers == ("a",)
    assert Knowledge(Notes(), teacher_layers=["a"]).student_layers == ("a",)
    both = Knowledge(Notes(), student_layers=["a"], teacher_layers=["b"])
    assert (both.student_layers, both.teacher_layers) == (("a",), ("b",))


def test_a_loss_that_reads_one_side_alone_is_given_that_side() -> None:
    class OneSided(Notes):
        def __init__(self, *needs: str) -> None:
            super().__init__()
            self.needs = needs

    for loss in (OneSided("student_layers"), OneSided("logits", "student_layers")):
        student = Knowledge(loss, student_layers=["a"])
        assert (student.student_layers, student.teacher_layers) == (("a",), ())
    teacher = Knowledge(OneSided("teacher_layers"), teacher_layers=["a"])
    assert (teacher.student_layers, teacher.teacher_layers) == ((), ("a",))


def test_a_loss_sees_its_own_layers_in_its_own_order() -> None:
    knowledge = Knowledge(loss := Notes(), student_layers=["c", "a"], teacher_layers=["y", "x"])
    compared(knowledge, seen("a", "b", "c"), seen("x", "y"))
    assert (loss.student.names, [int(each[0, 0]) for each in loss.student.layers]) == (("c", "a"), [2, 0])
    assert (loss.teacher.names, [int(each[0, 0]) for each in loss.teacher.layers]) == (("y", "x"), [1, 0])


def test_a_loss_without_layers_sees_none() -> None:
    compared(Knowledge(loss := Notes()), seen("a"), seen("b"))
    assert loss.student.layers == ()


def test_any_loss_is_computed_in_float32_outside_of_autocast() -> None:
    knowledge = Knowledge(loss := Notes(), student_layers=["a"])
    half = seen("a").map(lambda value: value.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        value = compared(knowledge, half, half)
    assert not loss.autocast
    assert {value.dtype, loss.student.logits.dtype, loss.teacher.layers[0].dtype} == {torch.float32}


def test_members_too_are_compared_in_float32_outside_of_autocast() -> None:
    class Each(Notes):
        def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            self.forward(student, teacher, target)
            return (student.logits - teacher.logits).square().sum(1)

    logits, members = torch.randn(2, 3), [torch.randn(2, 3) for _ in range(2)]
    weights = (torch.tensor([0.3, 0.6]), torch.tensor([0.7, 0.4]))
    student = Outputs(logits).map(Tensor.bfloat16)
    teacher = Outputs(logits, members=tuple(zip(map(Outputs, members), weights, strict=True))).map(Tensor.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = compared(Knowledge(loss := Each()), student, teacher)
    assert not loss.autocast
    assert {value.dtype, loss.student.logits.dtype, loss.teacher.logits.dtype} == {torch.float32}
    expected = sum(
        (weight.float() * (student.logits.float() - seen.logits.float()).square().sum(1)).mean()
        for seen, weight in teacher.members
    )
    assert torch.allclose(value, torch.as_tensor(expected), rtol=1e-6)


def test_an_edge_has_a_weight_and_perhaps_no_teacher() -> None:
    knowledge, a = Knowledge(Notes(), weight=7.0), seen()
    assert float(compared(knowledge, a, a)) == 6.0  # without the knowledge's own weight
    assert float(compared(knowledge, a, a, Edge("a", "b", 0.5))) == 3.0
    assert float(compared(knowledge, a, a, Edge("a", "b", lambda outputs, batch: 0.25))) == 1.5
    assert compared(knowledge, a, a, Edge("a", "b", 0.0)) is None
    assert compared(knowledge, a, a, Edge("a", "b", lambda outputs, batch: 0.0)) is None
    assert compared(knowledge, a, None) is None


def test_an_edge_with_a_weight_for_each_sample() -> None:
    student, teacher = Outputs(torch.tensor([[1.0, 2.0], [3.0, 5.0]])), Outputs(torch.zeros(2, 2))
    edge = Edge("a", "b", lambda outputs, batch: torch.tensor([0.5, 2.0]))

    class Each(Notes):
        def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            return (student.logits - teacher.logits).sum(1)

    assert float(compared(Knowledge(Each()), student, teacher, edge)) == (0.5 * 3.0 + 2.0 * 8.0) / 2
    with pytest.raises(InputError, match=r"Notes gives one number a batch.*per_sample"):
        compared(Knowledge(Notes()), student, teacher, edge)


def test_edge_weights_multiply_an_ensembles_weights() -> None:
    class Each(Notes):
        def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            return (student.logits - teacher.logits).sum(1)

    student, zeros, ones = Outputs(torch.tensor([[1.0, 2.0], [3.0, 5.0]])), torch.zeros(2, 2), torch.ones(2, 2)
    shares = torch.tensor([0.25, 0.5]), torch.tensor([0.75, 0.5])
    teacher = Outputs(zeros, members=((Outputs(zeros), shares[0]), (Outputs(ones), shares[1])))
    edge = Edge("a", "b", lambda outputs, batch: torch.tensor([0.5, 2.0]))
    expected = (0.5 * (0.25 * 3.0 + 0.75 * 1.0) + 2.0 * (0.5 * 8.0 + 0.5 * 6.0)) / 2
    assert float(compared(Knowledge(Each()), student, teacher, edge)) == expected


def test_a_teacher_is_detached_unless_the_edge_says_otherwise() -> None:
    net = Outputs(torch.ones(2, 3, requires_grad=True))
    for detach in (True, False):
        compared(Knowledge(loss := Notes()), net, net, Edge("a", "b", detach=detach))
        assert loss.student.logits.requires_grad
        assert loss.teacher.logits.requires_grad != detach


class Needy(Notes):
    needs: ClassVar[tuple[str, ...]] = ("layers", "embedding", "classes", "index")


def test_what_is_missing_is_named_one_after_the_other() -> None:
    full = Outputs(torch.ones(2, 3), embedding=torch.ones(2, 4), index=torch.arange(2))
    labels = torch.zeros(2).long()
    assert "student_layers" in str(Knowledge(Needy()).missing(full, labels))
    knowledge = Knowledge(Needy(), student_layers=["a", "b"])
    assert "embedding" in str(knowledge.missing(seen("a", "b"), labels))
    assert "class indices" in str(knowledge.missing(full, torch.ones(2, 3)))
    without_index = Outputs(full.logits, embedding=full.embedding)
    assert "(inputs, labels, index)" in str(knowledge.missing(without_index, labels))
    assert knowledge.missing(full, labels) is None


def test_who_reads_the_logits() -> None:
    assert Knowledge(SoftTargets()).reads_logits
    assert Knowledge(Notes()).reads_logits
    assert not Knowledge(Notes(), student_layers=["a"]).reads_logits
    assert not Knowledge(Needy()).reads_logits


@pytest.mark.parametrize("needs", ["logits", ("logitz",), ("layers", "index", "label")])
def test_a_typo_in_needs_is_refused(needs: Any) -> None:
    loss = SoftTargets(4.0)
    loss.needs = needs  # type: ignore[misc]
    with pytest.raises(InputError, match=r"SoftTargets.needs is a tuple out of 'logits', 'layers'"):
        Knowledge(loss)


def test_a_teachers_name_selects_its_variants_too() -> None:
    plan = TwoViews().plan({name: Learner(name, nn.Linear(2, 2)) for name in ("a", "b")})
    knowledge = Knowledge(SoftTargets(), teachers=["a"])
    knowledge.connect(plan, "mine")
    assert [edge[:2] for edge, _ in knowledge.edges] == [("a", "a@second"), ("a@second", "a")]


def test_hooks_of_every_copy_are_called() -> None:
    class Advancing(Notes):
        def advance(self, epoch: int, step: int) -> None:
            self.at = epoch, step

    knowledge = Knowledge(Advancing())
    knowledge.connect(Peers().plan({name: Learner(name, nn.Linear(2, 2)) for name in ("a", "b")}), "mine")
    for advance in knowledge.parts("advance"):
        advance(1, 2)
    assert len(knowledge.copies) == 2
    assert all(loss.at == (1, 2) for loss in knowledge.copies.values())
