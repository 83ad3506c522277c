"""Streamed crops against torchvision's own, and their distribution."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torchvision.transforms import v2

from kdlab.data import counter_rng
from kdlab.data.decoding import Streamed, random_windows
from kdlab.data.image_tree import Tree
from kdlab.data.samplers import Draw
from tests.data.test_folder import write


def slow_window(height: int, width: int, number: torch.Tensor, seed: int, epoch: int) -> list[int]:
    """RandomResizedCrop's loop, one image at a time."""
    for attempt in range(10):
        area, ratio, top, left = (
            float(counter_rng.uniform(seed, epoch, number, stream + 16 * attempt))
            for stream in (counter_rng.AREA, counter_rng.RATIO, counter_rng.TOP, counter_rng.LEFT)
        )
        target = height * width * (0.08 + 0.92 * area)
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * ratio)
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (60, 500), (500, 20), (1, 1)])
def test_windows_equal_the_slow_reference(size: tuple[int, int]) -> None:
    index = torch.arange(1000, 1100)
    got = random_windows(torch.tensor([size]).expand(100, 2), index, seed=2, epoch=5).tolist()
    assert got == [slow_window(*size, number, 2, 5) for number in index]


def test_windows_lie_inside_and_cover_the_range_of_areas() -> None:
    top, left, height, width = random_windows(
        torch.tensor([[96, 128]]).expand(4000, 2), torch.arange(4000), 0, 0
    ).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 96).all()
    assert (left + width <= 128).all()
    area = (height * width).double() / (96 * 128)
    assert 0.07 < area.min() < 0.09
    assert area.max() > 0.95
    reference = torch.tensor(
        [(h * w) / (96 * 128) for _, _, h, w in (_torchvision_window(96, 128) for _ in range(4000))],
        dtype=torch.float64,
    )
    assert abs(area.mean() - reference.mean()) < 0.03
    assert abs(area.std() - reference.std()) < 0.03


def _torchvision_window(height: int, width: int) -> tuple[int, int, int, int]:
    drawn = v2.RandomResizedCrop(8).make_params([torch.empty(3, height, width)])
    return drawn["top"], drawn["left"], drawn["height"], drawn["width"]


def test_evaluation_is_torchvisions_resize_and_center_crop(tmp_path: Path) -> None:
    tree = Tree(write(tmp_path, size=31) / "test")
    stream = Streamed(tree, None, size=10, resize=13, train=False, flip=True, seed=0)
    batch = stream[Draw(torch.tensor([3, 8]), 0)]
    reference = v2.Compose([v2.Resize(13, antialias=True), v2.CenterCrop(10)])
    assert torch.equal(batch.inputs, torch.stack([reference(tree.image(3)), reference(tree.image(8))]))


def test_training_crops_resizes_and_mirrors(tmp_path: Path) -> None:
    tree = Tree(write(tmp_path, size=31) / "train")
    index = torch.arange(15)
    plain = Streamed(tree, None, 10, 13, train=True, flip=False, seed=4)[Draw(index, 2)].inputs
    mirrored = Streamed(tree, None, 10, 13, train=True, flip=True, seed=4)[Draw(index, 2)].inputs
    turned = counter_rng.integers(2, 4, 2, index, counter_rng.FLIP) == 1
    assert 0 < int(turned.sum()) < 15
    assert torch.equal(mirrored, torch.where(turned[:, None, None, None], plain.flip(3), plain))
    top, left, height, width = slow_window(31, 31, index[6], 4, 2)
    cut = tree.image(6)[:, top : top + height, left : left + width]
    assert torch.equal(plain[6], v2.functional.resize(cut, [10, 10], antialias=True))
