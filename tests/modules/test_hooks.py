"""What a loss is told: the run at set-up, the training set, how far the training is, the end of a backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import Knowledge
from kdlab.errors import InputError
from kdlab.losses import SoftTargets
from kdlab.losses.context import Context
from kdlab.outputs import Outputs
from tests.modules.test_ddp import train
from tests.modules.tiny import digits, distiller, network, pairs, same, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


class Told(nn.Module):
    """Notes what it is told; its memory changes after every backward pass."""

    needs: ClassVar[tuple[str, ...]] = ("logits", "classes", "index")

    def __init__(self) -> None:
        super().__init__()
        self.settings: list[Context] = []
        self.progress: list[tuple[int, int]] = []
        self.calls: list[str] = []
        self.register_buffer("counts", torch.zeros(10))
        self.register_buffer("memory", torch.zeros(160))
        self.pending: tuple[Tensor, Tensor] | None = None

    def setup(self, context: Context) -> None:
        self.settings.append(context)

    def precompute(self, batches: Iterable[tuple[Outputs, Tensor]]) -> None:
        if self.counts.any():
            return
        for seen, target in batches:
            assert seen.logits.shape == (len(target), 10)
            self.counts += torch.bincount(target, minlength=10)

    def advance(self, epoch: int, step: int) -> None:
        self.progress.append((epoch, step))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.calls.append("forward")
        assert student.index is not None
        if self.training:
            self.pending = student.index, student.logits.detach()[:, 0]
        return ((student.logits[:, 0] - self.memory[student.index]) ** 2).mean()

    def after_backward(self) -> None:
        self.calls.append("after")
        assert self.pending is not None
        index, values = self.pending
        self.memory[index] = values


class Wrapped(nn.Module):
    """A loss that takes a loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        value: Tensor = self.loss(student, teacher, target)
        return value


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_loss_is_told_of_the_run(wrapped: bool) -> None:
    told = Told()
    knowledge = {"told": Knowledge(Wrapped(told) if wrapped else told), "soft": Knowledge(SoftTargets(4.0))}
    module = distiller(knowledge=knowledge)
    data = digits()
    trainer(2).fit(module, data)
    (context,) = told.settings
    assert context.student is module.student
    assert context.teacher is module.teacher.networks[0]  # type: ignore[union-attr]
    assert (context.samples, context.batch_size, context.classes) == (160, 32, 10)
    assert context.labels is not None
    assert torch.equal(torch.bincount(context.labels).float(), told.counts)  # each sample was shown once
    assert set(context.losses) == {"told", "soft"}
    assert told.progress == [(step // 5, step) for step in range(10)]
    assert told.calls == ["forward"] + ["forward", "after"] * 10  # the first is the dry run's
    assert told.memory.ne(0).all()


def test_labels_of_a_users_data_set_and_of_none() -> None:
    told = Told()
    told.needs = ("logits", "classes")  # type: ignore[misc]
    x, y = torch.randn(20, 64), torch.arange(20) % 10

    class Mine(TensorDataset):
        targets = y.tolist()

    for kind, known in ((Mine, True), (TensorDataset, False)):
        knowledge = {"told": Knowledge(told, schedule=None)}
        indexed = kind(x, y, torch.arange(20))
        trainer(1).fit(distiller(knowledge=knowledge), DataLoader(indexed, 5))
        assert told.settings[-1].samples == 20
        assert (told.settings[-1].labels is not None) == known


def test_the_survey_leaves_no_trace_and_is_kept_by_the_checkpoint(tmp_path: Path) -> None:
    class Seen(Told):
        surveys = 0

        def precompute(self, batches: Iterable[tuple[Outputs, Tensor]]) -> None:
            before = float(self.counts.sum())
            super().precompute(batches)
            Seen.surveys += float(self.counts.sum()) > before

    def module(loss: nn.Module) -> Any:
        return distiller(student=network(dropout=0.2), knowledge={"told": Knowledge(loss, 0.1)})

    ends = []
    for loss in (Told(), Seen()):
        whole = module(loss)
        pl.seed_everything(0, verbose=False)
        trainer(4).fit(whole, digits())
        ends.append(weights(whole))
    assert same(*ends)
    half, rest = module(Seen()), module(Seen())
    pl.seed_everything(0, verbose=False)
    run = trainer(2)
    run.fit(half, digits())
    run.save_checkpoint(tmp_path / "half.ckpt")
    counted = Seen.surveys
    trainer(4).fit(rest, digits(), ckpt_path=tmp_path / "half.ckpt")
    assert Seen.surveys == counted  # the checkpoint brought what an earlier survey found
    assert same(weights(rest), ends[0])


def test_each_process_surveys_its_share() -> None:
    told = Told()
    train(distiller(knowledge={"told": Knowledge(told)}), digits(), 2, epochs=1)
    # the first process has seen half; losses sum what the processes saw
    assert told.counts.sum() == 80


def test_another_knowledges_loss_is_found_by_name_and_kind() -> None:
    context = Context(network(), (network(1), network(2)), losses={"soft": SoftTargets(4.0)})
    assert context.loss("soft", SoftTargets) is context.losses["soft"]
    with pytest.raises(InputError, match="knowledge named 'other' whose loss is SoftTargets"):
        context.loss("other", SoftTargets)
    with pytest.raises(InputError, match="one teacher, not an ensemble of 2"):
        _ = context.teacher
    with pytest.raises(InputError, match="no layer 'hiden'; the nearest names are 'hidden'"):
        context.layer("student", "hiden")
    assert context.classifier("teacher", 1).out_features == 10
    bare = Context(nn.Sequential(nn.Conv2d(1, 2, 1)), (network(),))
    with pytest.raises(InputError, match="needs the student's classifier"):
        bare.classifier("student")


def test_a_failing_set_up_is_one_sentence() -> None:
    class Picky(Told):
        def setup(self, context: Context) -> None:
            raise InputError("The bank of 160 samples does not fit.")

    with pytest.raises(InputError, match=r"^Knowledge 'told' \(Picky\): The bank of 160 samples does not fit\.$"):
        trainer().fit(distiller(knowledge={"told": Knowledge(Picky())}), digits())


def test_pairs_without_an_index_are_refused() -> None:
    with pytest.raises(InputError, match="sample index"):
        trainer().fit(distiller(knowledge={"told": Knowledge(Told())}), pairs())
