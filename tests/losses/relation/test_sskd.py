"""SSKD against plain loops."""

import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from kdlab import Knowledge
from kdlab.data import Rotations
from kdlab.errors import InputError
from kdlab.losses import SSKD, SelfSupervision
from kdlab.losses.context import Context
from kdlab.losses.relation.sskd import _divergence
from kdlab.outputs import Outputs
from kdlab.schedules import Constant
from tests.losses.relation.test_self_supervision import slow_cosines, slow_head
from tests.losses.slow import draw, kl, softmax
from tests.modules.tiny import digits, distiller, network, trainer, weights

LABELS = torch.tensor([2, 0, 1, 2, 1])


def side(seed, width, batch=5, views=3):
    view = Outputs(draw(batch * views, 3, seed=seed, scale=2), embedding=draw(batch * views, width, seed=seed + 1))
    return Outputs(
        draw(batch, 3, seed=seed + 2), embedding=draw(batch, width, seed=seed + 3), views={"rotations": view}
    )


def ready(**options):
    loss, head = SSKD(**options), SelfSupervision()
    loss.setup(Context(nn.Identity(), (), losses={"head": head, "other": SSKD()}))
    return loss, head


def kept(scores, truth, share):
    """Positions, in the words of the paper: all that are right, then the share of the wrong ones, best ranks first."""
    ranks = [sorted(row, reverse=True).index(row[t]) for row, t in zip(scores, truth, strict=True)]
    wrong = sorted((i for i, rank in enumerate(ranks) if rank), key=lambda i: (ranks[i], i))
    return [i for i, rank in enumerate(ranks) if not rank] + wrong[: int(share * len(wrong))]


def divergence(ours, theirs, temperature, rows):
    terms = [kl(softmax(theirs[i], temperature), softmax(ours[i], temperature)) for i in rows]
    return temperature**2 * sum(terms) / len(terms)


def slow(loss, head, student, teacher, keep=(1.0, 0.75)):
    ours, theirs = student.views["rotations"].logits.tolist(), teacher.views["rotations"].logits.tolist()
    similar = [
        slow_cosines(
            *([slow_head(net, row) for row in x.tolist()] for x in (s.views["rotations"].embedding, s.embedding))
        )
        for net, s in ((loss.head, student), (head.head, teacher))
    ]
    labels = [label for label in LABELS.tolist() for _ in range(3)]
    own = [i for i in range(5) for _ in range(3)]
    return (
        loss.answers * divergence(student.logits.tolist(), teacher.logits.tolist(), loss.temperature, range(5))
        + loss.rotated_answers * divergence(ours, theirs, loss.temperature, kept(theirs, labels, keep[0]))
        + loss.similarities * divergence(*similar, loss.similarity_temperature, kept(similar[1], own, keep[1]))
    )


@pytest.mark.parametrize("keep", [(1.0, 0.75), (0.3, 1.0), (0.0, 0.6)])
def test_value(keep):
    student, teacher = side(1, 4), side(11, 6)
    loss, head = ready(keep_answers=keep[0], keep_similarities=keep[1])
    got = loss(student, teacher, LABELS).item()
    assert got == pytest.approx(slow(loss, head, student, teacher, keep), rel=1e-9)


def test_the_defaults_are_the_recipe():
    loss = SSKD()
    assert (loss.answers, loss.rotated_answers, loss.similarities) == (0.9, 2.7, 10.0)
    assert (loss.temperature, loss.similarity_temperature) == (4.0, 0.5)
    assert (loss.keep_answers, loss.keep_similarities) == (1.0, 0.75)


@pytest.mark.parametrize("weight", ["answers", "rotated_answers", "similarities"])
def test_a_part_alone(weight):
    options = {"answers": 0.0, "rotated_answers": 0.0, "similarities": 0.0} | {weight: 1.5}
    student, teacher = side(1, 4), side(11, 6)
    loss, head = ready(**options, temperature=2.0, similarity_temperature=0.7)
    got = loss(student, teacher, LABELS).item()
    assert got == pytest.approx(slow(loss, head, student, teacher), rel=1e-9)


