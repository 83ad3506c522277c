"""What a rehearsal reads of the data and of the run, and what it finds whatever a user's warnings are set to."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from kdlab import Knowledge
from kdlab.data import Rotations
from kdlab.errors import InputError
from kdlab.modules.first_batch import FirstBatch
from kdlab.outputs import Batch
from kdlab.teaching import Gated
from tests.data.test_views import Twice
from tests.modules.cotraining import branched, cotrainer, soft
from tests.modules.test_bad_input import Loss
from tests.modules.test_hooks import Told
from tests.modules.tiny import digits, distiller, network, same, trainer, weights

FIRST = 8  # samples of the dry run


def test_classes_of_the_data_set_that_the_first_batch_does_not_show() -> None:
    data = digits(batch_size=2, seed=1)
    data.setup()
    assert int(next(iter(data.train_dataloader())).target.max()) < 9
    with pytest.raises(InputError, match="labels go from 0 to 9, but the student has 9 classes"):
        trainer().fit(distiller(student=network(classes=9), teacher=None, knowledge=None), data)


def test_a_silent_broadcast_is_found_where_warnings_are_not_errors() -> None:
    loss = Loss(lambda s, t, y: F.mse_loss(s.layers[0], t.layers[0]))
    knowledge = {"mine": Knowledge(loss, student_layers=["hidden.0"])}
    module = distiller(student=network(0, (1,)), teacher=network(1, (10,)), knowledge=knowledge)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of these tests
        with pytest.raises(InputError, match=r"\(8, 1\).*\(8, 10\).*broadcasting.*kdlab.losses.Hint"):
            trainer().fit(module, digits())


def test_a_loss_is_told_where_the_training_will_run() -> None:
    device = torch.device("cpu", 0)  # which is not torch.device("cpu"), a setting's own default
    told = Told()
    trainer(strategy=SingleDeviceStrategy(device)).fit(distiller(knowledge={"told": Knowledge(told)}), digits())
    assert [setting.device for setting in told.settings] == [device]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_teacher_of_another_dtype_is_refused(precision: Any) -> None:
    module = distiller(teacher=network(1).half())
    with pytest.raises(InputError, match=r"The teacher fails on inputs \(8, 1, 8, 8\) float32: .*Half"):
        trainer(precision=precision).fit(module, digits())


def test_the_first_samples_come_with_all_their_views() -> None:
    x, more = torch.randn(16, 64), torch.randn(16 * 3, 64)
    few = FirstBatch(Batch(x, torch.arange(16) % 10, torch.arange(16), {"more": more}), 1, 16, None).few
    assert few.views is not None
    assert torch.equal(few.views["more"], more[: 3 * FIRST])
    assert [len(each) for each in (few.inputs, few.target, few.index)] == [FIRST] * 3  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_views_are_dry_run_in_the_dtype_of_the_weights(precision: Any) -> None:
    loss = Twice("turned")
    module = distiller(knowledge={"twice": Knowledge(loss)})
    trainer(max_steps=1, precision=precision).fit(module, digits(views={"turned": Rotations()}))
    assert [len(student.views["turned"].logits) for student, _ in loss.seen] == [3 * FIRST, 3 * 32]


def test_labels_that_are_not_one_a_sample_are_not_told() -> None:
    class Part(Dataset[Any]):
        """The first half of the data, with the labels of all of it."""

        targets = (torch.arange(40) % 10).tolist()

        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> tuple[Tensor, int, int]:
            return torch.ones(64), self.targets[i], i

    told = Told()
    told.needs = ("logits", "classes")  # type: ignore[misc]
    trainer().fit(distiller(knowledge={"told": Knowledge(told)}), DataLoader(Part(), 5))
    assert (told.settings[0].samples, told.settings[0].labels) == (20, None)


@pytest.mark.filterwarnings("ignore:Found 1 module")  # Lightning sees the layer in eval mode
def test_modes_and_buffers_are_as_before_when_training_starts() -> None:
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 10)]
    student = nn.Sequential(*layers)
    student[3].eval()
    before, seen = weights(student), []

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            seen.append((weights(student), [part.training for part in layers]))

    trainer(max_steps=1, callbacks=[Watch()]).fit(distiller(student=student), digits())
    ((after, modes),) = seen
    assert same(after, before)
    assert modes == [True, True, True, False, True]


def test_losses_and_teaching_are_dry_run_in_eval_mode() -> None:
    modes: dict[str, list[bool]] = {"loss": [], "gate": []}
    knowledge = soft()
    module = cotrainer({"net": branched()}, knowledge=knowledge, teaching=Gated("layer2"))
    for name, part in (("loss", knowledge["soft"].copies["net", "ensemble"]), ("gate", module.teaching.gate)):
        part.register_forward_pre_hook(lambda part, args, name=name: modes[name].append(part.training))
    trainer(max_steps=1).fit(module, digits())
    assert modes == {"loss": [False, True], "gate": [False, True]}
