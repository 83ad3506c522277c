"""CRD against plain loops; its memory in training, in evaluation and in checkpoints."""

import copy
import dataclasses
import logging
import math

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import CRD
from kdlab.losses.context import Context
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw

SAMPLES = 20
CLASSES = torch.arange(SAMPLES) % 4
INDEX = torch.tensor([3, 0, 17, 8, 5])


def context(labels=CLASSES, samples=SAMPLES):
    return Context(nn.Linear(2, 2), (), samples=samples, labels=labels)


def ready(**options):
    torch.manual_seed(0)
    loss = CRD(**({"negatives": 6, "width": 4} | options))
    loss.setup(context())
    return loss


def sides(seed=1, index=INDEX, scale=1.0):
    """Student, teacher and labels."""
    logits = torch.zeros(len(index), 4)
    student = Outputs(logits, embedding=draw(len(index), 3, seed=seed, scale=scale), index=index)
    return student, Outputs(logits, embedding=draw(len(index), 5, seed=seed + 1, scale=scale)), CLASSES[index]


def step(loss, given):
    value = loss(*given)
    value.backward()
    loss.after_backward()
    return value.item()


def vectors(linear, x):
    found = []
    for row in x.tolist():
        row = [dot(w, row) + b for w, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)]
        found.append([value / math.sqrt(dot(row, row)) for value in row])
    return found


def exponentials(vector, bank, rows, temperature):
    return [[math.exp(dot(v, bank[i]) / temperature) for i in some] for v, some in zip(vector, rows, strict=True)]


