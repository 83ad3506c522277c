"""Networks taught by themselves on other inputs: which inputs, in one forward, with which labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.data import SecondView
from kdlab.losses import BAKE, SoftTargets
from kdlab.outputs import Batch
from kdlab.teaching import Classmate, Classmates, Peers, TwoViews
from tests.losses.slow import draw, softmax
from tests.modules.tiny import count_calls, digits, network, pairs, same, sgd, trainer, weights
from tests.teaching.step import Given, Kept, compared, first_batch_of, seen_by


def soft() -> dict[str, Knowledge]:
    return {"soft": Knowledge(SoftTargets(4.0))}


def trained(teaching: Any, knowledge: dict[str, Knowledge] | None = None, steps: int = 2) -> tuple[CoTrainer, Batch]:
    module = CoTrainer({"net": network()}, knowledge or soft(), teaching, optimizer=sgd)
    data = digits(padding=1)
    trainer(max_steps=steps).fit(module, data)
    return module, first_batch_of(data)


@pytest.mark.parametrize(("teaching", "rows"), [(Classmate(), 64), (Classmates(3), 128), (TwoViews(), 64)])
def test_views_run_in_one_forward(teaching: Any, rows: int) -> None:
    module = CoTrainer({"net": network()}, soft(), teaching, optimizer=sgd)
    calls = count_calls(module.networks["net"])
    trainer(max_steps=3).fit(module, digits())
    assert calls[1:] == [rows] * 3  # after the dry run's


def test_classmate_is_of_the_same_class_and_teaches() -> None:
    module, batch = trained(Classmate())
    view = batch.views["classmate"]
    assert torch.equal(view.target, batch.target)
    assert not torch.equal(view.index, batch.index)
    seen, batch = seen_by(module, batch)
    assert [edge[:2] for edge in module.plan.edges] == [("net", "net@classmate")]
    teacher = module.networks["net"](view.inputs)
    torch.testing.assert_close(seen["net@classmate"].logits, teacher)
    p, log_q = (teacher / 4).softmax(1), F.log_softmax(seen["net"].logits / 4, 1)
    kl = 16 * F.kl_div(log_q, p, reduction="batchmean")
    torch.testing.assert_close(compared(module, seen, batch)["net", "net@classmate"], kl)
    labels = F.cross_entropy(module.networks["net"](batch.inputs), batch.target)
    torch.testing.assert_close(module.supervised(seen, batch), labels)


def test_classmates_join_the_batch() -> None:
    module, batch = trained(Classmates(3), {"bake": Knowledge(BAKE())})
    view = batch.views["classmates"]
    assert torch.equal(view.target, batch.target.repeat_interleave(3))
    seen, batch = seen_by(module, batch)
    net = module.networks["net"]
    inputs, target = torch.cat([batch.inputs, view.inputs]), torch.cat([batch.target, view.target])
    torch.testing.assert_close(seen["net@all"].logits, net(inputs))
    assert torch.equal(seen["net@all"].targets(batch), target)
    torch.testing.assert_close(module.supervised(seen, batch), F.cross_entropy(net(inputs), target))


def test_classmates_teacher_is_detached() -> None:
    loss = Kept()
    module = CoTrainer({"net": network()}, {"soft": Knowledge(loss)}, Classmates(1))
    batch = Batch(draw(2, 64).float(), torch.tensor([2, 0]), views={"classmates": draw(2, 64, seed=1).float()})
    compared(module, *seen_by(module, batch))
    ((student, teacher, _),) = loss.read
    assert all(tensor.requires_grad for tensor in student.tensors())
    assert not any(tensor.requires_grad for tensor in teacher.tensors())
    assert teacher.embedding is not None


def test_two_views_teach_each_other() -> None:
    module, batch = trained(TwoViews())
    seen, batch = seen_by(module, batch)
    a, b = seen["net"].logits, seen["net@second"].logits
    torch.testing.assert_close(a, module.networks["net"](batch.inputs))
    torch.testing.assert_close(b, module.networks["net"](batch.views["second"].inputs))
    found = compared(module, seen, batch)
    for pair, student, teacher in ((("net", "net@second"), a, b), (("net@second", "net"), b, a)):
        p, log_q = (teacher / 4).softmax(1), F.log_softmax(student / 4, 1)
        torch.testing.assert_close(found[pair], 16 * F.kl_div(log_q, p, reduction="batchmean"))
    labels = (F.cross_entropy(a, batch.target) + F.cross_entropy(b, batch.target)) / 2
    torch.testing.assert_close(module.supervised(seen, batch), labels)


@pytest.mark.parametrize("detach", [True, False])
def test_second_view_carries_gradient_only_if_requested(detach: bool) -> None:
    loss, net = Kept(), Given(torch.zeros(2, 3), torch.ones(2, 3))
    module = CoTrainer({"net": net}, {"soft": Knowledge(loss)}, TwoViews(detach))
    batch = Batch(torch.empty(2, 1), torch.tensor([0, 1]), views={"second": torch.empty(2, 1)})
    compared(module, *seen_by(module, batch))
    assert [teacher.logits.requires_grad for _, teacher, _ in loss.read] == [not detach] * 2


def test_classmate_gets_no_gradient() -> None:
    """For a loss that leaves its teacher in the graph."""
    student, teacher = draw(4, 3), draw(4, 3, seed=1)
    net = Given(student, teacher)
    module = CoTrainer({"net": net}, {"soft": Knowledge(Kept())}, Classmate())
    batch = Batch(torch.empty(4, 1), torch.zeros(4, dtype=torch.long), views={"classmate": torch.empty(4, 1)})
    (value,) = compared(module, *seen_by(module, batch)).values()
    gradients = torch.autograd.grad(value, [*net.logits])
    assert not gradients[1].any()
    for got, row in zip(gradients[0].tolist(), teacher.tolist(), strict=True):
        assert got == pytest.approx([number / 4 for number in row], rel=1e-12)


def test_unlabeled_classmates_take_their_samples_labels() -> None:
    """As a user's own loader gives them: the three of one sample side by side."""
    first, further, loss = draw(2, 3), draw(6, 3, seed=1), Kept()
    module = CoTrainer({"net": Given(first, further)}, {"soft": Knowledge(loss)}, Classmates(3))
    batch = Batch(torch.empty(2, 1), torch.tensor([2, 0]), views={"classmates": torch.empty(6, 1)})
    labels = [2, 0, 2, 2, 2, 0, 0, 0]
    rows = [*first.tolist(), *further.tolist()]
    expected = sum(-math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / 8
    seen, batch = seen_by(module, batch)
    assert module.supervised(seen, batch).item() == pytest.approx(expected, rel=1e-12)
    compared(module, seen, batch)
    ((student, _, target),) = loss.read
    assert student.logits.tolist() == rows
    assert target.tolist() == labels


def test_loader_without_the_view_raises() -> None:
    module = CoTrainer({"net": network()}, soft(), Classmate(), optimizer=sgd)
    with pytest.raises(InputError, match="no view 'classmate'"):
        trainer(1).fit(module, pairs())


def test_views_are_made_only_for_the_fit_that_needs_them() -> None:
    data = digits()
    trainer(max_steps=1).fit(CoTrainer({"net": network()}, soft(), Classmate(), optimizer=sgd), data)
    plain = CoTrainer({"a": network(0), "b": network(1)}, soft(), Peers(), optimizer=sgd)
    trainer(max_steps=1).fit(plain, data)
    assert data.prepare(next(iter(data.train_dataloader())), 0).views is None


def test_users_view_of_that_name_comes_first() -> None:
    module = CoTrainer({"net": network()}, soft(), TwoViews(), optimizer=sgd)
    own = SecondView(7)
    data = digits(padding=1, views={"second": own})
    trainer(max_steps=1).fit(module, data)
    assert data.all_views["second"] is own


def test_same_seed_gives_the_same_bits() -> None:
    ends = [weights(trained(Classmate(), steps=4)[0]) for _ in range(2)]
    assert same(*ends)
