"""Further views: what they show, that they are a function of (seed, epoch, index), and how a step sees them."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.data import Digits, RandAugment, Rotations, counter_rng
from kdlab.data.augment import normalize
from kdlab.errors import InputError
from kdlab.outputs import Batch, Outputs, observe
from kdlab.outputs.split_views import inputs_with_views, with_views
from tests.modules.tiny import count_calls, network, sgd, trainer

IMAGES = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
INDEX = torch.arange(6) * 7


class Twice(nn.Module):
    """Compares both networks on the view it is told to read, and keeps what it saw."""

    needs: ClassVar[tuple[str, ...]] = ("logits", "views")

    def __init__(self, *views: str) -> None:
        super().__init__()
        self.views = views
        self.seen: list[tuple[Outputs, Outputs]] = []

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.seen.append((student.detach(), teacher))
        value: Tensor = sum((student.views[v].logits - teacher.views[v].logits).square().mean() for v in self.views)
        return value


def test_rotations_lie_side_by_side() -> None:
    turned = Rotations()(IMAGES, INDEX, 0, 0)
    assert turned.shape == (18, 3, 8, 8)
    for b in range(6):
        for k in range(3):
            assert torch.equal(turned[3 * b + k], IMAGES[b].rot90(k + 1, (1, 2)))
    assert torch.equal(turned[0][:, 0], IMAGES[0][:, :, -1])  # 90 degrees counter-clockwise: the right side goes up


def test_strong_views_ignore_batch_and_global_generator() -> None:
    strong, state = RandAugment(), torch.random.get_rng_state()
    whole = strong(IMAGES, INDEX, 3, 5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (whole.shape, whole.dtype) == (IMAGES.shape, torch.uint8)
    assert not torch.equal(whole, IMAGES)
    assert torch.equal(strong(IMAGES[2:4], INDEX[2:4], 3, 5), whole[2:4])
    assert not torch.equal(strong(IMAGES, INDEX, 3, 6), whole)
    assert not torch.equal(strong(IMAGES, INDEX, 4, 5), whole)


def test_strong_views_have_a_stream_of_their_own() -> None:
    strong, seen = RandAugment(), {}
    for stream in (counter_rng.STRONG, counter_rng.ORDER):
        changed = []
        for image, seed in zip(IMAGES, counter_rng.bits(3, 5, INDEX, stream).tolist(), strict=True):
            torch.manual_seed(seed)
            changed.append(strong.transform(image))
        seen[stream] = torch.stack(changed)
    assert torch.equal(strong(IMAGES, INDEX, 3, 5), seen[counter_rng.STRONG])
    assert not torch.equal(seen[counter_rng.ORDER], seen[counter_rng.STRONG])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotations([45]), "multiples of 90"),
        (lambda: Rotations([]), "multiples of 90"),
        (lambda: Rotations()(IMAGES[..., :6], INDEX, 0, 0), "8 x 6"),
        (lambda: RandAugment(0), "at least 1 operation"),
        (lambda: RandAugment(2, 31), "magnitude"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_views_show_the_augmented_image_in_training_only() -> None:
    data = Digits(views={"strong": RandAugment(), "turned": Rotations()}, padding=1, batch_size=6)
    data.setup()
    raw = next(iter(data.train_dataloader()))
    batch = data.prepare(raw, epoch=2)
    assert batch.views is not None
    assert {name: tuple(view.shape) for name, view in batch.views.items()} == {
        "strong": (6, 1, 8, 8),
        "turned": (18, 1, 8, 8),
    }
    assert torch.equal(batch.views["turned"][::3], batch.inputs.rot90(1, (2, 3)))
    weak = data.augment(raw.inputs, raw.index, 2)
    assert torch.equal(batch.views["strong"], normalize(RandAugment()(weak, raw.index, 0, 2), data.mean, data.std))
    assert data.prepare(raw).views is None


def test_one_forward_gives_every_view_its_outputs() -> None:
    net = network().eval()
    calls = count_calls(net)
    x, more = torch.rand(4, 64), {"a": torch.rand(4, 64), "b": torch.rand(12, 64)}
    batch = Batch(x, torch.arange(4), torch.arange(4), more)
    inputs = inputs_with_views(batch, [""], ["b", "a"])
    seen = with_views(observe(net, inputs, ["hidden.0"]), batch, ["b", "a"])
    assert calls == [20]
    assert torch.allclose(seen.logits, net(x))
    assert torch.allclose(seen.views["b"].logits, net(more["b"]))
    assert torch.allclose(seen.views["a"].layers[0], net.hidden[0](more["a"]))  # type: ignore[index,operator]
    assert (list(seen.views), seen.index) == (["b", "a"], batch.index)
    with pytest.raises(InputError, match="no view 'c'"):
        inputs_with_views(batch, [""], ["c"])


def test_a_training_hands_the_views_of_both_networks_to_the_loss() -> None:
    loss = Twice("turned")
    data = Digits(train_size=40, batch_size=8, views={"turned": Rotations()})
    module = Distiller(network(), network(1), {"twice": Knowledge(loss)}, optimizer=sgd)
    pl.seed_everything(0)
    trainer(limit_train_batches=2).fit(module, data)
    student, teacher = loss.seen[-1]
    assert student.logits.shape == (8, 10)
    assert student.views["turned"].logits.shape == teacher.views["turned"].logits.shape == (24, 10)


def test_a_missing_view_raises() -> None:
    module = Distiller(network(), network(1), {"twice": Knowledge(Twice("strong"))}, optimizer=sgd)
    with pytest.raises(InputError, match=r"no view 'strong': let the data give it \(data.views\)"):
        trainer().fit(module, Digits(train_size=40, batch_size=8))
