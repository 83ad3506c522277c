"""Validation and test: losses over whole data sets, several loaders, remembered teachers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from kdlab import Distiller
from kdlab.modules.evaluation import RememberedLogits, _fingerprint, warn_of_constant, warn_of_teacher
from tests.modules.tiny import digits, trainer


def not_again() -> Tensor:
    pytest.fail("computed again")


def test_flipped_and_reordered_inputs_are_other_inputs() -> None:
    remembered, x = RememberedLogits(), torch.arange(24.0).reshape(4, 1, 2, 3)
    for number, inputs in enumerate((x, x.flip(3), x.flip(2), x.flip(0))):
        logits = torch.full((4, 3), float(number))
        assert torch.equal(remembered.look(inputs, logits.clone), logits)
    assert torch.equal(remembered.look(x.clone(), not_again), torch.zeros(4, 3))


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.bfloat16, torch.float64])
def test_one_changed_number_is_another_input(kind: torch.dtype) -> None:
    remembered, x = RememberedLogits(), torch.randint(0, 2, (4, 5)).to(kind)
    remembered.look(x, lambda: torch.zeros(4, 3))
    x[3, 4] = not x[3, 4]
    assert torch.equal(remembered.look(x, lambda: torch.ones(4, 3)), torch.ones(4, 3))


def test_every_part_of_a_mapping_counts() -> None:
    remembered, ids = RememberedLogits(), torch.arange(6).reshape(2, 3)
    parts = ({"mask": torch.ones(2, 3), "ids": ids + number} for number in range(3))
    for number, inputs in enumerate(parts):
        logits = torch.full((2, 4), float(number))
        assert torch.equal(remembered.look(inputs, logits.clone), logits)
    assert torch.equal(remembered.look({"mask": torch.ones(2, 3), "ids": ids}, not_again), torch.zeros(2, 4))


def test_inputs_of_one_number_a_sample() -> None:
    assert torch.equal(RememberedLogits().look(torch.arange(3), lambda: torch.zeros(3, 2)), torch.zeros(3, 2))


def test_inputs_that_are_no_tensors_are_computed_each_time() -> None:
    remembered = RememberedLogits()
    remembered.look({"text": ["a"]}, lambda: torch.zeros(1, 2))
    assert torch.equal(remembered.look({"text": ["b"]}, lambda: torch.ones(1, 2)), torch.ones(1, 2))


def loader(x: Tensor, y: Tensor, size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, y), batch_size=size)


@pytest.mark.parametrize("size", [100, 25, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_val_loss_is_that_of_the_whole_set(weighted: bool, smoothing: float, size: int) -> None:
    x, y, net = torch.randn(100, 6), torch.arange(100) // 90, nn.Linear(6, 2)
    y[:30] = -100  # whole batches of ignored labels
    weight = torch.tensor([1.0, 9.0]) if weighted else None
    task = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing)
    (values,) = trainer(limit_val_batches=1.0).validate(Distiller(net, task=task), loader(x, y, size), verbose=False)
    assert values["val/loss"] == pytest.approx(task(net(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_val_loss_of_a_summed_task_is_its_mean(reduction: str) -> None:
    x, y, net = torch.randn(30, 6), torch.randn(30, 2), nn.Linear(6, 2)
    module = Distiller(net, task=nn.MSELoss(reduction=reduction))
    (values,) = trainer(limit_val_batches=1.0).validate(module, loader(x, y, 8), verbose=False)
    assert values["val/loss"] == pytest.approx(F.mse_loss(net(x), y).item(), rel=1e-5)


def test_val_loss_of_soft_labels() -> None:
    x, y, net = torch.randn(30, 6), torch.randn(30, 4).softmax(1), nn.Linear(6, 4)
    (values,) = trainer(limit_val_batches=1.0).validate(Distiller(net), loader(x, y, 8), verbose=False)
    assert values["val/loss"] == pytest.approx(F.cross_entropy(net(x), y).item(), rel=1e-5)
    assert values["val/student_accuracy"] == pytest.approx((net(x).argmax(1) == y.argmax(1)).float().mean().item())


@pytest.mark.parametrize("stage", ["val", "test"])
def test_each_loader_has_values_of_its_own(stage: str) -> None:
    x, net = torch.randn(64, 8), nn.Linear(8, 3)
    loaders = [loader(x, (net(x).argmax(1) + shift) % 3) for shift in (0, 1)]
    run = trainer(limit_val_batches=1.0)
    (run.validate if stage == "val" else run.test)(Distiller(net, nn.Linear(8, 3)), loaders, verbose=False)
    values = {name: float(value) for name, value in run.callback_metrics.items()}
    assert values[f"{stage}/student_accuracy/dataloader_idx_0"] == 1
    assert values[f"{stage}/student_accuracy/dataloader_idx_1"] == 0
    losses = [F.cross_entropy(net(x), (net(x).argmax(1) + shift) % 3).item() for shift in (0, 1)]
    assert [values[f"{stage}/loss/dataloader_idx_{number}"] for number in (0, 1)] == pytest.approx(losses, rel=1e-5)
    assert all("dataloader_idx" in name for name in values)


def sanity_warnings(teacher: Tensor, labels: Tensor) -> list[str]:
    """What a fit warns of the teacher whose logits are the inputs."""
    net = nn.Linear(teacher.shape[1], teacher.shape[1])
    data = loader(teacher, labels, 50)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(limit_val_batches=1.0, num_sanity_val_steps=-1, max_steps=1).fit(
            Distiller(net, nn.Identity()), data, data
        )
    return [str(warning.message) for warning in caught if "teacher is right" in str(warning.message)]


def test_a_teacher_whose_classes_are_reordered_is_noticed() -> None:
    labels = torch.arange(200) % 10
    assert not sanity_warnings(9 * F.one_hot(labels).float(), labels)
    order = torch.tensor([0, 1, 2, 3, 4, 6, 7, 8, 9, 5])
    (text,) = sanity_warnings(9 * F.one_hot(order[labels]).float(), labels)
    assert "50.0%" in text
    assert "on 100.0% with its classes in another order" in text


@pytest.mark.parametrize(
    ("ranges", "share", "accuracy", "warned"),
    [
        ([[3, 3, 0, 5], [3, 3, 1, 9]], 0.1, 0.96, True),
        ([[3, 3, 0, 5], [4, 4, 1, 9]], 0.1, 0.96, False),  # another class in the second batch
        ([[3, 3, 0, 5], [3, 3, 1, 9]], 0.1, 0.12, False),  # nothing learned yet
        ([[3, 3, 2, 3], [3, 3, 2, 3]], 0.5, 0.57, False),  # two classes, and hardly better than one for all
        ([[3, 3, 3, 3]], 1.0, 0.96, False),  # there is one class
        ([[3, 3, 0, 5]], 0.1, 0.96, True),
        ([[2, 3, 0, 5], [3, 3, 1, 9]], 0.1, 0.96, False),  # another class in the first batch, lower or higher
        ([[3, 4, 0, 5], [3, 3, 1, 9]], 0.1, 0.96, False),
        ([[3, 3, 5, 5]], 0.0, 0.96, False),  # one class, and another one predicted
    ],
)
@pytest.mark.filterwarnings("always")
def test_one_class_in_validation_is_warned_of(
    ranges: list[list[int]], share: float, accuracy: float, warned: bool
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warn_of_constant(torch.tensor(ranges), torch.tensor(share), {"train/student_accuracy": torch.tensor(accuracy)})
    assert ["every prediction is class 3, while 96%" in str(warning.message) for warning in caught] == [True] * warned


def said(call: Any, *arguments: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("logged", "accuracy", "warned"),
    [
        ({}, 0.1, False),
        ({"train/loss": 5.0, "val/student_accuracy": 0.96}, 0.1, False),
        ({"train/a_accuracy": 0.2, "train/b_accuracy": 0.96}, 0.1, True),
        ({"train/a_accuracy": 0.29}, None, False),
        ({"train/a_accuracy": 0.31}, None, True),
        ({"train/a_accuracy": 0.75}, 0.5, False),
        ({"train/a_accuracy": 0.85}, 0.5, True),
    ],
)
def test_constant_predictions_count_once_training_is_better(
    logged: dict[str, float], accuracy: float | None, warned: bool
) -> None:
    values = {name: torch.tensor(value) for name, value in logged.items()}
    share = None if accuracy is None else torch.tensor(accuracy)
    assert bool(said(warn_of_constant, torch.tensor([[3, 3, 0, 5]]), share, values)) == warned


def predictions(right: int, wrong: int, classes: int) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """A teacher that is right on the first samples, and one class too high on the others; in batches of 7."""
    labels = torch.arange(right + wrong) % classes
    guesses = torch.where(torch.arange(right + wrong) < right, labels, (labels + 1) % classes)
    parts = zip(F.one_hot(guesses, classes).float().split(7), labels.split(7), strict=True)
    return {"teacher_accuracy": torch.tensor(right / (right + wrong))}, [*parts]


@pytest.mark.parametrize(
    ("right", "wrong", "classes", "words"),
    [
        (0, 19, 10, None),  # too few samples
        (0, 20, 10, "right on 0.0% of the first 20"),
        (8, 24, 8, "near chance"),  # twice chance
        (9, 23, 8, None),
        (0, 20, 2, "near chance"),
        (15, 5, 2, "near chance"),  # as near to chance as to all
        (16, 4, 2, None),
        (30, 70, 10, "on 70.0% with its classes in another order"),
        (14, 35, 10, None),  # fewer than five samples a class
        (15, 35, 10, "another order"),
        (50, 50, 10, None),
        (45, 55, 10, None),  # better in another order, by less than half of the errors
    ],
)
def test_a_teacher_near_chance_or_of_other_classes(right: int, wrong: int, classes: int, words: str | None) -> None:
    texts = said(warn_of_teacher, *predictions(right, wrong, classes))
    assert len(texts) == (words is not None)
    assert words is None or words in texts[0]


def test_no_teacher_or_no_predictions_are_no_warning() -> None:
    values, seen = predictions(0, 30, 10)
    assert not said(warn_of_teacher, {}, seen)
    assert not said(warn_of_teacher, values, [])


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(torch.float64, "int32"), (torch.float32, "int32"), (torch.bfloat16, "int16"), (torch.uint8, "uint8")],
)
def test_fingerprint_is_the_weighted_sum_of_words(dtype: torch.dtype, word: str) -> None:
    """Sum over positions of (2 position + 1) times the golden ratio's 64 bits times the word, modulo 2^64."""
    part = (torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    words = part.reshape(3, -1).view(getattr(torch, word)).tolist()
    sums = [sum(x * (2 * n + 1) * 0x9E3779B97F4A7C15 for n, x in enumerate(row)) % 2**64 for row in words]
    start = str((dtype, (3, 2, 5))).encode()
    assert _fingerprint(part) == start + b"".join(value.to_bytes(8, "little") for value in sums)


def test_logits_of_inputs_that_did_not_come_again_are_dropped() -> None:
    remembered = RememberedLogits()
    for seed in (0, 1):
        remembered.look(torch.full((2, 3), float(seed)), lambda: torch.zeros(2, 2))
    remembered.keep_used()
    assert len(remembered) == 2
    remembered.look(torch.zeros(2, 3), not_again)
    remembered.keep_used()
    assert len(remembered) == 1
    remembered.look(torch.zeros(2, 3), not_again)


@pytest.mark.full
def test_a_batchnorm_that_fails_in_eval_mode_is_warned_of() -> None:
    torch.manual_seed(0)
    first, norm = nn.Linear(64, 64), nn.BatchNorm1d(64, momentum=0.0)
    nn.init.normal_(first.weight, std=1e-4)  # train mode rescales, eval mode does not
    first.requires_grad_(False)
    student = nn.Sequential(nn.Flatten(), first, norm, nn.ReLU(), nn.Linear(64, 10))
    run = trainer(12, limit_val_batches=1.0)
    with pytest.warns(UserWarning, match=r"every prediction is class \d, while .* most likely a BatchNorm"):
        run.fit(Distiller(student=student), digits(train_size=320))
