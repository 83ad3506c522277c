"""The previous batch under another augmentation, over epochs, kills, workers and processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdlab.data import LastBatch, SameClass
from kdlab.data.samplers import InOrder, Shuffled
from kdlab.outputs.containers import Batch
from tests.data.test_images import attached
from tests.data.test_paired_views import FAR, VIEWS, look, ready, same, served
from tests.data.tiny import KilledError, Notes, Tiny, trainer


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", [Shuffled, InOrder])
def test_every_draw_has_the_process_part_of_the_previous_batch(kind: type[Shuffled], world_size: int) -> None:
    for rank in range(world_size):
        order = kind(21, 4, 3, rank, world_size)
        order.remembers = True
        before: list[int] = []
        for epoch in range(3):
            order.set_epoch(epoch)
            whole = list(order)
            for draw in whole:
                assert draw.previous is not None
                assert draw.previous.tolist() == before
                before = draw.positions.tolist()
            for start in range(1, len(whole)):
                order.start = start
                assert next(iter(order)).previous.tolist() == whole[start].previous.tolist()  # type: ignore[union-attr]


def test_draws_have_no_previous_batch_unless_a_view_needs_it() -> None:
    assert next(iter(Shuffled(21, 4))).previous is None
    assert ready({"mates": SameClass()}).train_dataloader().sampler.remembers is False  # type: ignore[attr-defined]


def test_the_batch_before_has_labels_index_and_other_pixels() -> None:
    data = ready({"last": LastBatch()})
    _, labels = data.read(train=True)
    before: list[int] = []
    for epoch in range(2):
        for batch in served(data, epoch):
            view = batch.views["last"]
            assert view.inputs.shape == (len(before), 2, 4, 5)
            assert view.inputs.dtype == torch.float32
            assert view.index.tolist() == before
            assert view.target.tolist() == labels[before].tolist()
            for image, sample in zip(view.inputs, before, strict=True):
                assert torch.equal(image, look(data, sample, epoch + FAR))
            before = batch.index.tolist()


class Seen(Notes):
    """Also records the samples of every view."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        views = {
            name: (view.index.tolist(), view.target.tolist(), view.inputs.double().sum().item())
            for name, view in (batch.views or {}).items()
        }
        self.seen[-1] = (*self.seen[-1], views)  # type: ignore[assignment]
        return loss


RUNS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 18},
    "limited": {"max_epochs": 3, "limit_train_batches": 5},
    "share": {"max_epochs": 3, "limit_train_batches": 0.7},
    "overfit": {"max_epochs": 3, "overfit_batches": 4},
}


def fitted(folder: Path, kill_after: int = 10**9, every: int | None = None, ckpt: Any = None, **run: Any) -> list[Any]:
    data, notes = Tiny(padding=1, flip=True), Seen(kill_after)
    data.provide(VIEWS)
    trainer(folder, every, **run).fit(notes, data, ckpt_path=ckpt)
    return notes.seen


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("run", RUNS)
def test_the_previous_batch_spans_epochs_and_kills(tmp_path: Path, run: str) -> None:
    straight = fitted(tmp_path, **RUNS[run])
    before: list[int] = []
    for _, index, _, views in straight:
        assert views["last"][0] == before
        before = index
    for every, killed in ((4, 5), (5, 5), (6, 7), (8, 10)):
        with pytest.raises(KilledError):
            fitted(tmp_path / str(every), killed, every, **RUNS[run])
        resumed = fitted(tmp_path / str(every), ckpt=tmp_path / f"{every}/step={every}.ckpt", every=every, **RUNS[run])
        assert resumed == straight[every:]


def test_two_processes_share_the_views_of_one() -> None:
    alone = ready(VIEWS)
    whole = [batch.views for batch in alone.train_dataloader()]
    parts = []
    for rank in range(2):
        data = ready(VIEWS)
        data.trainer = attached(rank, 2, 0)
        data.trainer.num_training_batches = 5
        parts.append([batch.views for batch in data.train_dataloader()])
    for one, *two in zip(whole[:5], *parts, strict=True):
        for name in ("last", "mates"):
            for k in range(3):
                assert torch.equal(torch.cat([each[name][k] for each in two]), one[name][k])


def test_workers_bring_the_same_companions() -> None:
    plain, workers = ready(VIEWS), ready(VIEWS, num_workers=2)
    for epoch in range(2):
        one, two = served(plain, epoch), served(workers, epoch)
        assert all(same(one, two, name) for name in VIEWS)
