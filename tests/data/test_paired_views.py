"""Views of other images: the right samples under the right augmentation, whatever the batch, workers or processes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.data import CutMix, ImageFolder, LastBatch, Mixed, MixUp, Rotations, SameClass, SecondView, View
from kdlab.data.augment import augment, normalize
from kdlab.data.decoding import Streamed
from kdlab.data.samplers import Draw
from kdlab.errors import InputError
from kdlab.outputs.containers import Batch
from tests.data.test_folder import write
from tests.data.test_images import attached
from tests.data.tiny import Tiny

FAR = 2**20
VIEWS: dict[str, View] = {"last": LastBatch(), "mates": SameClass(2), "second": SecondView()}


def ready(views: dict[str, View], **options: Any) -> Tiny:
    data = Tiny(**({"padding": 1, "flip": True} | options))
    data.provide(views)
    data.setup()
    return data


def served(data: Any, epoch: int) -> list[Batch]:
    """The batches of an epoch as the networks see them."""
    batches = data.train_dataloader()
    batches.sampler.set_epoch(epoch)
    return [data.prepare(batch, epoch) for batch in batches]


def look(data: Tiny, sample: int, epoch: int, seed: int = 0) -> Tensor:
    """One sample as the augmentation of one epoch shows it."""
    images, _ = data.read(train=True)
    shown = augment(images[sample : sample + 1], torch.tensor([sample]), seed, epoch, 1, True)
    return normalize(shown, data.mean, data.std)[0]


def same(first: list[Batch], second: list[Batch], name: str) -> bool:
    """Whether a view is bit for bit the same in two lists of batches."""
    return all(
        torch.equal(x, y)
        for one, two in zip(first, second, strict=True)
        for x, y in zip(one.views[name][:3], two.views[name][:3], strict=True)  # type: ignore[index]
    )


# The same class


@pytest.mark.parametrize("count", [1, 3])
def test_classmates_share_the_class_and_match_pixels_and_index(count: int) -> None:
    data = ready({"mates": SameClass(count)})
    _, labels = data.read(train=True)
    for batch in served(data, 2):
        view = batch.views["mates"]
        assert view.inputs.shape == (count * len(batch.target), 2, 4, 5)
        for row, (image, label, index) in enumerate(zip(*view[:3], strict=True)):
            assert label == labels[index] == batch.target[row // count]
            assert torch.equal(image, look(data, int(index), 2 + (row % count + 1) * FAR))


def mates(epoch: int, count: int = 1, **options: Any) -> dict[int, list[int]]:
    """For every sample, its classmates."""
    found = {}
    for batch in served(ready({"mates": SameClass(count)}, **options), epoch):
        rows = batch.views["mates"].index.view(-1, count).tolist()
        found |= dict(zip(batch.index.tolist(), rows, strict=True))
    assert len(found) == 21
    return found


def test_classmates_are_a_function_of_seed_epoch_and_index() -> None:
    first = mates(3)
    assert first == mates(3, batch_size=7) == mates(3, seed=5, augmentation_seed=0)
    assert first != mates(4)
    assert first != mates(3, augmentation_seed=1)
    assert mates(5, distinct_epochs=2) == mates(1)
    assert [each[0] for each in mates(3, 3).values()] != [each[1] for each in mates(3, 3).values()]
    assert {sample: each[:1] for sample, each in mates(3, 3).items()} == first


def test_classmates_are_uniform_over_the_class() -> None:
    drawn = ready({"mates": SameClass()}).train_dataloader().dataset._classes  # type: ignore[attr-defined]
    index, seen = torch.arange(21), torch.zeros(21, 21)
    for epoch in range(700):
        seen[index, drawn.mates(index, 0, epoch)] += 1
    own = (index[:, None] - index) % 3 == 0
    assert not seen[~own].any()
    chi_squared = ((seen[own] - 100) ** 2 / 100).sum().item()
    freedom = 21 * 6
    assert abs(chi_squared - freedom) < 5 * (2 * freedom) ** 0.5


def test_classmates_come_from_the_samples_in_use() -> None:
    data = ready({"mates": SameClass()}, validation=6, omit=[1], train_size=8)
    rows = data._split("train").rows  # type: ignore[attr-defined]
    images, labels = data.read(train=True)
    plain = data.train_dataloader()
    for raw in plain:
        view = raw.views["mates"]
        assert int(view.index.max()) < 8
        assert torch.equal(view.inputs, images[rows[view.index]])
        assert torch.equal(view.target, raw.target)
        assert torch.equal(view.target, labels[rows[view.index]])


# The same samples again


def test_a_second_view_uses_an_augmentation_of_no_epoch() -> None:
    data = ready({"second": SecondView(), "third": SecondView(2)})
    shown = served(data, 1)
    for batch in shown:
        for number, name in enumerate(("second", "third"), 1):
            view = batch.views[name]
            assert torch.equal(view.index, batch.index)
            assert torch.equal(view.target, batch.target)
            for image, sample in zip(view.inputs, batch.index.tolist(), strict=True):
                assert torch.equal(image, look(data, sample, 1 + number * FAR))
    whole = torch.cat([batch.views["second"].inputs for batch in shown])
    assert not torch.equal(whole, torch.cat([batch.inputs for batch in shown]))
    assert not torch.equal(whole, torch.cat([batch.views["third"].inputs for batch in shown]))
    assert same(shown, served(data, 1), "second")
    assert next(iter(data.train_dataloader())).views is None  # made from the batch, not read again


def test_second_views_repeat_with_the_augmentation() -> None:
    data = ready({"second": SecondView()}, distinct_epochs=2)
    raw = next(iter(data.train_dataloader()))
    shown = [data.prepare(raw, epoch) for epoch in range(4)]
    seconds = [batch.views["second"].inputs for batch in shown]
    assert torch.equal(seconds[0], seconds[2])
    assert torch.equal(seconds[1], seconds[3])
    assert not torch.equal(seconds[0], seconds[1])
    assert not any(torch.equal(second, batch.inputs) for second in seconds for batch in shown)


# Images that stream


def streaming(folder: Path, views: dict[str, View], **options: Any) -> ImageFolder:
    data = ImageFolder(str(folder), **({"in_memory": False, "size": 8, "resize": 8, "batch_size": 4} | options))
    data.provide(views)
    data.setup()
    return data


@pytest.mark.full
def test_streamed_companions_are_cropped_like_no_epoch(tmp_path: Path) -> None:
    data = streaming(write(tmp_path, size=20), {**VIEWS, "third": SecondView(2)}, distinct_epochs=2)
    source, before = data._split("train"), torch.zeros(0, dtype=torch.int64)
    assert isinstance(source, Streamed)
    endless = Streamed(source.tree, None, 8, 8, train=True, flip=True, seed=0)

    def seen(index: Tensor, epoch: int) -> Tensor:
        return normalize(endless[Draw(index, epoch)].inputs, data.mean, data.std)

    for epoch in range(4):
        for batch in served(data, epoch):
            now, views = epoch % 2, batch.views
            assert torch.equal(batch.inputs, seen(batch.index, now))
            assert torch.equal(views["second"].inputs, seen(batch.index, now + FAR))
            assert torch.equal(views["third"].inputs, seen(batch.index, now + 2 * FAR))
            assert torch.equal(views["second"].index, batch.index)
            assert torch.equal(views["last"].index, before)
            if len(before):
                assert torch.equal(views["last"].inputs, seen(before, now + FAR))
            for k in range(2):
                each = views["mates"].index[k::2]
                assert torch.equal(views["mates"].inputs[k::2], seen(each, now + (k + 1) * FAR))
                assert torch.equal(source.labels[each], batch.target)
            before = batch.index


def test_streamed_companions_equal_those_of_workers_and_memory(tmp_path: Path) -> None:
    write(tmp_path, size=8)
    plain, workers = streaming(tmp_path, VIEWS), streaming(tmp_path, VIEWS, num_workers=2)
    memory = streaming(tmp_path, VIEWS, in_memory=True)
    for epoch in range(2):
        one, two, three = (served(data, epoch) for data in (plain, workers, memory))
        assert all(same(one, two, name) for name in VIEWS)
        for first, third in zip(one, three, strict=True):
            for name in VIEWS:
                assert torch.equal(first.views[name].index, third.views[name].index)


# What is asked for, and what cannot be


def test_user_views_stay_and_new_requests_replace_old_ones() -> None:
    own = Rotations([180])
    data = Tiny(views={"second": own})
    data.provide({"second": SecondView(), "mates": SameClass()})
    assert data.all_views["second"] is own
    assert list(data.all_views) == ["second", "mates"]
    data.provide({"last": LastBatch()})
    assert set(data.all_views) == {"second", "last"}
    data.provide({})
    assert data.all_views == data.views == {"second": own}
    data.setup()
    assert next(iter(data.train_dataloader())).views is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SecondView(0), "a number from 1 on, not 0"),
        (lambda: SameClass(0), "a count of at least 1, not 0"),
        (
            lambda: Tiny(mixing=MixUp(), views={"turned": Rotations([180])}),
            "'turned' show images before they are mixed",
        ),
        (lambda: Tiny(mixing=CutMix()).provide({"second": SecondView()}), "drop data.mixing"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("view", [SameClass(), LastBatch()])
def test_a_batch_of_an_older_loader_is_refused(view: View) -> None:
    data = ready({})
    raw = next(iter(data.train_dataloader()))
    data.provide({"late": view})
    with pytest.raises(InputError, match="make the loader with train_dataloader"):
        data.prepare(raw, 0)


def test_an_older_loader_of_streamed_images_is_refused(tmp_path: Path) -> None:
    data = streaming(write(tmp_path), {})
    raw = next(iter(data.train_dataloader()))
    data.provide({"late": SecondView()})
    with pytest.raises(InputError, match="make the loader with train_dataloader"):
        data.prepare(raw, 0)


@pytest.mark.parametrize("streams", [False, True])
def test_only_second_views_can_be_cached(tmp_path: Path, streams: bool) -> None:
    data = streaming(write(tmp_path), {}, in_memory=not streams)
    plain = json.dumps(data.fingerprint())
    for name, view in {"mates": SameClass(), "last": LastBatch(), "mixed": Mixed()}.items():
        data.provide({name: view})
        with pytest.raises(InputError, match=f"The view '{name}' .* shows other samples too"):
            data.fingerprint()
    prints = {plain}
    for number in (1, 2):
        data.provide({"second": SecondView(number)})
        prints.add(json.dumps(data.fingerprint()))
    assert len(prints) == 3
    data.provide({})
    data.mixing = MixUp()
    with pytest.raises(InputError, match="a mixed image is not a function of the sample"):
        data.fingerprint()


def test_half_precision_reaches_the_inputs_of_views_alone() -> None:
    data = ready({"mates": SameClass(), "mixed": Mixed()})
    data.trainer = attached(0, 1, 0)
    data.trainer.num_training_batches, data.trainer.training = 6, True
    data.trainer.precision_plugin = SimpleNamespace(convert_input=lambda x: x.bfloat16())
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert (
        batch.inputs.dtype == batch.views["mates"].inputs.dtype == batch.views["mixed"].inputs.dtype == torch.bfloat16
    )
    assert batch.views["mates"].target.dtype == torch.int64
    assert batch.views["mixed"].mix.share.dtype == torch.float32