def test_nothing_kept_is_0():
    student, teacher = side(1, 4), side(11, 6)
    wrong = torch.eye(3)[(LABELS + 1) % 3].repeat_interleave(3, 0).double()
    view = dataclasses.replace(teacher.views["rotations"], logits=wrong)
    teacher = dataclasses.replace(teacher, views={"rotations": view})
    loss, _ = ready(answers=0.0, similarities=0.0, keep_answers=0.0)
    assert loss(student, teacher, LABELS).item() == 0


def test_a_label_among_equal_first_guesses_is_right():
    student, teacher = side(1, 4), side(11, 6)
    view = dataclasses.replace(teacher.views["rotations"], logits=torch.zeros(15, 3).double())
    teacher = dataclasses.replace(teacher, views={"rotations": view})
    values = [
        ready(answers=0.0, similarities=0.0, keep_answers=keep)[0](student, teacher, LABELS).item()
        for keep in (0.0, 1.0)
    ]
    assert values[0] == values[1] > 0


def test_the_teachers_head_stays_the_other_losses_own():
    loss, head = ready()
    loss(side(1, 4), side(11, 6), LABELS).backward()
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"head"}
    assert loss.head[0].in_features == 4
    assert head.head[0].in_features == 6
    assert all(parameter.grad is None for parameter in head.parameters())
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_missing_inputs_raise_input_error():
    student, teacher = side(1, 4), side(11, 6)
    with pytest.raises(InputError, match=r"call setup\(\)"):
        SSKD()(student, teacher, LABELS)
    with pytest.raises(InputError, match="'other' whose loss is SelfSupervision"):
        SSKD("other").setup(Context(nn.Identity(), (), losses={"other": SSKD()}))
    loss, _ = ready()
    for ours, theirs, words in (
        (dataclasses.replace(student, views={}), teacher, "student has no view 'rotations'"),
        (student, dataclasses.replace(teacher, views={}), "teacher has no view 'rotations'"),
        (side(1, 4, views=2), teacher, "differ in batch size"),
        (side(1, 4, batch=4), teacher, "differ in batch size"),
    ):
        with pytest.raises(InputError, match=words):
            loss(ours, theirs, LABELS)
    with pytest.raises(InputError, match="keep_answers must be at most 1"):
        SSKD(keep_answers=1.5)


def test_the_head_learns_first_and_then_the_student():
    moved, before = [], {}

    class Moved(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            now = weights(module)
            parts = ("student.", "losses.head.", "losses.sskd.")
            changed = [name for name, value in now.items() if before and not torch.equal(value, before[name])]
            moved.append([part for part in parts if any(name.startswith(part) for name in changed)])
            before.update(now)

    knowledge = {
        "head": Knowledge(SelfSupervision(), 1.0, Constant(until=2)),
        "sskd": Knowledge(SSKD(), 1.0, Constant(begin=2)),
    }
    later = Constant(begin=2)
    module = distiller(teacher=network(1, (24,)), knowledge=knowledge, task_weight=0.1, task_schedule=later)
    trainer(4, callbacks=[Moved()]).fit(module, digits(views={"rotations": Rotations()}))
    assert moved[1:] == [["losses.head."], ["student.", "losses.sskd."], ["student.", "losses.sskd."]]


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_the_mean_is_over_the_rows_in_the_mask(rows):
    student, teacher = draw(3, 4, seed=1, scale=2), draw(3, 4, seed=2, scale=2)
    mask = (torch.arange(3) < rows).to(student.dtype)
    p, q = ([softmax([value / 2 for value in row]) for row in x.tolist()] for x in (teacher, student))
    expected = 4 * sum(kl(p[row], q[row]) for row in range(rows)) / max(rows, 1)
    assert _divergence(student, teacher, 2.0, mask).item() == pytest.approx(expected, rel=1e-12)
