"""A teacher's own mean, standard deviation and size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlab.data import Preprocessing
from kdlab.data.augment import normalize
from kdlab.errors import InputError

DATA = ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
OTHER = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_images_are_normalized_anew() -> None:
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in OTHER)
    expected = (images.double() / 255 - mean) / std
    shown = Preprocessing(*OTHER)(normalize(images, *DATA), DATA)
    assert shown.dtype is torch.float32
    assert torch.allclose(shown.double(), expected, rtol=0, atol=2e-6)


def test_images_are_resized_with_antialiasing() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    small = Preprocessing(size=2, interpolation="bilinear")(images, None)
    # Weights of the triangle of width 2: 3/7, 3/7, 1/7 inside of the image.
    rows = torch.tensor([[3, 3, 1, 0], [0, 1, 3, 3]], dtype=torch.float64) / 7
    assert torch.allclose(small[0, 0].double(), rows @ images[0, 0].double() @ rows.T, atol=1e-5)
    assert Preprocessing(size=(4, 4))(images, None) is images
    assert Preprocessing(size=8, interpolation="nearest")(images, None)[0, 0, 0, :4].tolist() == [0, 0, 1, 1]


def test_timm_says_what_a_network_was_trained_to_see() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0)
    assert Preprocessing.of(network) == Preprocessing((0.5,) * 3, (0.5,) * 3, (64, 64), "bicubic")
    assert Preprocessing.of(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": (0.5,)}, "mean and std, or neither"),
        ({"mean": (0.5,), "std": (0.0,)}, "std must be a positive number"),
        ({"size": 0}, "size must be"),
        ({"interpolation": "cubic"}, "interpolation"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Preprocessing(**options)  # type: ignore[arg-type]


def test_it_needs_to_know_the_data() -> None:
    with pytest.raises(InputError, match="how the data normalizes"):
        Preprocessing(*OTHER)(torch.zeros(1, 3, 2, 2), None)
    with pytest.raises(InputError, match="1 channels"):
        Preprocessing(*OTHER)(torch.zeros(1, 1, 2, 2), DATA)
