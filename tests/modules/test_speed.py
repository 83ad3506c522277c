"""What makes a step cheaper changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab import Distiller, Knowledge
from kdlab.losses import DIST, DKD, PKT, AttentionTransfer, Hint, RKDDistance, SimilarityPreserving, SoftTargets
from kdlab.modules.loss_logging import MOST, LossLog
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import CLASS_SCORES
from kdlab.teaching import Fast
from tests.data.tiny import Tiny
from tests.modules.tiny import Logged, count_calls, digits, distiller, same, trainer, weights


def images(epochs: int = 1, teacher: nn.Module | None = None, **options: Any) -> Distiller:
    """A small network taught by another, on 21 images, 6 steps an epoch."""
    module = Distiller(_small(0), teacher or _small(1), {"soft": Knowledge(SoftTargets(2.0), 0.5)}, **options)
    pl.seed_everything(0, verbose=False)
    trainer(epochs).fit(module, Tiny(padding=1))
    return module


def _small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class Layout(pl.Callback):
    """Notes how the student's maps lie in memory while it trains."""

    def __init__(self) -> None:
        self.channels_last: list[bool] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Distiller)
        layer = pl_module.student.get_submodule("3")
        layer.register_forward_hook(lambda m, a, out: self.channels_last.append(_is_channels_last(out)))


def _is_channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


@pytest.mark.parametrize("asked", [False, True])
def test_channels_last_is_the_same_training_in_another_layout(asked: bool) -> None:
    look = Layout()
    module = Distiller(_small(0), _small(1), {"soft": Knowledge(SoftTargets(2.0), 0.5)}, channels_last=asked)
    trainer(2, callbacks=[look]).fit(module, Tiny(padding=1))
    assert set(look.channels_last) == {asked}
    plain = Distiller(_small(0), _small(1), {"soft": Knowledge(SoftTargets(2.0), 0.5)}, teacher_fast=None)
    trainer(2).fit(plain, Tiny(padding=1))
    for name, value in plain.student.state_dict().items():
        assert torch.allclose(value, module.student.state_dict()[name], atol=1e-5), name


def test_a_compiled_student_keeps_its_names_and_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, *a, **k: asked.append(type(self).__name__))
    module = distiller(compile=True)
    before = list(module.state_dict())
    trainer(1).fit(module, digits())
    assert asked == ["MLP"]
    assert list(module.state_dict()) == before


def test_the_teacher_stops_after_the_last_layer_that_is_read() -> None:
    def ends(knowledge: dict[str, Knowledge]) -> tuple[int, int]:
        teacher = _small(1)
        counted = [count_calls(teacher.get_submodule(name)) for name in ("3", "6")]
        module = Distiller(_small(0), teacher, knowledge, teacher_fast=Fast(False, False))
        trainer(1).fit(module, Tiny())
        return len(counted[0]), len(counted[1])

    at = Knowledge(AttentionTransfer(), student_layers=["3"])
    early, late = ends({"at": at})
    assert (early, late) == (
        8,
        3,
    )  # the dry run (also of the smallest batch) and the first step show in which order the layers run
    both = ends({"at": Knowledge(AttentionTransfer(), student_layers=["3"]), "kd": Knowledge(SoftTargets())})
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("loss", "only_layers", "embedding"),
    [
        (SoftTargets(), False, False),
        (DKD(), False, False),
        (AttentionTransfer(), True, False),
        (Hint(), True, False),
        (RKDDistance(), False, True),
        (nn.Identity(), False, True),  # a user's loss that says nothing may read anything
    ],
)
def test_what_a_loss_may_read_of_the_teacher(loss: nn.Module, only_layers: bool, embedding: bool) -> None:
    knowledge = Knowledge(loss)
    assert knowledge.reads_only_layers is only_layers
    assert knowledge.reads_embedding is embedding


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-3), True),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True), True),
        (lambda p: torch.optim.Adam(p, 0.01), True),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.5), None),
        (lambda p: torch.optim.SGD(p, 0.1, fused=False), False),
        (lambda p: torch.optim.SGD(p, 0.1, foreach=True), None),
        (lambda p: torch.optim.RMSprop(p, 0.01), None),
    ],
)
def test_torchs_own_optimisers_are_fused_where_nothing_else_was_said(optimizer: Any, fused: bool | None) -> None:
    module = distiller(optimizer=optimizer)
    trainer(2).fit(module, digits())
    (used,) = module.trainer.optimizers
    assert used.param_groups[0].get("fused") is fused
    plain = distiller(optimizer=lambda p: _silent(optimizer(p)))
    trainer(2).fit(plain, digits())
    for name, value in weights(plain.student).items():
        assert torch.allclose(value, weights(module.student)[name], atol=1e-6), name