def slow(loss, student, teacher, rows, z=None):
    """The loss and both Z; ``z`` None is the first batch."""
    k, rows = rows.shape[1] - 1, rows.tolist()
    ours, theirs = vectors(loss.embed_student, student.embedding), vectors(loss.embed_teacher, teacher.embedding)
    banks = loss.memory.teacher.tolist(), loss.memory.student.tolist()
    total, found = 0.0, []
    for number, (vector, bank) in enumerate(zip((ours, theirs), banks, strict=True)):
        powers = exponentials(vector, bank, rows, loss.temperature)
        found.append(z[number] if z else SAMPLES * sum(map(sum, powers)) / (len(rows) * (k + 1)))
        for row in powers:
            p = [power / found[-1] for power in row]
            c = k / SAMPLES + 1e-7
            total -= math.log(p[0] / (p[0] + c)) + sum(math.log(k / SAMPLES / (each + c)) for each in p[1:])
    return total / len(rows), found


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_value_of_two_steps(temperature, monkeypatch):
    loss = ready(temperature=temperature)
    rows = torch.randint(SAMPLES, (5, 7), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(loss, "draw", lambda index, labels: rows)
    loss.eval()(*sides())
    loss.train()
    first, z = slow(loss, *sides()[:2], rows)
    assert loss(*sides()).item() == pytest.approx(first, rel=1e-9)
    assert step(loss, sides()) == pytest.approx(first, rel=1e-9)
    assert loss.memory.log_z.exp().tolist() == pytest.approx(z, rel=1e-9)
    later = sides(seed=5)
    expected, _ = slow(loss, *later[:2], rows, z)
    assert step(loss, later) == pytest.approx(expected, rel=1e-9)
    assert loss.memory.log_z.exp().tolist() == pytest.approx(z, rel=1e-9)
    assert loss._constant  # not looked at again, which on a GPU waits


@pytest.mark.parametrize("positive", ["exact", "relax"])
def test_drawn_rows_are_contrasted(positive, monkeypatch):
    loss = ready(positive=positive)
    loss.eval()(*sides())
    drawn, seen = CRD.draw, []
    monkeypatch.setattr(loss, "draw", lambda *given: seen.append(drawn(loss, *given)) or seen[-1])
    value = loss(*sides()).item()
    (rows,) = seen
    assert value == pytest.approx(slow(loss, *sides()[:2], rows)[0], rel=1e-9)
    own = CLASSES[INDEX][:, None]
    assert rows.shape == (5, 7)
    assert (CLASSES[rows[:, 1:]] != own).all()
    assert (CLASSES[rows[:, :1]] == own).all()
    assert torch.equal(rows[:, 0], INDEX) == (positive == "exact")
    assert all(len(set(row)) == 6 for row in rows[:, 1:].tolist())


def test_the_gradient_is_that_of_the_old_memory():
    loss = ready()
    given = sides()
    given[0].embedding.requires_grad_()
    torch.manual_seed(3)
    value = loss(*given)
    value.backward()
    assert given[0].embedding.grad.isfinite().all()
    loss.after_backward()
    written = loss.memory.student.clone()
    loss.after_backward()  # there is nothing more to write
    assert torch.equal(loss.memory.student, written)


def test_the_batch_is_written_after_the_backward_pass():
    loss = ready(momentum=0.2)
    loss.eval()(*sides())
    before = copy.deepcopy(loss.state_dict())
    loss.train()
    loss(*sides())
    assert same_state(before, loss.state_dict())
    loss.after_backward()
    rest = [i for i in range(SAMPLES) if i not in INDEX.tolist()]
    for side, linear, x in zip(
        ("student", "teacher"),
        (loss.embed_student, loss.embed_teacher),
        (each.embedding for each in sides()[:2]),
        strict=False,
    ):
        old, new = before[f"memory.{side}"], loss.get_buffer(f"memory.{side}")
        moved = 0.2 * old[INDEX] + 0.8 * torch.tensor(vectors(linear, x)).double()
        assert torch.allclose(new[INDEX], moved / moved.norm(dim=1, keepdim=True), atol=1e-12)
        assert torch.equal(new[rest], old[rest])
    assert loss.memory.labels[INDEX].tolist() == CLASSES[INDEX].tolist()


def same_state(first, second):
    return all(
        torch.equal(value.nan_to_num(-1), second[name].nan_to_num(-1))
        for name, value in first.items()
        if name != "_extra_state"
    )


def test_evaluation_changes_nothing():
    loss = ready()
    loss.eval()
    loss(*sides())
    before = copy.deepcopy(loss.state_dict())
    step(loss, sides())
    assert same_state(before, loss.state_dict())
    loss.train()
    step(loss, sides(seed=5))
    assert loss.memory.log_z.isfinite().all()


def test_labels_that_are_unknown_are_learned():
    torch.manual_seed(0)
    loss = CRD(negatives=12, width=4)
    loss.setup(context(labels=None))
    for start in range(0, SAMPLES, 5):
        step(loss, sides(index=torch.arange(start, start + 5)))
    assert torch.equal(loss.memory.labels, CLASSES)
    rows = loss.draw(INDEX, CLASSES[INDEX])
    assert (CLASSES[rows[:, 1:]] != CLASSES[INDEX][:, None]).all()


def test_sample_is_not_its_own_negative_with_unknown_labels():
    torch.manual_seed(0)
    loss = CRD(negatives=15, width=4)
    loss.setup(context(labels=None))
    loss.eval()(*sides())
    for _ in range(20):
        rows = loss.draw(INDEX, CLASSES[INDEX])
        assert not (rows[:, 1:] == INDEX[:, None]).any()
        assert all(len(set(row)) == 16 for row in rows.tolist())
    assert (loss.memory.labels == -1).all()


def test_second_setup_keeps_trained_values():
    loss = ready()
    step(loss, sides())
    before = copy.deepcopy(loss.state_dict())
    loss.setup(context())
    assert same_state(before, loss.state_dict())
    with pytest.raises(InputError, match="set up for 20 training samples, not 21"):
        loss.setup(context(samples=21, labels=None))


def test_a_checkpoint_sizes_the_memory_and_sets_the_constants():
    def given(seed):
        student, teacher, labels = sides(seed)
        return student.map(lambda x: x.float()), teacher.map(lambda x: x.float()), labels

    old, fresh = ready(), CRD(negatives=6, width=4)
    step(old, given(1))
    state = copy.deepcopy(old.state_dict())
    fresh.load_state_dict(state, strict=True)
    assert same_state(state, fresh.state_dict())
    fresh.setup(context())
    values = []
    for loss in (old, fresh):
        torch.manual_seed(7)
        values.append([step(loss, given(5)), step(loss, given(8))])
    assert values[0] == values[1]
    used = ready()
    step(used, given(9))
    used(*given(10))  # not written yet: must not be, into the memory that is loaded
    used.load_state_dict(state)
    used.after_backward()
    assert same_state(state, used.state_dict())


def test_setup_logs_and_checks_the_memory(caplog, monkeypatch):
    with caplog.at_level(logging.INFO, "kdlab"):
        CRD().setup(context(labels=None, samples=50_000))
    assert "51 MB" in caplog.text
    monkeypatch.setattr("kdlab.losses.relation.crd._free_memory", lambda device: 25e6)
    with pytest.raises(InputError, match=r"take 51 MB, but cpu has 25 left: lower width"):
        CRD().setup(context(labels=None, samples=50_000))
    CRD(width=60).setup(context(labels=None, samples=50_000))


@pytest.mark.parametrize("content", [None, "MemTotal: 8 kB", "no table"])
def test_setup_goes_on_where_free_memory_is_unknown(content, monkeypatch, tmp_path):
    path = tmp_path / "meminfo"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("kdlab.losses.relation.crd.Path", lambda name: path)
    CRD().setup(context(labels=None, samples=50_000))


def test_invalid_inputs_raise_input_error():
    student, teacher, labels = sides()
    for given, words in (
        (context(samples=None, labels=None), "the number of training samples"),
        (context(labels=CLASSES[:5]), "20 samples, but 5 labels"),
    ):
        with pytest.raises(InputError, match=words):
            CRD().setup(given)
    with pytest.raises(InputError, match=r"call setup\(\)"):
        CRD()(student, teacher, labels)
    alone = CRD()
    alone.setup(context(labels=torch.zeros(SAMPLES).long()))
    with pytest.raises(InputError, match="of one class"):
        alone(student, teacher, labels)
    for index, words in (
        (None, "sample index"),
        (INDEX[:3], "one index for each, not 5 and 3"),
        (INDEX + 3, "outside the training set of 20"),
        (INDEX - 1, "outside the training set of 20"),
    ):
        with pytest.raises(InputError, match=words):
            ready()(dataclasses.replace(student, index=index), teacher, labels)
    for options, words in (({"positive": "near"}, "'exact' or 'relax'"), ({"momentum": 1.5}, "at most 1")):
        with pytest.raises(InputError, match=words):
            CRD(**options)


def test_extreme_vectors_are_finite_in_float32():
    loss = ready(temperature=0.01)
    given = [each.map(lambda x: x.float().requires_grad_()) for each in sides(scale=1e4)[:2]]
    loss.setup(context())
    value = loss(*given, CLASSES[INDEX])
    value.backward()
    loss.after_backward()
    assert value.isfinite()
    assert given[0].embedding.grad.isfinite().all()
    assert loss.memory.log_z.isfinite().all()
