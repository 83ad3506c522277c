"""Lightning runs, killed and resumed, overfitted or in half precision, see the batches that they should."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.tiny import KilledError, Notes, Tiny, trainer
from tests.tiers import tiered

RUNS: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 3},
    "steps": {"max_epochs": -1, "max_steps": 18},
    "limited": {"max_epochs": 3, "limit_train_batches": 5},
    "checked": {"max_epochs": 3, "val_check_interval": 2},
}


def straight(folder: Path, options: dict[str, Any]) -> list[tuple[int, list[int], str]]:
    notes = Notes()
    trainer(folder, **options).fit(notes, Tiny(padding=1, flip=True))
    return notes.seen


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(("every", "killed"), tiered([(4, 5), (5, 5), (6, 7), (8, 10), (12, 14)], [(5, 5), (8, 10)]))
def test_a_killed_run_sees_what_it_would_have_seen(tmp_path: Path, run: str, every: int, killed: int) -> None:
    expected = straight(tmp_path, RUNS[run])
    with pytest.raises(KilledError):
        trainer(tmp_path, every, **RUNS[run]).fit(Notes(kill_after=killed), Tiny(padding=1, flip=True))
    notes = Notes()
    resumed = trainer(tmp_path, every, **RUNS[run])
    resumed.fit(notes, Tiny(padding=1, flip=True), ckpt_path=tmp_path / f"step={every}.ckpt")
    assert notes.seen == expected[every:]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("after_training", tiered([False, True], [True]))
def test_a_run_goes_on_from_the_end_of_an_epoch(tmp_path: Path, run: str, after_training: bool) -> None:
    expected = straight(tmp_path, RUNS[run])
    per_epoch = len([epoch for epoch, _, _ in expected if epoch == 0])

    def saving() -> Any:
        return trainer(tmp_path, epochs=True, after_training=after_training, **RUNS[run])

    with pytest.raises(KilledError):
        saving().fit(Notes(kill_after=2 * per_epoch + 1), Tiny(padding=1, flip=True))
    for epoch in (0, 1):
        notes = Notes()
        saving().fit(notes, Tiny(padding=1, flip=True), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert notes.seen == expected[(epoch + 1) * per_epoch :]


def test_two_epochs_and_two_seeds_differ_but_two_runs_do_not(tmp_path: Path) -> None:
    first = straight(tmp_path, {"max_epochs": 2})
    assert first == straight(tmp_path, {"max_epochs": 2})
    assert [index for _, index, _ in first[:6]] != [index for _, index, _ in first[6:]]
    assert sorted(chain(*(index for _, index, _ in first[6:]))) == list(range(21))
    assert [epoch for epoch, _, _ in first] == [0] * 6 + [1] * 6
    other = Notes()
    trainer(tmp_path, max_epochs=2).fit(other, Tiny(padding=1, flip=True, seed=1))
    assert other.seen != first


def test_pixels_are_those_of_prepare(tmp_path: Path) -> None:
    data = Tiny(padding=1, flip=True)
    seen = straight(tmp_path, {"max_epochs": 2})
    data.setup()
    plain, shown = data.train_dataloader(), []
    for epoch in range(2):
        plain.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        shown += [data.prepare(batch, epoch).inputs for batch in plain]
    notes = Notes()
    notes.trainer = trainer(tmp_path)
    for epoch, index, pixels in zip([0] * 6 + [1] * 6, [each[1] for each in seen], shown, strict=True):
        notes.training_step(_batch(pixels, index), epoch)
    assert [each[2] for each in notes.seen] == [each[2] for each in seen]


def _batch(pixels: torch.Tensor, index: list[int]) -> Any:
    from kdlab.outputs import Batch

    return Batch(pixels, torch.zeros(len(index), dtype=torch.int64), torch.tensor(index))


def test_evaluation_sees_every_sample_once_unaugmented(tmp_path: Path) -> None:
    data, notes = Tiny(padding=1, flip=True), Notes()
    run = trainer(tmp_path)
    run.test(notes, data, verbose=False)
    assert notes.evaluated == list(range(21))
    images, _ = data.read(train=False)
    expected = (images.float() / 255 - torch.tensor([0.25, 0.5]).view(2, 1, 1)) / torch.tensor([0.5, 0.125]).view(
        2, 1, 1
    )
    torch.testing.assert_close(torch.stack(notes.pixels), expected)
    predicted = run.predict(notes, data)
    assert torch.cat(predicted).tolist() == list(range(21))  # type: ignore[arg-type]


def test_overfitting_repeats_the_same_batches(tmp_path: Path) -> None:
    notes = Notes()
    trainer(tmp_path, max_epochs=2, overfit_batches=2).fit(notes, Tiny())
    assert [index for _, index, _ in notes.seen] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_half_precision_reaches_the_images(tmp_path: Path) -> None:
    notes = Notes()
    trainer(tmp_path, max_epochs=1, precision="bf16-true", limit_val_batches=1).fit(notes, Tiny())
    assert len(notes.seen) == 6
    assert notes.pixels[0].dtype == torch.bfloat16
