"""The base class of image data: splits, sizes, ranks and errors."""

from __future__ import annotations

import json
import re
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.outputs import Batch
from tests.data.tiny import Tiny


def ready(**options: Any) -> Tiny:
    data = Tiny(**options)
    data.setup()
    return data


def attached(rank: int, world_size: int, epoch: int) -> Any:
    """The part of a Trainer that the dataloaders read."""
    current = SimpleNamespace(processed=epoch, completed=epoch)
    loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=current))
    return SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=epoch, fit_loop=loop)


def test_batches_are_images_labels_and_positions() -> None:
    data = ready()
    images, labels = data.read(train=True)
    seen = []
    for batch in data.train_dataloader():
        assert isinstance(batch, Batch)
        assert batch.inputs.dtype == torch.uint8
        assert batch.target.dtype == batch.index.dtype == torch.int64
        assert torch.equal(batch.inputs, images[batch.index])
        assert torch.equal(batch.target, labels[batch.index])
        seen += batch.index.tolist()
    assert seen != sorted(seen) == list(range(21))
    assert data.sizes == {"train": 21, "val": 21, "test": 21}


def test_without_validation_images_the_test_set_validates() -> None:
    data = ready()
    test_images, _ = data.read(train=False)
    for split in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.equal(torch.cat([batch.inputs for batch in split]), test_images)


def test_held_out_omitted_and_fewer() -> None:
    data = ready(validation=6, omit=[2], train_size=8, seed=1)
    assert data.sizes == {"train": 8, "val": 6, "test": 21}
    images, labels = data.read(train=True)
    trained = list(data.train_dataloader())
    validated = list(data.val_dataloader())
    assert sorted(chain(*(batch.index.tolist() for batch in trained))) == list(range(8))  # dense
    assert torch.cat([batch.target for batch in trained]).bincount(minlength=3).tolist() == [4, 4, 0]
    assert torch.cat([batch.target for batch in validated]).bincount().tolist() == [2, 2, 2]
    shown = [torch.cat([batch.inputs for batch in part]) for part in (trained, validated)]
    rows = [{(images == image).flatten(1).all(1).nonzero().item() for image in part} for part in shown]
    assert len(rows[0]) == 8
    assert not rows[0] & rows[1]
    for part in (trained, validated):
        for batch in part:
            for image, label in zip(batch.inputs, batch.target, strict=True):
                assert labels[(images == image).flatten(1).all(1)].tolist() == [label]


def test_each_rank_loads_its_slice() -> None:
    alone = [batch.index.tolist() for batch in ready().train_dataloader()]
    parts = []
    for rank in range(2):
        data = ready()
        data.trainer = attached(rank, 2, 0)
        parts.append([batch.index.tolist() for batch in data.train_dataloader()])
        assert len(data.test_dataloader()) == 5
    assert [first + second for first, second in zip(*parts, strict=True)] == alone[:5]


def test_the_train_loader_starts_at_the_trainers_epoch() -> None:
    data = ready()
    data.trainer = attached(0, 1, 3)
    plain = ready().train_dataloader()
    plain.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert [b.index.tolist() for b in data.train_dataloader()] == [b.index.tolist() for b in plain]


def test_prepare_normalizes_and_augments_by_epoch() -> None:
    data = ready(padding=2)
    batch = next(iter(data.val_dataloader()))
    plain, shown, later = data.prepare(batch), data.prepare(batch, 0), data.prepare(batch, 1)
    assert plain.inputs.dtype == torch.float32
    assert torch.equal(plain.target, batch.target)
    expected = (batch.inputs / 255 - torch.tensor([0.25, 0.5]).view(2, 1, 1)) / torch.tensor([0.5, 0.125]).view(2, 1, 1)
    torch.testing.assert_close(plain.inputs, expected)
    assert not torch.equal(plain.inputs, shown.inputs)
    assert not torch.equal(later.inputs, shown.inputs)
    assert torch.equal(data.on_after_batch_transfer(batch, 0).inputs, plain.inputs)  # no trainer, no training


def test_batch_size_not_divisible_by_the_processes() -> None:
    data = ready(batch_size=5)
    data.trainer = attached(0, 2, 0)
    with pytest.raises(InputError, match="batch size 5 must be a positive multiple of the 2 processes"):
        data.train_dataloader()


def test_loading_before_setup_is_refused() -> None:
    with pytest.raises(InputError, match=r"The train images are not read yet: call setup\(\) first"):
        Tiny().train_dataloader()


class Wrong(Tiny):
    def __init__(self, labels: list[int]) -> None:
        super().__init__(size=len(labels))
        self.given = labels

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().read(train)
        return images, labels if train else torch.tensor(self.given, dtype=torch.int64)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3], "The test set has labels from 0 to 3, outside its 3 classes"),
        ([-1, 1, 2], "The test set has labels from -1 to 2, outside its 3 classes"),
        ([], "The training set has no images"),
    ],
)
def test_labels_outside_the_classes(labels: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Wrong(labels).setup()


def test_the_order_does_not_touch_the_global_generator() -> None:
    data = ready(padding=1)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for batch in data.train_dataloader():
        data.prepare(batch, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("Digits", {"seed": 3, "train_size": 100}),
        ("MNIST", {"root": "x", "padding": 2, "omit": [3], "validation": 50}),
        ("CIFAR10", {"root": "x", "download": True, "batch_size": 128}),
        ("CIFAR100", {"root": "x", "flip": False, "eval_batch_size": 100}),
        ("ImageFolder", {"root": "x", "mean": [0.5, 0.5, 0.5], "in_memory": None, "num_workers": 2, "padding": 4}),
    ],
)
def test_yaml_builds_every_class(name: str, given: dict[str, Any]) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(pl.LightningDataModule, "data")
    config = parser.parse_object({"data": {"class_path": f"kdlab.data.{name}", "init_args": given}})
    data = parser.instantiate_classes(config).data
    assert isinstance(data, ImageData)
    assert json.loads(json.dumps({key: getattr(data, key) for key in given if key != "num_workers"})) == {
        key: value for key, value in given.items() if key != "num_workers"
    }


@pytest.mark.parametrize("value", [0, -4, 1e30, 2.5, float("nan")])
@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_a_batch_size_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(
        InputError, match=f"^{name} must be a whole number of at least 1, not {re.escape(str(value))}"
    ) as caught:
        Tiny(**{name: value})
    assert caught.value.key == f"data.{name}"


def test_a_batch_larger_than_the_training_set_is_all_of_it() -> None:
    data = Tiny(batch_size=64)
    data.setup("fit")
    assert [len(batch.target) for batch in data.train_dataloader()] == [21]


def test_drop_last_is_for_training_alone() -> None:
    data = ready(drop_last=True)
    assert [len(batch.index) for batch in data.train_dataloader()] == [4] * 5
    assert [len(batch.index) for batch in data.val_dataloader()] == [4] * 5 + [1]
