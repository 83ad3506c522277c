"""Whole-batch augmentation against one image at a time, and its independence of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.data.augment import augment, crop, normalize


def images(count: int = 40, shape: tuple[int, int, int] = (3, 6, 5)) -> Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def slow_crop(image: Tensor, down: int, right: int, mirror: bool, padding: int) -> Tensor:
    """Pixel by pixel: out[y, x] = image[y + down - padding, x + right - padding], zero outside; then mirrored."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + down - padding, x + right - padding
            if 0 <= from_y < height and 0 <= from_x < width:
                out[:, y, width - 1 - x if mirror else x] = image[:, from_y, from_x]
    assert channels == len(out)
    return out


@pytest.mark.parametrize("padding", [0, 2, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_the_batch_equals_one_image_at_a_time(padding: int, flip: bool) -> None:
    batch, index = images(), torch.arange(100, 140)
    got = augment(batch, index, seed=5, epoch=3, padding=padding, flip=flip)
    assert got.dtype == torch.uint8
    for position, number in enumerate(index):
        down = int(counter_rng.integers(2 * padding + 1, 5, 3, number, counter_rng.DOWN))
        right = int(counter_rng.integers(2 * padding + 1, 5, 3, number, counter_rng.RIGHT))
        mirror = flip and bool(counter_rng.integers(2, 5, 3, number, counter_rng.FLIP))
        assert torch.equal(got[position], slow_crop(batch[position], down, right, mirror, padding))


def test_what_a_sample_gets_does_not_depend_on_its_batch() -> None:
    batch, index = images(), torch.arange(40)
    together = augment(batch, index, 0, 7, 2, True)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = augment(batch[order], index[order], 0, 7, 2, True)
    alone = torch.cat([augment(batch[i : i + 1], index[i : i + 1], 0, 7, 2, True) for i in range(40)])
    assert torch.equal(together[order], shuffled)
    assert torch.equal(together, alone)
    assert not torch.equal(together, augment(batch, index, 0, 8, 2, True))
    assert not torch.equal(together, augment(batch, index, 1, 7, 2, True))
    assert not torch.equal(together, augment(batch, index + 1, 0, 7, 2, True))


def test_every_shift_up_to_the_padding_happens() -> None:
    marked = torch.zeros(2000, 1, 9, 9, dtype=torch.uint8)
    marked[:, :, 4, 4] = 255
    moved = augment(marked, torch.arange(2000), 0, 0, padding=2).flatten(1).nonzero()[:, 1]
    assert len(moved) == 2000
    assert {(int(at) // 9 - 4, int(at) % 9 - 4) for at in moved} == {(y, x) for y in range(-2, 3) for x in range(-2, 3)}


def test_half_of_the_images_are_mirrored() -> None:
    marked = torch.zeros(2000, 1, 1, 2, dtype=torch.uint8)
    marked[..., 0] = 1
    mirrored = int(augment(marked, torch.arange(2000), 0, 0, flip=True)[:, 0, 0, 1].sum())
    assert abs(mirrored - 1000) < 5 * 2000**0.5 / 2


def test_without_augmentation_the_images_are_untouched() -> None:
    batch = images()
    assert augment(batch, torch.arange(40), 0, 0) is batch


def test_crop_keeps_floats_and_gradients() -> None:
    batch = images().double().requires_grad_()
    shift = torch.full((40,), 2)
    assert torch.equal(crop(batch, shift, shift, None, 2), batch)
    crop(batch, shift, shift, None, 2).sum().backward()
    assert batch.grad is not None
    assert torch.equal(batch.grad, torch.ones_like(batch))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalize(dtype: torch.dtype) -> None:
    batch = images()
    mean, std = [0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]
    given = batch if dtype == torch.uint8 else batch.to(dtype) / 255
    kept = given.clone()
    got = normalize(given, mean, std)
    expected = (batch.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(given, kept)
