"""Mixup and CutMix: shares, boxes, pixels and labels against slow references, and trainings on mixed batches."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from kdlab import Distiller, Knowledge
from kdlab.data import CutMix, Digits, Mixed, Mixing, MixUp, counter_rng
from kdlab.data.augment import normalize
from kdlab.data.mixing import TRIES, beta, mixed_labels
from kdlab.errors import InputError
from kdlab.losses import SoftTargets
from tests.data.tiny import KilledError, Notes, Tiny
from tests.data.tiny import trainer as tiny_trainer
from tests.modules.tiny import network, sgd, trainer

IMAGES = torch.randint(0, 256, (6, 3, 8, 10), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
INDEX = torch.tensor([40, 3, 17, 0, 99, 8])
MANY = torch.arange(20_000)


def slow_beta(alpha: float, seed: int, epoch: int, index: int) -> float:
    """Jöhnk's rejection, one try after the other."""
    for attempt in range(TRIES):
        place = torch.tensor(index * TRIES + attempt)
        u, v = (
            1 - counter_rng.uniform(seed, epoch, place, stream).item()
            for stream in (counter_rng.OWN, counter_rng.OTHER)
        )
        x, y = u ** (1 / alpha), v ** (1 / alpha)
        if x + y <= 1:
            return x / (x + y)
    raise AssertionError


@pytest.mark.parametrize("alpha", [0.2, 0.4, 1.0])
def test_shares_equal_the_slow_rejection(alpha: float) -> None:
    expected = [slow_beta(alpha, 3, 5, each) for each in range(200)]
    drawn = beta(alpha, 3, 5, torch.arange(200))
    assert drawn.dtype == torch.float64
    assert drawn.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.5, 1.0])
def test_shares_have_the_mean_and_variance_of_beta(alpha: float) -> None:
    drawn, count = beta(alpha, 0, 0, MANY), len(MANY)
    variance = 1 / (4 * (2 * alpha + 1))
    # The fourth central moment of Beta(a, a) is 3 / (16 (2a + 1) (2a + 3)).
    fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert abs(drawn.mean().item() - 0.5) < 5 * math.sqrt(variance / count)
    assert abs((drawn - 0.5).square().mean().item() - variance) < 5 * math.sqrt((fourth - variance**2) / count)


@pytest.mark.parametrize(
    ("alpha", "distribution"), [(1.0, lambda x: x), (0.5, lambda x: 2 / math.pi * x.sqrt().clamp(max=1).asin())]
)
def test_shares_are_distributed_like_beta(alpha: float, distribution: Any) -> None:
    drawn, count = beta(alpha, 0, 0, MANY).sort().values, len(MANY)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    known = distribution(drawn)
    gap = torch.maximum((steps[1:] - known).abs(), (known - steps[:-1]).abs()).max().item()
    assert gap < 2.3 / math.sqrt(count)  # Kolmogorov: beyond it once in 20,000


def test_a_tiny_alpha_gives_one_image_or_the_other() -> None:
    drawn = beta(1e-4, 0, 0, MANY)
    assert ((drawn < 0.01) | (drawn > 0.99)).float().mean() > 0.99
    assert abs(drawn.mean().item() - 0.5) < 5 * 0.5 / math.sqrt(len(MANY))


