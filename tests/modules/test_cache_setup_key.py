"""What a teacher cache is found by: after a change it is not read, and what cannot be named is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from kdlab import Distiller, InputError, Knowledge
from kdlab.data import Digits, View
from kdlab.losses import Hint, SoftTargets
from kdlab.members import Fast
from kdlab.modules.cache_setup import describe
from tests.modules.test_cache_setup import float32, shifted, trained
from tests.modules.tiny import distiller, network, pairs, same, trainer

pytestmark = pytest.mark.full


class Brighter(Digits):
    """Other data in the same form."""

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().read(train)
        images[:, 0, 0, 0] += 1
        return images, labels


def normalized() -> Digits:
    data = shifted()
    data.mean = [0.4]
    return data


def other_weight() -> dict[str, Any]:
    teacher = network(1)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[3] += 1e-6
    return {"teacher": teacher}


@pytest.mark.parametrize(
    "changed",
    [
        other_weight,
        lambda: {"data": shifted(padding=2)},
        lambda: {"data": shifted(flip=True)},
        lambda: {"data": shifted(seed=1)},
        lambda: {"data": Brighter(train_size=160, batch_size=32, padding=1)},
        lambda: {"data": shifted(train_size=192)},
        lambda: {"data": normalized()},
        lambda: {"data": shifted(seed=1, augmentation_seed=0)},
    ],
    ids=["teacher", "padding", "flip", "seed", "pixel", "size", "mean", "other images of the same set"],
)
def test_old_entries_are_not_used_after_a_change(tmp_path: Path, changed: Callable[[], dict[str, Any]]) -> None:
    trained(float32(tmp_path))
    live, runs = trained(None, **changed())
    kept, again = trained(float32(tmp_path), **changed())
    assert runs == again > 0
    assert same(live, kept)
    assert len(list(tmp_path.iterdir())) == 2


class Jitter(Digits):
    """A user's own random transform."""

    def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        return images + torch.randint(0, 2, images.shape).byte()


class Mixed(Digits):
    """Mixup after the transfer, from the global generator."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch._replace(inputs=batch.inputs.lerp(batch.inputs.flip(0), float(torch.rand(()))))


class Loose(View):
    """A view that keeps an object which does not say what it is."""

    def __init__(self) -> None:
        self.transform = object()

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        return images


def patched() -> Digits:
    data = shifted()
    data.augment = lambda images, index, epoch: images  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Jitter(train_size=160, batch_size=32), r"Jitter has its own augment\(\), which may draw at random"),
        (lambda: Mixed(train_size=160, batch_size=32), r"Mixed has its own on_after_batch_transfer\(\)"),
        (patched, r"its own augment\(\)"),
        (lambda: shifted(views={"loose": Loose()}), "attributes that say nothing of themselves"),
        (lambda: pairs(), "a plain loader has no fingerprint"),
    ],
    ids=["augment", "mixup", "patched", "view", "loaders"],
)
def test_what_cannot_be_keyed_is_refused(tmp_path: Path, data: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trained(float32(tmp_path / "new"), data())
    assert not (tmp_path / "new").exists()


THROUGH = ["train_dataloader", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
THROUGH += ["observe", "training_step", "on_train_batch_start"]


@pytest.mark.parametrize("name", THROUGH)
def test_a_module_that_may_change_a_batch_is_refused(tmp_path: Path, name: str) -> None:
    def method(self: Distiller, *args: Any, **options: Any) -> Any:
        return getattr(Distiller, name)(self, *args, **options)

    kind = type("Changed", (Distiller,), {name: method})
    module = kind(network(), network(1), {"a": Knowledge(SoftTargets())}, teacher_cache=float32(tmp_path))
    with pytest.raises(InputError, match=rf"Changed has its own {name}\(\)"):
        trainer().fit(module, shifted())


class Slower(Digits):
    """Shows each augmentation twice."""

    def shown(self, epoch: int) -> int:
        return epoch // 2


def test_other_ways_to_change_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Slower has its own shown\(\)"):
        trained(float32(tmp_path), Slower(train_size=160, batch_size=32))


class Declared(Digits):
    """Gives the fingerprint that a test declares."""

    declared: Any = None

    def fingerprint(self) -> dict[str, Any]:
        return self.declared  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"what": {1, 2}}, "plain numbers"),
        ({"what": float("nan")}, "plain numbers"),
        ({"what": 1, 2: 3}, "plain numbers"),
        (["what"], "a dict, not a list"),
    ],
)
def test_a_fingerprint_that_is_no_plain_dict_is_refused(tmp_path: Path, declared: Any, words: str) -> None:
    data = Declared(train_size=160, batch_size=32)
    data.declared = declared
    with pytest.raises(InputError, match=rf"fingerprint\(\) must give {words}"):
        trained(float32(tmp_path), data)


class Rows(IterableDataset[Any]):
    """Samples with their index, of unknown number."""

    def __iter__(self) -> Iterator[Any]:
        for index in range(64):
            yield torch.ones(64), index % 10, index


class Unnumbered(pl.LightningDataModule):
    """Samples without index, or of unknown number."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return pairs()

    def fingerprint(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("loader", [pairs, lambda: DataLoader(Rows(), 8)], ids=["no index", "no size"])
def test_samples_without_index_or_number_are_refused(tmp_path: Path, loader: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match="needs batches with the sample index, of a data set of known size"):
        trained(float32(tmp_path), Unnumbered(loader()))


def test_a_teachers_lists_are_part_of_the_key() -> None:
    first, second = network(1), network(1)
    assert describe(first) == describe(second)
    first.scales, second.scales = [1.0], [5.0]  # type: ignore[assignment]
    assert describe(first) != describe(second)


@pytest.mark.filterwarnings("ignore:After normalization")
def test_a_transform_that_says_what_it_depends_on_is_keyed(tmp_path: Path) -> None:
    class Darker(Digits):
        by = 1

        def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
            return images // (1 + self.by)

        def fingerprint(self) -> dict[str, Any]:
            return {"darker": self.by, "seed": self.seed}

    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 15
    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 0
    Darker.by = 2
    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 15


def test_losses_that_read_layers_are_refused(tmp_path: Path) -> None:
    hint = {"hint": Knowledge(Hint(), student_layers=["hidden.0"])}
    with pytest.raises(InputError, match=r"knowledge 'hint' \(Hint\) reads the teacher's layers hidden\.0"):
        trained(float32(tmp_path), knowledge=hint)
    with pytest.raises(InputError, match="depend on its batch"):
        trained(float32(tmp_path), teacher_batchnorm="batch")


def test_views_and_distinct_epochs_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"after 3 epochs, but teacher_cache\.views is 2"):
        trained(float32(tmp_path, views=2), shifted(distinct_epochs=3))
    data = shifted()
    trained(float32(tmp_path, views=2), data)
    assert trained(float32(tmp_path), shifted(distinct_epochs=2))[1] == 0


