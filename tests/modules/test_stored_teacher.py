"""Trainings with a teacher that is a file: the same bits as with the teacher, and what is refused before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import Knowledge
from kdlab.config.first_step import _FirstStep
from kdlab.data import Digits
from kdlab.errors import InputError
from kdlab.losses import DIST, Hint, RKDDistance, SimKD, SoftTargets
from kdlab.members import Stored, save_outputs
from kdlab.modules.output_writer import Choice, write_outputs
from kdlab.teaching import TeacherCache
from tests.modules.tiny import digits, distiller, network, pairs, same, trainer, weights


class Write(pl.Callback):
    """Writes a file where ``kdlab cache`` does."""

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path, self.choice = path, choice

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        write_outputs(pl_module, self.path, self.choice)
        raise _FirstStep


def written(path: Path, data: Any, teacher: Any = None, choice: Choice = Choice(), **options: Any) -> Stored:  # noqa: B008
    module = distiller(teacher=teacher or network(1), **options)
    with pytest.raises(_FirstStep):
        trainer(1, callbacks=[Write(path, choice)]).fit(module, data)
    return Stored(str(path))


def trained(teacher: Any, data: Any = None, epochs: int = 2, **options: Any) -> dict[str, Tensor]:
    module = distiller(teacher=teacher, **options)
    trainer(epochs).fit(module, data or digits())
    return weights(module.student)


def test_a_float32_file_trains_as_the_teacher(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    live = trained(network(1))
    assert same(live, trained(file))


@pytest.mark.full
def test_views_of_augmentation_train_as_the_teacher(tmp_path: Path) -> None:
    def data() -> Digits:
        return digits(padding=1, distinct_epochs=2)

    file = written(tmp_path / "t.safetensors", data(), choice=Choice(views=2))
    live = trained(network(1), data(), epochs=3)
    assert same(live, trained(file, data(), epochs=3))
    assert not same(live, trained(network(1), digits(padding=1, distinct_epochs=1), epochs=3))


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_rounds_as_stated(tmp_path: Path, dtype: torch.dtype, error: float) -> None:
    exact = written(tmp_path / "a.safetensors", digits()).file.tensors["logits"]
    rounded = written(tmp_path / "b.safetensors", digits(), choice=Choice(dtype=dtype)).file.tensors["logits"]
    difference = (exact - rounded.float()).abs()
    assert bool((difference <= error * exact.abs() + 1e-7).all())
    assert bool((difference > 0).any())


@pytest.mark.full
def test_embeddings_train_as_the_teachers(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits(), choice=Choice(embedding=True), knowledge=rkd())
    live = trained(network(1), knowledge=rkd())
    assert same(live, trained(file, knowledge=rkd()))


def rkd() -> dict[str, Knowledge]:
    return {"rkd": Knowledge(RKDDistance(), 1.0), "dist": Knowledge(DIST(), 1.0)}


@pytest.mark.full
def test_a_file_and_a_network_are_an_ensemble(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    live = trained([network(1), network(2)])
    assert same(live, trained([file, network(2)]))


@pytest.mark.full
def test_the_file_of_an_ensemble_is_its_mean(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits(), [network(1), network(2)])
    assert same(trained([network(1), network(2)]), trained(file))


@pytest.mark.full
def test_evaluation_has_no_teacher(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    run = trainer(1, limit_val_batches=1)
    module = distiller(teacher=file)
    run.fit(module, digits())
    assert "val/student_accuracy" in run.callback_metrics
    assert "val/teacher_accuracy" not in run.callback_metrics
    (tmp_path / "t.safetensors").unlink()
    run.validate(distiller(teacher=Stored(file.path)), digits(), verbose=False)  # nor needs the file


def refused(teacher: Any, data: Any = None, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        trained(teacher, data, **options)
    return str(caught.value)


@pytest.mark.full
def test_other_samples_and_another_order_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    assert "has outputs of 160 samples, but the training set has 96" in refused(file, digits(train_size=96))
    assert "the samples or their order differ" in refused(file, digits(seed=1))
    assert same(trained(file), trained(file, digits(augmentation_seed=5)))  # where nothing is augmented


@pytest.mark.full
def test_augmentation_is_refused_unless_the_teacher_is_fixed(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    message = refused(file, digits(padding=1))
    assert "but the data augments: switch it off" in message
    assert "--views=K" in message
    assert "fixed=true" in message
    trained(Stored(file.path, fixed=True), digits(padding=1))
    views = written(tmp_path / "v.safetensors", digits(padding=1, distinct_epochs=2), choice=Choice(views=2))
    assert "set data.distinct_epochs=2" in refused(views, digits(padding=1))
    assert "augmented is" in refused(views, digits(padding=2, distinct_epochs=2))
    with pytest.raises(InputError, match="--views=K writes those of K epochs"):
        written(tmp_path / "w.safetensors", digits(padding=1))


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    data = digits()
    data.setup()
    labels = data._split("train").labels  # type: ignore[attr-defined]
    save_outputs(tmp_path / "l.safetensors", logits=torch.eye(10)[labels], labels=labels)
    trained(Stored(str(tmp_path / "l.safetensors")))
    save_outputs(tmp_path / "m.safetensors", logits=torch.eye(10)[labels], labels=labels.roll(1))
    assert "row 0 has the label" in refused(Stored(str(tmp_path / "m.safetensors")))


@pytest.mark.full
def test_an_order_that_nothing_shows_is_warned_of(tmp_path: Path) -> None:
    data = digits()
    data.setup()
    labels = data._split("train").labels  # type: ignore[attr-defined]
    save_outputs(tmp_path / "l.safetensors", logits=torch.eye(10)[labels.roll(1)])
    with pytest.warns(UserWarning, match="neither a fingerprint nor labels, and agrees with .* where chance gives"):
        trained(Stored(str(tmp_path / "l.safetensors")))
    save_outputs(tmp_path / "n.safetensors", logits=torch.eye(10)[labels])  # right for all: no warning
    trained(Stored(str(tmp_path / "n.safetensors")))


@pytest.mark.full
def test_losses_that_need_more_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "t.safetensors", digits())
    hint = {"hint": Knowledge(Hint(), student_layers=["hidden.0"], teacher_layers=["3"])}
    assert "reads layers of the teacher" in refused(file, knowledge=hint)
    assert "reads layers of the teacher" in refused(file, knowledge={"s": Knowledge(SimKD())})
    assert "the teacher's embedding" in refused(file, knowledge={"rkd": Knowledge(RKDDistance())})
    save_outputs(tmp_path / "e.safetensors", embedding=torch.randn(160, 16))
    soft = {"soft": Knowledge(SoftTargets())}
    assert "has an embedding alone" in refused(Stored(str(tmp_path / "e.safetensors")), knowledge=soft)
    save_outputs(tmp_path / "c.safetensors", logits=torch.randn(160, 12))
    with pytest.warns(UserWarning, match="neither"):
        assert "the student gives 10 classes and the teacher 12" in refused(Stored(str(tmp_path / "c.safetensors")))
    with pytest.raises(InputError, match="a stored teacher is a file"):
        distiller(teacher=file, teacher_cache=TeacherCache(str(tmp_path)))


def test_a_loader_without_index_is_refused(tmp_path: Path) -> None:
    save_outputs(tmp_path / "t.safetensors", logits=torch.randn(40, 10))
    with pytest.raises(InputError, match="needs the sample index"):
        trainer(1).fit(distiller(teacher=Stored(str(tmp_path / "t.safetensors"))), pairs())


@pytest.mark.full
def test_batch_statistics_are_not_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    with pytest.raises(InputError, match="depend on its batch"):
        written(tmp_path / "t.safetensors", digits(), net, teacher_batchnorm="batch")