def test_sparse_gradients_are_left_to_the_usual_step() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(4, 8, sparse=True), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.table((x.flatten(1) > 0).long()).mean(1))

    module = distiller(student=Words(), optimizer=lambda p: torch.optim.SGD(p, 0.1))
    trainer(1).fit(module, digits())
    assert module.trainer.optimizers[0].param_groups[0]["fused"] is None


def _silent(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        if group.get("fused") is None:
            group["foreach"] = False
    return optimizer


def test_terms_are_the_means_over_any_number_of_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2 * MOST + 3, generator=generator)
    terms, target = LossLog(), torch.tensor([0, 1, 1])
    for number, value in enumerate(values):
        weight = number / 100
        logits = torch.eye(3)[[0, number % 2, 2]]
        terms.add({"a": (value, weight)}, value * weight, {"student": logits}, target, form=CLASS_SCORES)
    found = {name: float(value) for name, value in terms.flush().items()}
    steps = torch.arange(len(values)) / 100
    assert found["loss/a"] == pytest.approx(float(values.double().mean()), rel=1e-6)
    assert found["loss/a_weighted"] == pytest.approx(float((values.double() * steps).mean()), rel=1e-5)
    assert found["loss/total"] == pytest.approx(found["loss/a_weighted"], rel=1e-5)
    assert found["weight/a"] == pytest.approx(float(steps.double().mean()))
    odd = len(values) // 2
    assert found["train/student_accuracy"] == pytest.approx((1 + odd / len(values)) / 3)
    assert terms.flush() == {}


def test_the_students_accuracy_in_training_is_logged() -> None:
    module = distiller(optimizer=lambda p: torch.optim.SGD(p, lr=1e-9))
    trainer(1, logger=(logged := Logged()), log_every_n_steps=5).fit(module, digits())
    (row,) = (values for _, values in logged.rows if "loss/task" in values)
    data = digits()
    data.setup()
    right = [
        module.student(batch.inputs).argmax(1) == batch.target
        for batch in (data.prepare(each) for each in data.train_dataloader())
    ]
    assert row["train/student_accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))


def test_the_fast_teacher_is_the_default_and_can_be_switched_off() -> None:
    ends = [weights(images(teacher_fast=fast).student) for fast in (Fast(), None)]
    assert not same(ends[0], ends[1])  # folding and layout change the last bits
    assert all(torch.allclose(ends[0][name].float(), ends[1][name].float(), atol=1e-5) for name in ends[0])


def test_the_network_itself_is_what_is_checked_and_kept() -> None:
    teacher = _small(1)
    before = weights(teacher)
    images(teacher=teacher)
    assert same(before, weights(teacher))


class Waits(TorchDispatchMode):
    """Notes the operations for which a GPU would have to be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Watch(pl.Callback):
    """Watches the inside of each training step."""

    def __init__(self) -> None:
        self.waits = Waits()

    def on_train_batch_start(self, *args: Any) -> None:
        self.waits.__enter__()

    def on_train_batch_end(self, *args: Any) -> None:
        self.waits.__exit__(None, None, None)


@pytest.mark.parametrize(
    "loss",
    [
        SoftTargets(4.0),
        DKD(),
        DIST(),
        RKDDistance(),
        Hint(),
        PKT(),
        SimilarityPreserving(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_a_step_never_waits_for_the_device(loss: nn.Module) -> None:
    layers = {"student_layers": ["hidden.0"]} if "layers" in loss.needs else {}  # type: ignore[operator]
    watch = Watch()
    module = distiller(knowledge={"it": Knowledge(loss, 0.5, **layers)}, optimizer=_sgd)  # type: ignore[arg-type]
    trainer(1, callbacks=[watch], log_every_n_steps=50).fit(module, digits())
    assert watch.waits.seen == []


def test_the_watch_sees_a_wait() -> None:
    class Waiting(nn.Module):
        def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            return student.logits.sum() * float(teacher.logits.mean())

    watch = Watch()
    trainer(1, callbacks=[watch]).fit(distiller(knowledge={"it": Knowledge(Waiting(), 0.5)}), digits())
    assert "_local_scalar_dense" in watch.waits.seen


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)
