"""A rehearsal's few samples take their views along, and only inputs get the network's dtype."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlab import Distiller, InputError, Knowledge
from kdlab.losses import SoftTargets
from kdlab.modules.first_batch import SAMPLES, FirstBatch, _cast
from kdlab.outputs.containers import Batch, Mix
from tests.modules.tiny import digits, distiller, network, pairs, trainer


def batch_of(count: int, mix: Mix | None = None) -> Batch:
    return Batch(torch.rand(count, 3), torch.arange(count), torch.arange(count) + 100, mix=mix)


def test_a_few_samples_take_their_views_along() -> None:
    mix = Mix(torch.arange(12).roll(1), torch.rand(12))
    views = {
        "mates": batch_of(24),
        "last": batch_of(13),
        "short": batch_of(5),
        "empty": batch_of(0),
        "mixed": batch_of(12, mix),
        "turned": torch.rand(36, 3),
    }
    few = FirstBatch(batch_of(12, mix)._replace(views=views), None, None, None).few
    sizes = {name: len(view.inputs if isinstance(view, Batch) else view) for name, view in few.views.items()}
    assert sizes == {
        "mates": 2 * SAMPLES,
        "last": SAMPLES,
        "short": 5,
        "empty": SAMPLES,
        "mixed": SAMPLES,
        "turned": 24,
    }
    assert torch.equal(few.views["empty"].index, few.index)  # an empty view has the batch itself
    for cut, whole in ((few, batch_of(12)), (few.views["mates"], batch_of(24)), (few.views["mixed"], batch_of(12))):
        assert torch.equal(cut.index, whole.index[: len(cut.index)])
        assert torch.equal(cut.target, whole.target[: len(cut.target)])
        assert cut.views is None or cut is few
    for cut in (few, few.views["mixed"]):
        assert cut.mix.partner.tolist() == [11 % SAMPLES, 0, 1, 2, 3, 4, 5, 6]
        assert torch.equal(cut.mix.share, mix.share[:SAMPLES])
    small = FirstBatch(batch_of(3, Mix(torch.tensor([2, 0, 1]), torch.rand(3))), None, None, None).few
    assert small.mix.partner.tolist() == [2, 0, 1]


class Told(nn.Module):
    """Reads what else than tensors a batch may hold; refuses what does not come as the loader gave it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(
        self, pixels: Tensor, texts: list[str], sizes: dict[str, Tensor], scale: float, kind: str, extra: None
    ) -> Tensor:
        assert len(texts) == len(pixels) == len(sizes["rows"])
        assert (texts[0], scale, kind, extra) == ("sample", 2.0, "words", None)
        return self.head(self.body(pixels * scale).relu())


def told(batch: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    pixels, labels = (torch.stack(parts) for parts in zip(*batch, strict=True))
    texts, rows = ["sample"] * len(labels), torch.full((len(labels),), 8)
    further = {"scale": 2.0, "kind": "words", "extra": None, "sizes": {"rows": rows}}
    return {"pixels": pixels, "texts": texts, "labels": labels, **further}


def told_data() -> DataLoader[Any]:
    return DataLoader(pairs(40).dataset, 20, collate_fn=told)


def test_a_batch_may_hold_other_things_than_tensors() -> None:
    module = Distiller(Told(), Told(16), {"soft": Knowledge(SoftTargets(4.0))})
    run = trainer(1, limit_val_batches=1.0)
    run.fit(module, told_data(), told_data())
    assert (run.global_step, "val/student_accuracy" in run.callback_metrics) == (2, True)


def test_a_network_that_fails_is_reported_with_all_that_the_batch_holds() -> None:
    form = (
        r"The student fails on inputs pixels \(8, 64\) float32, texts a list of 8, scale a float, kind a str, "
        r"extra a NoneType, sizes rows \(8,\) int64: "
    )
    network = Told()
    network.body = nn.Linear(3, 8)
    with pytest.raises(InputError, match=form):
        trainer().fit(Distiller(network, Told(), {"soft": Knowledge(SoftTargets(4.0))}), told_data())


def test_a_view_that_is_a_batch_gets_the_network_s_dtype() -> None:
    mix = Mix(torch.arange(4).roll(1), torch.rand(4))
    batch = batch_of(4, mix)._replace(target=torch.rand(4, 3), views={"mixed": batch_of(4, mix)})
    cast = _cast(batch, torch.float64)
    assert cast.inputs.dtype == cast.views["mixed"].inputs.dtype == torch.float64
    assert cast.target.dtype == cast.mix.share.dtype == cast.views["mixed"].mix.share.dtype == torch.float32
    assert cast.views["mixed"].target.dtype == torch.int64


def test_the_loaders_own_generator_is_as_before() -> None:
    generator, states = torch.Generator().manual_seed(0), []

    class Watch(pl.Callback):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            states.append(generator.get_state())

    before = generator.get_state()
    loader = DataLoader(pairs().dataset, 8, shuffle=True, generator=generator)
    trainer(max_steps=1, callbacks=[Watch()]).fit(distiller(), loader)
    assert torch.equal(states[0], before)


@pytest.mark.parametrize(("mean", "warned"), [([0.3], False), ([3.0], True)])
@pytest.mark.filterwarnings("always")
def test_images_far_from_normalized_are_warned_of(mean: list[float], warned: bool) -> None:
    data = digits()
    data.mean = mean
    with warnings.catch_warnings(record=True) as caught:
        trainer(max_steps=1).fit(Distiller(network(), network(1)), data)
    texts = [str(warning.message) for warning in caught if "After normalization" in str(warning.message)]
    assert len(texts) == warned
    if warned:  # digits are 16 gray levels with mean 0.305 and standard deviation 0.376
        found = re.search(r"those of these images \[([\d.]+)\] and \[([\d.]+)\]", texts[0])
        assert found is not None
        assert [float(x) for x in found.groups()] == pytest.approx([0.305, 0.376], abs=0.03)


def test_students_without_a_teacher_take_any_images() -> None:
    data = digits()
    data.mean = [3.0]
    trainer(max_steps=1).fit(Distiller(network()), data)  # a warning is an error