def test_shares_are_a_function_of_seed_epoch_and_index() -> None:
    whole = beta(0.4, 1, 2, INDEX)
    assert torch.equal(beta(0.4, 1, 2, INDEX[2:4]), whole[2:4])
    assert not torch.equal(beta(0.4, 2, 2, INDEX), whole)
    assert not torch.equal(beta(0.4, 1, 3, INDEX), whole)
    neighbors = torch.stack([beta(1.0, 0, 0, MANY), beta(1.0, 0, 0, MANY + 1), beta(1.0, 0, 1, MANY)])
    assert (torch.corrcoef(neighbors) - torch.eye(3)).abs().max() < 0.035  # five standard deviations


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mixup_is_the_weighted_mean_of_two_images(dtype: torch.dtype) -> None:
    given = IMAGES if dtype == torch.uint8 else IMAGES / 255
    kept = given.clone()
    mixed, mix = MixUp(0.4)(given, INDEX, 3, 5)
    assert torch.equal(given, kept)
    assert (mixed.dtype, mix.share.dtype, mix.partner.dtype) == (torch.float32, torch.float32, torch.int64)
    for b, index in enumerate(INDEX.tolist()):
        share = slow_beta(0.4, 3, 5, index)
        partner = int(mix.partner[b])
        assert partner == (b - 1) % 6
        assert mix.share[b].item() == pytest.approx(share, abs=1e-6)
        expected = (share * IMAGES[b].double() + (1 - share) * IMAGES[partner].double()) / 255
        torch.testing.assert_close(mixed[b].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_pastes_a_clipped_box_and_counts_its_pixels(dtype: torch.dtype) -> None:
    height, width = 8, 10
    images = torch.arange(60, dtype=dtype).view(-1, 1, 1, 1).expand(60, 2, height, width)
    index = torch.arange(60) * 3
    mixed, mix = CutMix(1.0)(images, index, 3, 5)
    assert mixed.dtype == dtype
    clipped = 0
    for b, each in enumerate(index.tolist()):
        side = math.sqrt(1 - slow_beta(1.0, 3, 5, each))
        down = int(counter_rng.integers(height, 3, 5, torch.tensor(each), counter_rng.BOX_DOWN))
        right = int(counter_rng.integers(width, 3, 5, torch.tensor(each), counter_rng.BOX_RIGHT))
        tall, wide = int(height * side) // 2, int(width * side) // 2
        top, bottom = max(down - tall, 0), min(down + tall, height)
        left, end = max(right - wide, 0), min(right + wide, width)
        clipped += (bottom - top) * (end - left) < 4 * tall * wide
        partner = (b - 1) % 60
        for row in range(height):
            for column in range(width):
                inside = top <= row < bottom and left <= column < end
                assert mixed[b, :, row, column].tolist() == [partner if inside else b] * 2
        own = int((mixed[b, 0] == b).sum())
        assert mix.share[b].item() == pytest.approx(own / (height * width), abs=1e-7)
        assert int(mix.partner[b]) == partner
    assert 10 < clipped < 60


def test_labels_are_what_each_image_counts() -> None:
    target = torch.tensor([2, 0, 2, 1, 1, 3])
    _, mix = MixUp(0.4)(IMAGES, INDEX, 3, 5)
    labels = mixed_labels(target, mix, 5)
    assert labels.dtype == torch.float32
    for b in range(6):
        expected = [0.0] * 5
        expected[int(target[b])] += mix.share[b].item()
        expected[int(target[int(mix.partner[b])])] += 1 - mix.share[b].item()
        assert labels[b].tolist() == pytest.approx(expected, abs=1e-6)
    assert labels.sum(1).tolist() == pytest.approx([1.0] * 6, abs=1e-6)
    assert labels[4, 1] == 1  # both parts of one class


def test_a_batch_of_one_stays_as_it_is() -> None:
    mixed, mix = MixUp(0.4)(IMAGES[:1], INDEX[:1], 0, 0)
    torch.testing.assert_close(mixed, IMAGES[:1] / 255)
    assert torch.equal(CutMix()(IMAGES[:1], INDEX[:1], 0, 0)[0], IMAGES[:1])
    torch.testing.assert_close(mixed_labels(torch.tensor([1]), mix, 2), torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix(1.0)])
def test_training_batches_are_mixed_after_the_augmentation(mixing: Mixing) -> None:
    data = Tiny(padding=1, flip=True, mixing=mixing, augmentation_seed=7, distinct_epochs=2)
    data.setup()
    for raw in data.train_dataloader():
        batch = data.prepare(raw, 3)
        images, mix = mixing(data.augment(raw.inputs, raw.index, 1), raw.index, 7, 1)
        assert torch.equal(batch.inputs, normalize(images, data.mean, data.std))
        assert torch.equal(batch.target, mixed_labels(raw.target, mix, 3))
        assert torch.equal(batch.index, raw.index)
        assert all(map(torch.equal, batch.mix, mix))
        shown = data.prepare(raw)
        assert shown.mix is None
        assert torch.equal(shown.target, raw.target)
        assert torch.equal(shown.inputs, normalize(raw.inputs, data.mean, data.std))


