"""Kinds of targets, class axis and positions that count: losses and metrics of a module against plain formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdlab import CoTrainer, Distiller, InputError, Knowledge
from kdlab.losses import CRD, DIST, DKD, NKD, RLD, WSLD, Labels, RKDDistance, SoftTargets, VirtualTeacher
from kdlab.members.ensembles import MeanOfLogits
from kdlab.outputs import Outputs
from tests.modules.tiny import trainer


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.0)


def logged(module: Any, batches: list[Any], **options: Any) -> dict[str, float]:
    """One epoch without learning; what is logged at its last step, and in validation."""
    loader: Any = DataLoader(batches, batch_size=None)
    runner = trainer(**({"limit_val_batches": 1.0} | options))
    runner.fit(module, loader, loader)
    return {name: float(value) for name, value in runner.callback_metrics.items()}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    return (p * (p / q).log()).sum(-1) * temperature**2


def pair(build: Any, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    return build(), build()


@pytest.mark.parametrize("shape", [(6,), (4, 3)])
@pytest.mark.parametrize("loss", [SoftTargets(2.0), DKD(), DIST()], ids=lambda x: type(x).__name__)
def test_dense_logits_are_compared_position_by_position(loss: nn.Module, shape: tuple[int, ...]) -> None:
    student, teacher = pair(lambda: (nn.Conv1d if len(shape) == 1 else nn.Conv2d)(3, 5, 1))
    x, y = draw(8, 3, *shape), classes(8, *shape, count=5)
    y[0] = -100
    module = Distiller(student, teacher, {"kd": Knowledge(loss)}, optimizer=sgd)
    values = logged(module, [(x, y)])
    rows = [net(x).movedim(1, -1).flatten(0, -2)[y.flatten() != -100].detach() for net in (student, teacher)]
    labels = y.flatten()[y.flatten() != -100]
    assert values["loss/kd"] == pytest.approx(float(loss(*map(Outputs, rows), labels)), rel=1e-5)
    assert values["val/kl_to_teacher"] == pytest.approx(float(kl(*rows).mean()), rel=1e-5)
    assert values["val/student_accuracy"] == pytest.approx(float((rows[0].argmax(1) == labels).float().mean()))
    assert values["train/student_accuracy"] == values["val/student_accuracy"]
    assert values["val/loss"] == pytest.approx(float(F.cross_entropy(rows[0], labels)), rel=1e-5)


class TokenTask(nn.Module):
    class_axis, ignore_index = -1, -1

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-1)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


def test_padding_of_tokens_does_not_count() -> None:
    student, teacher = pair(Tagger)
    ids, mask = classes(8, 4, count=9), torch.arange(4).expand(8, 4) <= torch.arange(8)[:, None] % 4
    labels = classes(8, 4, count=4, seed=1)
    labels[:, 0] = -1
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}
    module = Distiller(student, teacher, {"kd": Knowledge(SoftTargets(2.0))}, task=TokenTask(), optimizer=sgd)
    values = logged(module, [batch])
    rows = [net(ids)[mask & (labels >= 0)].detach() for net in (student, teacher)]
    assert values["loss/kd"] == pytest.approx(float(kl(*rows, 2.0).mean()), rel=1e-5)
    assert values["val/kl_to_teacher"] == pytest.approx(float(kl(*rows).mean()), rel=1e-5)


def test_square_logits_of_an_unknown_task_are_refused() -> None:
    class Undeclared(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    module = Distiller(Tagger(), task=Undeclared(), optimizer=sgd)
    with pytest.raises(InputError, match=r"class axis of logits \(8, 4, 4\) is unclear.*class_axis"):
        logged(module, [{"input_ids": classes(8, 4, count=9), "labels": classes(8, 4, count=4)}])


@pytest.mark.parametrize("labels", [1, 3])
def test_sigmoid_outputs_are_compared_as_probabilities(labels: int) -> None:
    student, teacher = pair(lambda: nn.Linear(6, labels))
    x = draw(8, 6)
    y = (draw(8, labels, seed=3) > 0).float()
    module = Distiller(
        student, teacher, {"kd": Knowledge(SoftTargets(2.0))}, task=nn.BCEWithLogitsLoss(), optimizer=sgd
    )
    values = logged(module, [(x, y)])
    p, q = (net(x).detach().double().div(2).sigmoid() for net in (teacher, student))
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    assert values["loss/kd"] == pytest.approx(expected.item(), rel=1e-5)
    assert values["val/teacher_accuracy"] == pytest.approx(float(((teacher(x) > 0) == y.bool()).float().mean()))
    assert values["val/loss"] == pytest.approx(F.binary_cross_entropy_with_logits(student(x), y).item(), rel=1e-5)


def test_regression_is_compared_by_squared_differences() -> None:
    student, teacher = pair(lambda: nn.Linear(6, 2))
    x, y = draw(8, 6), draw(8, 2, seed=1)
    module = Distiller(student, teacher, {"kd": Knowledge(SoftTargets(4.0))}, task=nn.MSELoss(), optimizer=sgd)
    values = logged(module, [(x, y)])
    expected = (student(x) - teacher(x)).square().mean().item()
    assert values["loss/kd"] == pytest.approx(expected, rel=1e-5)
    assert values["val/mse_to_teacher"] == pytest.approx(expected, rel=1e-5)
    assert not [name for name in values if "accuracy" in name or "ece" in name or "agreement" in name]


@pytest.mark.parametrize(
    ("task", "loss", "words"),
    [
        (nn.BCEWithLogitsLoss(), DKD(), "DKD is for classes and soft targets.*multilabel"),
        (nn.MSELoss(), DIST(), "DIST is for classes and soft targets.*regression"),
    ],
)
def test_class_losses_are_refused_for_other_targets(task: nn.Module, loss: nn.Module, words: str) -> None:
    student, teacher = pair(lambda: nn.Linear(6, 3))
    module = Distiller(student, teacher, {"kd": Knowledge(loss)}, task=task, optimizer=sgd)
    with pytest.raises(InputError, match=words):
        logged(module, [(draw(8, 6), (draw(8, 3) > 0).float())])


def test_embeddings_of_samples_and_labels_of_pixels_are_refused() -> None:
    student, teacher = pair(lambda: nn.Conv1d(3, 5, 1))
    module = Distiller(student, teacher, {"kd": Knowledge(CRD())}, optimizer=sgd)
    with pytest.raises(InputError, match="CRD needs embedding, index of each sample"):
        logged(module, [(draw(8, 3, 6), classes(8, 6, count=5), torch.arange(8))])


def test_ensembles_of_dense_logits_are_refused() -> None:
    student, teacher = pair(lambda: nn.Conv1d(3, 5, 1))
    module = Distiller(student, [teacher, nn.Conv1d(3, 5, 1)], {"kd": Knowledge(SoftTargets())}, optimizer=sgd)
    with pytest.raises(InputError, match="combines class scores"):
        logged(module, [(draw(8, 3, 6), classes(8, 6, count=5))])


def test_the_mean_of_regressing_teachers() -> None:
    student, teacher = pair(lambda: nn.Linear(6, 2))
    other = nn.Linear(6, 2)
    module = Distiller(
        student,
        [teacher, other],
        {"kd": Knowledge(SoftTargets())},
        task=nn.MSELoss(),
        ensemble=MeanOfLogits(),
        optimizer=sgd,
    )
    x = draw(8, 6)
    values = logged(module, [(x, draw(8, 2, seed=1))])
    expected = (student(x) - (teacher(x) + other(x)) / 2).square().mean()
    assert values["loss/kd"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "loss", [DKD(), NKD(), WSLD(), RLD(), VirtualTeacher(), Labels()], ids=lambda x: type(x).__name__
)
def test_samples_with_ignored_labels_do_not_count(loss: nn.Module) -> None:
    student, teacher = pair(lambda: nn.Linear(6, 4))
    x, y = draw(8, 6), classes(8, count=4)
    later = y.clone()
    later[::3] = -100
    module = Distiller(student, teacher, {"kd": Knowledge(loss)}, optimizer=sgd)
    values = logged(module, [(x, y), (x, later)])
    rows = later >= 0
    expected = loss(Outputs(student(x)[rows]), Outputs(teacher(x)[rows]), later[rows])
    first = loss(Outputs(student(x)), Outputs(teacher(x)), y)
    assert values["loss/kd_step" if "loss/kd_step" in values else "loss/kd"] == pytest.approx(expected.item(), rel=1e-5)
    assert first.item() != pytest.approx(expected.item(), rel=1e-3)
    assert values["train/student_accuracy"] == pytest.approx(
        float((student(x).argmax(1)[rows] == later[rows]).float().mean())
    )


def test_a_batch_without_any_label_adds_nothing() -> None:
    student, teacher = pair(lambda: nn.Linear(6, 4))
    x, y = draw(8, 6), classes(8, count=4)
    knowledge = {"soft": Knowledge(SoftTargets(1.0)), "dkd": Knowledge(DKD())}
    values = logged(Distiller(student, teacher, knowledge, optimizer=sgd), [(x, y), (x, torch.full_like(y, -100))])
    assert values["loss/task"] == values["loss/dkd"] == 0
    assert values["loss/soft"] == pytest.approx(kl(student(x), teacher(x)).mean().item(), rel=1e-5)
    assert values["val/loss"] == pytest.approx(F.cross_entropy(student(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("task", [nn.BCEWithLogitsLoss(), nn.MSELoss()])
def test_cotraining_of_other_targets(task: nn.Module) -> None:
    one, other = pair(lambda: nn.Linear(6, 1))
    x, y = draw(8, 6), (draw(8, 1, seed=1) > 0).float()
    module = CoTrainer(
        {"one": one, "other": other}, {"kd": Knowledge(SoftTargets(1.0))}, task=task, optimizer=sgd, deploy="ensemble"
    )
    values = logged(module, [(x, y)])
    a, b = one(x).detach().double(), other(x).detach().double()
    if isinstance(task, nn.MSELoss):
        assert values["loss/kd"] == pytest.approx(2 * float((a - b).square().mean()), rel=1e-5)
        assert values["val/deployed_mse"] == pytest.approx(float(((a + b) / 2 - y).square().mean()), rel=1e-5)
        assert torch.allclose(module(x).double(), (a + b) / 2)
    else:
        mean = (a.sigmoid() + b.sigmoid()) / 2
        assert values["val/ensemble_accuracy"] == pytest.approx(float(((mean > 0.5) == y.bool()).float().mean()))
        assert torch.allclose(module(x).double().sigmoid(), mean, atol=1e-6)


@pytest.mark.parametrize("knowledge", [None, {"same": Knowledge(RKDDistance())}])
def test_a_task_that_broadcasts_is_refused(knowledge: Any) -> None:
    student, teacher = pair(lambda: nn.Linear(4, 1))
    module = Distiller(student, teacher, knowledge, task=nn.MSELoss(), optimizer=sgd)
    with pytest.raises(InputError, match=r"task loss \(MSELoss\).*target size"):
        logged(module, [(draw(8, 4), draw(8, seed=1))], limit_val_batches=0)


def test_peers_with_a_task_of_an_unknown_kind() -> None:
    class Own(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return (logits - target).abs().mean()

    one, other = pair(lambda: nn.Linear(6, 2))
    batch = (draw(8, 6), draw(8, 2, seed=1))
    values = logged(CoTrainer({"one": one, "other": other}, task=Own(), optimizer=sgd), [batch])
    assert {name for name in values if name.startswith("val/")} == {"val/loss"}
    with pytest.raises(InputError, match="declare target_kind"):
        logged(CoTrainer({"one": one, "other": other}, task=Own(), optimizer=sgd, deploy="ensemble"), [batch])


def test_a_user_task_may_declare_its_kind() -> None:
    class Own(nn.Module):
        target_kind = "regression"

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            return (logits - target).abs().mean()

    class Undeclared(Own):
        target_kind = "other"

    student, teacher = pair(lambda: nn.Linear(6, 2))
    batch = (draw(8, 6), draw(8, 2, seed=1))
    module = Distiller(student, teacher, {"kd": Knowledge(SoftTargets())}, task=Own(), optimizer=sgd)
    assert "val/mse_to_teacher" in logged(module, [batch])
    module = Distiller(student, teacher, {"kd": Knowledge(SoftTargets())}, task=Undeclared(), optimizer=sgd)
    with pytest.raises(InputError, match="declaring target_kind"):
        logged(module, [batch])
    assert set(logged(Distiller(student, teacher, task=Undeclared(), optimizer=sgd), [batch])) == {
        "loss/total", "loss/task", "loss/task_weighted", "weight/task", "val/loss",
    }  # fmt: skip
