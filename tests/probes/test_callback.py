"""Probes during training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdlab import Distiller, Knowledge
from kdlab.data import Digits, Preprocessing
from kdlab.errors import InputError
from kdlab.losses import CosineSmoothL1
from kdlab.probes import ProbeFeatures, features_of, knn_accuracy, linear_cka, linear_probe_accuracy
from tests.modules.test_label_free import backbone, images, knowledge, teachers
from tests.modules.tiny import digits, network, sgd, trainer


@pytest.mark.full
def test_the_values_of_the_last_epoch_are_those_of_the_features() -> None:
    probe = ProbeFeatures(every_n_epochs=2, neighbors=5)
    teacher, data = network(1), digits(validation=60)
    module = Distiller(network(0), teacher, {"features": Knowledge(CosineSmoothL1())}, optimizer=sgd)
    run = trainer(3, callbacks=[probe])
    run.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("probe/")}
    batches = {name: [data.prepare(raw) for raw in data._eval_loader(name)] for name in ("train", "val")}
    seen = {name: features_of(module.student, batches[name]) for name in batches}
    assert logged["probe/knn"] == pytest.approx(knn_accuracy(seen["train"], seen["val"], 5))
    assert logged["probe/linear"] == pytest.approx(linear_probe_accuracy(seen["train"], seen["val"]), abs=0.02)
    theirs = features_of(teacher, batches["val"]).embedding
    assert logged["probe/teacher_cka"] == pytest.approx(linear_cka(seen["val"].embedding, theirs), abs=1e-4)
    assert {"probe/teacher_cosine", "probe/teacher_neighbors"} <= logged.keys()


@pytest.mark.full
def test_without_labels_the_teachers_are_compared_and_other_data_probed(tmp_path: Path) -> None:
    run = trainer(1, callbacks=[ProbeFeatures(neighbors=3)])
    module = Distiller(backbone(3, 6), teachers(), knowledge(), optimizer=sgd)
    run.fit(module, datamodule=images(tmp_path, validation=8, batch_size=8))
    logged = {name for name in run.callback_metrics if name.startswith("probe/")}
    assert logged == {f"probe/{name}_{kind}" for name in ("wide", "large") for kind in ("cka", "cosine", "neighbors")}
    other = trainer(1, callbacks=[ProbeFeatures(Digits(train_size=100), neighbors=3)])
    other.fit(Distiller(network(0), optimizer=sgd), datamodule=digits())
    assert {"probe/knn", "probe/linear"} <= {*other.callback_metrics}


class Dark(Digits):
    """The same images, normalized otherwise."""

    def __init__(self) -> None:
        super().__init__(train_size=100)
        self.mean, self.std = [0.5], [0.25]


def test_a_teacher_sees_other_data_as_it_was_trained_to() -> None:
    seen: list[Tensor] = []
    teacher, data, other = network(1), digits(), Dark()
    teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    options = {"teacher_preprocessing": Preprocessing((0.9,), (0.1,)), "optimizer": sgd}
    module = Distiller(network(0), teacher, {"features": Knowledge(CosineSmoothL1())}, **options)
    trainer(1, callbacks=[ProbeFeatures(other, neighbors=3, linear=False)]).fit(module, datamodule=data)
    pixels, _ = other.read(train=False)
    torch.testing.assert_close(torch.cat(seen)[-len(pixels) :], (pixels / 255 - 0.9) / 0.1, rtol=1e-4, atol=1e-4)
    assert module.teacher.frozen[0].normalized == (data.mean, data.std)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="neighbors of ProbeFeatures"):
        ProbeFeatures(neighbors=0)