@pytest.mark.parametrize("mixing", [None, CutMix(0.5)])
def test_a_mixed_view_keeps_the_batch_and_its_labels(mixing: Mixing | None) -> None:
    data = Tiny(padding=1, flip=True, views={"mixed": Mixed(mixing)})
    data.setup()
    raw = next(iter(data.train_dataloader()))
    batch = data.prepare(raw, 2)
    shown = data.augment(raw.inputs, raw.index, 2)
    images, mix = (mixing or MixUp(0.4))(shown, raw.index, 0, 2)
    view = batch.views["mixed"]
    assert torch.equal(batch.inputs, normalize(shown, data.mean, data.std))
    assert torch.equal(view.inputs, normalize(images, data.mean, data.std))
    assert all(map(torch.equal, view.mix, mix))
    assert torch.equal(view.target, raw.target)
    assert torch.equal(view.index, raw.index)
    assert batch.mix is None
    assert torch.equal(batch.target, raw.target)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, math.nan])
@pytest.mark.parametrize("kind", [MixUp, CutMix])
def test_an_alpha_out_of_range_is_refused(kind: type[Mixing], alpha: float) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} takes an alpha above 0 and at most 1"):
        kind(alpha)


def test_yaml_builds_mixing_and_views() -> None:
    given = {
        "mixing": {"class_path": "kdlab.data.CutMix", "init_args": {"alpha": 0.5}},
        "views": None,
    }
    asked = {
        "mates": {"class_path": "kdlab.data.SameClass", "init_args": {"count": 2}},
        "last": {"class_path": "kdlab.data.LastBatch"},
        "mixed": {"class_path": "kdlab.data.Mixed", "init_args": {"mixing": {"class_path": "kdlab.data.MixUp"}}},
    }
    parser = ArgumentParser()
    parser.add_subclass_arguments(pl.LightningDataModule, "data")

    def built(**options: Any) -> Any:
        config = parser.parse_object({"data": {"class_path": "kdlab.data.Digits", "init_args": options}})
        return parser.instantiate_classes(config).data

    assert repr(built(**given).mixing) == "CutMix(alpha=0.5)"
    views = built(views=asked).all_views
    assert views["mates"].numbers == (1, 2)
    assert repr(views["mixed"].mixing) == "MixUp(alpha=1.0)"


def seen(folder: Path, kill_after: int = 10**9, every: int | None = None, ckpt: Any = None, **run: Any) -> list[Any]:
    notes = Notes(kill_after)
    data = Tiny(padding=1, flip=True, mixing=MixUp(0.4))
    tiny_trainer(folder, every, **({"max_epochs": 2} | run)).fit(notes, data, ckpt_path=ckpt)
    return notes.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_killed_run_goes_on_with_the_same_mixed_batches(tmp_path: Path) -> None:
    straight = seen(tmp_path)
    assert len({pixels for _, _, pixels in straight}) == 12
    with pytest.raises(KilledError):
        seen(tmp_path, 5, 4)
    assert seen(tmp_path, every=4, ckpt=tmp_path / "step=4.ckpt") == straight[4:]


def test_half_precision_trains_on_mixed_labels(tmp_path: Path) -> None:
    assert len(seen(tmp_path, precision="bf16-true", limit_val_batches=0)) == 12


class Labels(torch.nn.Module):
    """Keeps the labels that the task gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        self.seen.append(target)
        return torch.nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize("mixing", [MixUp(), CutMix()])
def test_a_student_is_taught_on_mixed_images(mixing: Mixing) -> None:
    task, data = Labels(), Digits(train_size=40, batch_size=8, mixing=mixing)
    module = Distiller(network(), network(1), {"soft": Knowledge(SoftTargets(4.0))}, task=task, optimizer=sgd)
    pl.seed_everything(0)
    run = trainer(limit_train_batches=2)
    run.fit(module, data)
    assert run.global_step == 2
    assert task.seen[-1].shape == (8, 10)
    assert ((task.seen[-1] > 0) & (task.seen[-1] < 1)).any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixing", [MixUp(0.4), CutMix()])
def test_the_gpu_mixes_the_same_without_waiting(mixing: Mixing) -> None:
    images, index = IMAGES.cuda(), INDEX.cuda()
    target = torch.arange(6).cuda()
    mixing(images, index, 3, 5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixed, mix = mixing(images, index, 3, 5)
        labels = mixed_labels(target, mix, 6)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected, same = mixing(IMAGES, INDEX, 3, 5)
    torch.testing.assert_close(mixed.cpu(), expected)
    torch.testing.assert_close(labels.cpu(), mixed_labels(torch.arange(6), same, 6))