def test_what_cache_and_data_agree_on_ends_with_the_fit(tmp_path: Path) -> None:
    data, cache = shifted(), float32(tmp_path, views=2)
    trained(cache, data)
    assert (data.distinct_epochs, cache.views) == (None, 2)
    live, _ = trained(None, data)
    assert same(live, trained(None, shifted())[0])
    repeating, cache = shifted(distinct_epochs=2), float32(tmp_path)
    trained(cache, repeating)
    assert (repeating.distinct_epochs, cache.views) == (2, None)
    assert trained(cache, shifted(distinct_epochs=3))[1] == 5  # the views of epochs 0 and 1 are there


def test_a_full_disk_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("kdlab.members.teacher_cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 0\.0 MB in .* where 0\.0 MB are free"):
        trained(float32(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


ROW = 10 * 4 + 8
"""Bytes of ten float32 logits on disk, 8 of them beside the numbers."""


@pytest.mark.parametrize(
    ("limit", "views", "needed"),
    [
        ({"epochs": 3}, None, 3),
        ({"epochs": 1}, None, 1),
        ({"epochs": 3}, 2, 2),
        ({"epochs": -1, "max_steps": 7}, None, 2),  # of 5 steps each
        ({"epochs": 3, "max_steps": 7, "accumulate_grad_batches": 2}, None, 3),
        ({"epochs": 3, "max_steps": 4}, None, 1),
    ],
)
def test_disk_space_is_checked_for_all_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: Any, views: int | None, needed: int
) -> None:
    for free, fits in ((needed * 160 * ROW, True), (needed * 160 * ROW - 1, False)):
        monkeypatch.setattr(
            "kdlab.members.teacher_cache.shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free)
        )
        cache = float32(tmp_path / f"{fits}", views=views)
        module = distiller(teacher=network(1), teacher_cache=cache, teacher_fast=None)
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="are free: lower views"):
            trainer(**limit).fit(module, shifted())


def test_outputs_of_a_fast_copy_have_a_store_of_their_own(tmp_path: Path) -> None:
    for fast in (None, Fast(), None):
        torch.manual_seed(1)
        teacher = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 10))
        module = distiller(teacher=teacher, teacher_cache=float32(tmp_path), teacher_fast=fast)
        trainer().fit(module, shifted())
    stored = [json.loads(path.read_text())["teacher"]["fast"] for path in tmp_path.glob("*/key.json")]
    changes = {"fold": True, "channels_last": True, "precision": "same", "compile": False}
    assert sorted(stored, key=bool) == [None, changes]
