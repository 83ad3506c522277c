"""Norm and direction: its value against plain loops, its survey of the training set, and runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.errors import InputError
from kdlab.losses import NormAndDirection
from kdlab.losses.context import Context
from kdlab.models import embedded as with_embedding
from kdlab.models import mlp
from kdlab.outputs import Outputs, observe
from tests.losses.slow import dot, draw, embedded
from tests.modules.tiny import digits, distiller, knowledge, network, pairs, sgd, trainer


def seen(values: Tensor, classes: int = 3) -> Outputs:
    return Outputs(values.new_zeros(len(values), classes), embedding=values)


def surveyed(*batches: tuple[Tensor, list[int]], classes: int = 3) -> NormAndDirection:
    loss = NormAndDirection()
    loss.precompute([(seen(values, classes), torch.tensor(labels)) for values, labels in batches])
    return loss


BATCHES = [(draw(4, 5, seed=1), [0, 2, 1, 2]), (draw(3, 5, seed=2), [0, 0, 2])]


def slow(student, teacher, labels, batches):
    rows = [(row, label) for values, own in batches for row, label in zip(values.tolist(), own, strict=True)]
    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels, strict=True):
        members = [row for row, label in rows if label == y]
        mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
        longer = max(dot(s, s) ** 0.5, dot(t, t) ** 0.5)
        total += 1 - dot(s, mean) / dot(mean, mean) ** 0.5 / longer
    return total / len(labels)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_value(scale):
    student, teacher, labels = draw(4, 5, seed=3, scale=scale), draw(4, 5, seed=4), [2, 0, 1, 2]
    value = surveyed(*BATCHES)(seen(student), seen(teacher), torch.tensor(labels))
    assert value.item() == pytest.approx(slow(student, teacher, labels, BATCHES), rel=1e-11)


def test_zero_for_a_long_embedding_in_the_direction_of_its_class():
    loss, labels = surveyed(*BATCHES), torch.tensor([0, 1, 2])
    teacher = draw(3, 5, seed=5)
    for length, expected in ((100.0, 0.0), (1000.0, 0.0)):
        student = length * nn.functional.normalize(loss.means.values, dim=1)
        assert loss(seen(student), seen(teacher), labels).item() == pytest.approx(expected, abs=1e-12)
    short = nn.functional.normalize(loss.means.values, dim=1) * teacher.norm(dim=1, keepdim=True) / 4
    assert loss(seen(short), seen(teacher), labels).item() == pytest.approx(0.75)


def test_zeros_are_finite():
    student = torch.zeros(2, 5, requires_grad=True)
    value = surveyed((torch.rand(2, 5), [0, 1]))(seen(student), seen(torch.zeros(2, 5)), torch.tensor([0, 1]))
    value.backward()
    assert value.item() == 1
    assert student.grad.isfinite().all()


def test_a_class_without_samples_counts_one():
    value = surveyed((torch.ones(2, 5), [0, 1]))(seen(torch.rand(1, 5)), seen(torch.rand(1, 5)), torch.tensor([2]))
    assert value.item() == 1


def test_the_sum_is_taken_over_all_processes(monkeypatch: pytest.MonkeyPatch):
    whole = surveyed(*BATCHES)
    values, labels = BATCHES[1]
    other = torch.zeros(3, 6, dtype=torch.float64)
    for row, label in zip(values, labels, strict=True):
        other[label] += torch.cat([row, row.new_ones(1)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda total: total.add_(other))
    assert torch.allclose(surveyed(BATCHES[0]).means.values, whole.means.values)


def test_means_are_saved_and_not_computed_again_after_loading():
    old, new = surveyed(*BATCHES), NormAndDirection()
    new.load_state_dict(old.state_dict())
    new.precompute([(seen(draw(2, 5)), torch.tensor([0, 1]))])
    assert torch.equal(new.means.values, old.means.values.float())
    new.setup(Context(nn.Identity(), (nn.Identity(),)))
    new.precompute([(seen(draw(2, 5)), torch.tensor([0, 1]))])
    assert torch.equal(new.means.values[0], draw(2, 5)[0])


def test_it_reads_the_tapped_layer_in_the_survey_too():
    loss = NormAndDirection()
    loss.setup(Context(nn.Identity(), (nn.Identity(),), ("low",), ("low",)))
    layers = (draw(2, 7, seed=1), draw(2, 2, 2, seed=2))
    loss.precompute([(Outputs(torch.zeros(2, 3), layers, draw(2, 5), names=("high", "low")), torch.tensor([0, 1]))])
    assert torch.equal(loss.means.values[:2], layers[1].flatten(1))


def test_invalid_inputs_raise_input_error():
    student, teacher, labels = embedded(draw(2, 5)), embedded(draw(2, 5)), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"call precompute\(batches\) first"):
        NormAndDirection()(student, teacher, labels)
    assert NormAndDirection().eval()(student, teacher, labels).isfinite()
    with pytest.raises(InputError, match="labels go from 0 to 3, but the teacher has 3 classes"):
        surveyed((draw(2, 5), [0, 3]))
    with pytest.raises(InputError, match="labels go from -1 to 0"):
        surveyed((draw(2, 5), [0, -1]))
    with pytest.raises(InputError, match="yields no batch"):
        surveyed()
    with pytest.raises(InputError, match="integer class labels"):
        NormAndDirection().precompute([(seen(draw(2, 5)), torch.rand(2))])
    loss = surveyed(*BATCHES)
    with pytest.raises(InputError, match=r"5 entries and the teacher's 6: make the student kdlab.models.embedded\(.*6"):
        loss(student, embedded(draw(2, 6)), labels)
    with pytest.raises(InputError, match="means are of 3 classes and 5 entries, but the networks have 4 classes"):
        loss(seen(draw(2, 5), 4), teacher, labels)
    with pytest.raises(InputError, match=r"means are of 3 classes and 5 entries, but the networks have 2 classes .* 6"):
        loss(embedded(draw(2, 6)), embedded(draw(2, 6)), labels)
    with pytest.raises(InputError, match="empty"):
        loss(embedded(draw(0, 5)), embedded(draw(0, 5)), labels[:0])


# Runs


def means_of(teacher: nn.Module) -> Tensor:
    x, y = (torch.cat(parts) for parts in zip(*pairs(), strict=True))
    values = observe(teacher.eval(), x).embedding.detach()
    return torch.stack([values[y == k].mean(0) for k in range(10)])


def plan(teacher: int = 1, **options: Any) -> Distiller:
    nd = {"direction": Knowledge(NormAndDirection(), 2.0)}
    return distiller(teacher=network(teacher), knowledge=knowledge(layers=("hidden.0", "hidden.0")) | nd, **options)


def test_run_computes_means_and_resumed_run_restores_them(tmp_path: Path):
    module, fit = plan(), trainer(1)
    fit.fit(module, pairs())
    means = module.losses["direction"].means.values
    assert torch.allclose(means, means_of(network(1)), atol=1e-6)
    fit.save_checkpoint(tmp_path / "one.ckpt")

    again = plan(teacher=2)  # were it to survey, the means would be others
    trainer(2).fit(again, pairs(), ckpt_path=tmp_path / "one.ckpt")
    assert torch.equal(again.losses["direction"].means.values, means)
    assert len(again.state_dict()) == len(module.state_dict())


def test_a_second_fit_looks_at_the_teacher_again():
    module = plan()
    trainer(1).fit(module, pairs())
    module.teacher.networks[0].load_state_dict(network(2).state_dict())
    trainer(1).fit(module, pairs())
    assert torch.allclose(module.losses["direction"].means.values, means_of(network(2)), atol=1e-6)


def test_a_wider_teacher_needs_the_wider_student():
    teacher = mlp(64, [24], 10)
    nd = {"direction": Knowledge(NormAndDirection())}
    with pytest.raises(InputError, match=r"16 entries and the teacher's 24: make the student kdlab.models.embedded"):
        trainer().fit(Distiller(network(), teacher, nd, optimizer=sgd), pairs())
    module = Distiller(with_embedding(network(), 24), teacher, nd, optimizer=sgd)
    trainer().fit(module, pairs())
    assert module.losses["direction"].means.values.shape == (10, 24)
    assert module.dry_run.idle == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded", "ignore:BatchNorm normalizes")
def test_two_processes_take_the_same_means_as_one(tmp_path: Path):
    states = []
    for devices in (1, 2):
        options: dict[str, Any] = {"strategy": "ddp_fork", "devices": devices} if devices > 1 else {}
        keep = ModelCheckpoint(tmp_path / str(devices), save_last=True, save_top_k=0, every_n_epochs=1)
        run = trainer(1, callbacks=[keep], enable_checkpointing=True, limit_val_batches=1.0, **options)
        run.fit(plan(), digits(train_size=160))
        state = torch.load(tmp_path / str(devices) / "last.ckpt", weights_only=True)["state_dict"]
        states.append(state["losses.direction.means.values"])
    assert states[0].any()
    assert torch.allclose(*states, atol=1e-6)
