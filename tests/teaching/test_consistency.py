"""A learner taught by itself on other inputs: which inputs, in one forward, with which labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.data import SecondView
from kdlab.losses import BAKE, SoftTargets
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Classmate, Classmates, Peers, TwoViews
from tests.losses.slow import draw, softmax
from tests.modules.cotraining import Product
from tests.modules.tiny import count_calls, digits, network, pairs, same, sgd, trainer, weights


def soft() -> dict[str, Knowledge]:
    return {"soft": Knowledge(SoftTargets(4.0))}


def trained(teaching: Any, knowledge: dict[str, Knowledge] | None = None, steps: int = 2) -> tuple[CoTrainer, Batch]:
    module = CoTrainer({"net": network()}, knowledge or soft(), teaching, optimizer=sgd)
    data = digits(padding=1)
    trainer(max_steps=steps).fit(module, data)
    return module, data.prepare(next(iter(data.train_dataloader())), 0)


@pytest.mark.parametrize(("teaching", "rows"), [(Classmate(), 64), (Classmates(3), 128), (TwoViews(), 64)])
def test_there_is_one_forward(teaching: Any, rows: int) -> None:
    module = CoTrainer({"net": network()}, soft(), teaching, optimizer=sgd)
    calls = count_calls(module.networks["net"])
    trainer(max_steps=3).fit(module, digits())
    assert calls[1:] == [rows] * 3  # after the rehearsal's


def test_the_classmate_is_of_the_same_class_and_teaches() -> None:
    module, batch = trained(Classmate())
    view = batch.views["classmate"]
    assert torch.equal(view.target, batch.target)
    assert not torch.equal(view.index, batch.index)
    outputs = module.observe(batch)
    (lesson,) = module.lessons(outputs, batch)
    torch.testing.assert_close(lesson.teacher.logits, module.networks["net"](view.inputs).detach())
    assert lesson.student is None
    (answer,) = module.answers(outputs, batch)
    assert answer.weight == 1
    assert len(answer.logits) == 32


def test_all_of_a_class_are_one_batch() -> None:
    module, batch = trained(Classmates(3), {"bake": Knowledge(BAKE())})
    view = batch.views["classmates"]
    assert torch.equal(view.target, batch.target.repeat_interleave(3))
    outputs = module.observe(batch)
    (lesson,) = module.lessons(outputs, batch)
    net = module.networks["net"]
    whole = torch.cat([batch.inputs, view.inputs])
    torch.testing.assert_close(lesson.student.logits, net(whole))
    assert torch.equal(lesson.target, torch.cat([batch.target, view.target]))
    assert not lesson.teacher.embedding.requires_grad
    labels = sum(x.weight * F.cross_entropy(x.logits, x.target) for x in module.answers(outputs, batch))
    torch.testing.assert_close(labels, F.cross_entropy(net(whole), lesson.target))


def test_two_views_teach_each_other() -> None:
    module, batch = trained(TwoViews())
    outputs = module.observe(batch)
    first, second = module.lessons(outputs, batch)
    a, b = outputs["net"].logits, outputs["net"].views["second"].logits
    assert torch.equal(first.teacher.logits, b.detach())
    assert torch.equal(second.teacher.logits, a.detach())
    assert torch.equal(second.student.logits, b)
    labels = sum(x.weight * F.cross_entropy(x.logits, x.target) for x in module.answers(outputs, batch))
    torch.testing.assert_close(labels, (F.cross_entropy(a, batch.target) + F.cross_entropy(b, batch.target)) / 2)


def test_the_teacher_of_a_view_carries_no_gradient_unless_asked() -> None:
    seen = Outputs(
        torch.zeros(2, 3, requires_grad=True), views={"second": Outputs(torch.ones(2, 3, requires_grad=True))}
    )
    batch = Batch(torch.empty(0), torch.tensor([0, 1]))
    for detach in (True, False):
        lessons = TwoViews(detach).lessons({"net": seen}, batch)
        assert [x.teacher.logits.requires_grad for x in lessons] == [not detach] * 2


def test_a_classmate_is_a_constant() -> None:
    """For a loss that leaves its teacher in the graph: the classmate's side gets no gradient."""
    own, other = draw(4, 3).requires_grad_(), draw(4, 3, seed=1).requires_grad_()
    seen = Outputs(own, views={"classmate": Outputs(other)})
    batch = Batch(torch.empty(0), torch.zeros(4, dtype=torch.long))
    (lesson,) = Classmate().lessons({"net": seen}, batch)
    ours, theirs = torch.autograd.grad(Product()(seen, lesson.teacher, batch.target), [own, other], allow_unused=True)
    assert theirs is None
    for got, row in zip(ours.tolist(), other.tolist(), strict=True):
        assert got == pytest.approx([value / 4 for value in row], rel=1e-12)


def test_images_without_labels_of_their_own_are_of_their_samples_class() -> None:
    """As a user's own loader gives them: the three of one sample side by side."""
    own, further = draw(2, 3), draw(6, 3, seed=1)
    seen = Outputs(own, views={"classmates": Outputs(further)})
    batch = Batch(torch.empty(0), torch.tensor([2, 0]))
    labels = [2, 0, 2, 2, 2, 0, 0, 0]
    rows = [*own.tolist(), *further.tolist()]
    expected = sum(-math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / 8
    answers = Classmates(3).answers({"net": seen}, batch)
    got = sum(float(F.cross_entropy(each.logits, each.target)) * each.weight for each in answers)
    assert got == pytest.approx(expected, rel=1e-12)
    (lesson,) = Classmates(3).lessons({"net": seen}, batch)
    assert lesson.student is not None
    assert lesson.student.logits.tolist() == rows
    assert lesson.target is not None
    assert lesson.target.tolist() == labels


def test_users_loaders_are_told_what_is_missing() -> None:
    module = CoTrainer({"net": network()}, soft(), Classmate(), optimizer=sgd)
    with pytest.raises(InputError, match="no view 'classmate'"):
        trainer(1).fit(module, pairs())


def test_another_fit_does_not_pay_for_what_one_asked_for() -> None:
    data = digits()
    trainer(max_steps=1).fit(CoTrainer({"net": network()}, soft(), Classmate(), optimizer=sgd), data)
    plain = CoTrainer({"a": network(0), "b": network(1)}, soft(), Peers(), optimizer=sgd)
    trainer(max_steps=1).fit(plain, data)
    assert data.prepare(next(iter(data.train_dataloader())), 0).views is None


def test_a_users_view_of_that_name_comes_first() -> None:
    module = CoTrainer({"net": network()}, soft(), TwoViews(), optimizer=sgd)
    own = SecondView(7)
    data = digits(padding=1, views={"second": own})
    trainer(max_steps=1).fit(module, data)
    assert data.all_views["second"] is own


def test_same_seed_same_bits() -> None:
    ends = [weights(trained(Classmate(), steps=4)[0]) for _ in range(2)]
    assert same(*ends)
