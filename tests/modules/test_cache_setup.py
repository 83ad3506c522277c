"""A training with the teacher's outputs from the cache is the training with the teacher itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import Knowledge
from kdlab.data import Digits, Rotations
from kdlab.errors import InputError
from kdlab.losses import DIST, Hint, RKDDistance
from kdlab.members import Cached, Frozen
from kdlab.teaching import EBKD, TeacherCache
from tests.modules.tiny import count_calls, digits, distiller, network, same, trainer, weights


def shifted(**options: Any) -> Digits:
    """160 images, 5 batches an epoch, moved by up to one pixel."""
    return digits(**({"padding": 1} | options))


def trained(
    cache: TeacherCache | None, data: Any = None, epochs: int = 3, teacher: Any = None, **options: Any
) -> tuple[dict[str, Tensor], int]:
    """The student's weights after a fit, and how many batches of a training the teacher ran."""
    teacher = teacher or network(1)
    first = teacher[0] if isinstance(teacher, list) else teacher
    calls = count_calls(first)
    module = distiller(teacher=teacher, teacher_cache=cache, teacher_fast=None, **options)
    trainer(epochs, enable_progress_bar=False).fit(module, data or shifted())
    return weights(module.student), calls.count(32)


def float32(folder: Path, **options: Any) -> TeacherCache:
    return TeacherCache(str(folder), "float32", **options)


@pytest.mark.parametrize("views", [None, 2])
def test_filling_and_reading_equal_the_live_run_bit_for_bit(tmp_path: Path, views: int | None) -> None:
    live, runs = trained(None, shifted(distinct_epochs=views))
    assert runs == 15
    filled, runs = trained(float32(tmp_path, views=views))
    assert runs == 5 * (views or 3)
    read, runs = trained(float32(tmp_path, views=views))
    assert runs == 0
    assert same(live, filled)
    assert same(live, read)


def test_another_augmentation_seed_shares_no_rows(tmp_path: Path) -> None:
    # The seed of the augmentation alone: the data's seed would choose other samples as well.
    trained(float32(tmp_path), shifted(augmentation_seed=0), epochs=1)
    live, runs = trained(None, shifted(augmentation_seed=1), epochs=1)
    cached, filled = trained(float32(tmp_path), shifted(augmentation_seed=1), epochs=1)
    assert filled == runs == 5
    assert same(live, cached)


def test_half_precision_stays_within_its_rounding(tmp_path: Path) -> None:
    teacher = network(1)
    cache = TeacherCache(str(tmp_path))
    module = distiller(teacher=teacher, teacher_cache=cache)
    kept_logits: list[Tensor] = []
    true_logits: list[Tensor] = []

    class Note(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            true_logits.append(teacher(batch.inputs))

    module.losses["soft"].register_forward_hook(lambda loss, sides, value: kept_logits.append(sides[1].logits))
    trainer(1, callbacks=[Note()]).fit(module, digits())
    seen = [*zip(kept_logits[1:], true_logits, strict=True)]  # the first is the dry run's
    assert len(seen) == 5
    assert all((kept - true).abs().max() <= 2**-11 * true.abs().max() for kept, true in seen)
    assert any((kept - true).abs().max() > 0 for kept, true in seen)


@pytest.mark.full
def test_all_methods_and_seeds_of_a_study_share_a_store(tmp_path: Path) -> None:
    assert trained(float32(tmp_path))[1] == 15
    other = {"a": Knowledge(DIST(), 2.0)}
    assert trained(float32(tmp_path), knowledge=other)[1] == 0
    assert trained(float32(tmp_path), student=network(7, (32,)), epochs=2)[1] == 0
    whole = {"train_size": None, "batch_size": 32, "augmentation_seed": 0}
    assert trained(float32(tmp_path), shifted(seed=4, **whole), 1)[1] == 40
    assert trained(float32(tmp_path), shifted(seed=5, **whole), 1)[1] == 0


@pytest.mark.full
def test_in_another_order_the_samples_get_the_same_logits(tmp_path: Path) -> None:
    whole = {"train_size": None, "batch_size": 32, "augmentation_seed": 0}
    trained(float32(tmp_path), shifted(seed=4, **whole), 1)
    live, _ = trained(None, shifted(seed=5, **whole), 1)
    read, runs = trained(float32(tmp_path), shifted(seed=5, **whole), 1)
    assert runs == 0
    assert all(float((live[name] - read[name]).abs().max()) < 1e-5 for name in live)


def test_a_module_can_be_fitted_again_with_its_cache(tmp_path: Path) -> None:
    on_host: list[bool] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
            if isinstance(member := module.plan.members["teacher"], Cached):
                index = member.index_of(batch)
                on_host.append(index is trainer.datamodule.host_index)

    ends = []
    for cache in (None, float32(tmp_path)):
        module = distiller(teacher=network(1), teacher_cache=cache, teacher_fast=None)
        for data in (shifted(), shifted(padding=2)):
            trainer(2, callbacks=[Look()]).fit(module, data)
        ends.append(weights(module.student))
    assert same(*ends)
    assert on_host == [True] * 20  # read where it was before its transfer
    assert isinstance(module.plan.members["teacher"], Frozen)


def test_another_precision_has_a_store_of_its_own(tmp_path: Path) -> None:
    for precision in ("32-true", "bf16-mixed"):
        module = distiller(teacher=network(1), teacher_cache=float32(tmp_path))
        trainer(1, precision=precision).fit(module, shifted())
    assert len(list(tmp_path.iterdir())) == 2


def embedding() -> dict[str, Any]:
    return {"knowledge": {"r": Knowledge(RKDDistance(), 1.0)}}


class Turned(nn.Module):
    """Compares both networks on a view with several inputs a sample."""

    views = ("strong",)

    def forward(self, student: Any, teacher: Any, target: Tensor) -> Tensor:
        ours, theirs = student.views["strong"].logits, teacher.views["strong"].logits
        return (ours - theirs).square().mean() + (student.logits - teacher.logits).square().mean()


def views() -> dict[str, Any]:
    return {"knowledge": {"m": Knowledge(Turned(), 1.0)}}


@pytest.mark.full
@pytest.mark.parametrize("options", [embedding, views])
def test_embeddings_and_further_views_come_from_the_cache_too(
    tmp_path: Path, options: Callable[[], dict[str, Any]]
) -> None:
    def data() -> Digits:
        return shifted(views={"strong": Rotations([90, 180])})

    live, _ = trained(None, data(), 2, **options())
    trained(float32(tmp_path), data(), 2, **options())
    files = {path.name.split("-", 1)[1]: path.stat().st_size for path in tmp_path.glob("*/0*")}
    # Ten logits and an embedding of 16, in float32 with 8 bytes beside them; two rotations of a sample.
    expected = {"-logits-10": 160 * 48, "-embedding-16": 160 * 72}
    rotated = {f"strong{name}": 2 * size for name, size in expected.items()}
    assert files == (expected | rotated if options is views else expected)
    read, runs = trained(float32(tmp_path, check=1), data(), 2, **options())
    assert runs in (10, 0)  # the check runs the teacher beside the store; with a view the batches are larger
    assert same(live, read)


@pytest.mark.full
def test_an_ensemble_comes_from_the_stores_of_its_teachers(tmp_path: Path) -> None:
    def both() -> list[nn.Module]:
        return [network(1), network(2)]

    live, _ = trained(None, teacher=both(), ensemble=EBKD())
    assert trained(float32(tmp_path))[1] == 15  # the first of them alone
    filled, runs = trained(float32(tmp_path), teacher=both(), ensemble=EBKD())
    assert runs == 0  # the second one's store is filled alone
    assert trained(float32(tmp_path), teacher=both()[::-1], ensemble=EBKD())[1] == 0
    read, runs = trained(float32(tmp_path), teacher=both(), ensemble=EBKD())
    assert runs == 0
    assert same(live, filled)
    assert same(live, read)
    assert len(list(tmp_path.iterdir())) == 2


class Sorted(Digits):
    """Sorts each batch by its labels after the transfer, and says so."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        order = batch.target.argsort(stable=True)
        return batch._replace(inputs=batch.inputs[order], target=batch.target[order], index=batch.index[order])

    def fingerprint(self) -> dict[str, Any]:
        return {"sorted": True}


def test_a_batch_that_is_reordered_after_its_transfer_keeps_its_rows(tmp_path: Path) -> None:
    trained(float32(tmp_path), Sorted(train_size=160, batch_size=40), 1)
    live, _ = trained(None, Sorted(train_size=160, batch_size=32), 1)
    read, runs = trained(float32(tmp_path), Sorted(train_size=160, batch_size=32), 1)
    assert runs == 0
    assert all(float((live[name] - read[name]).abs().max()) < 1e-5 for name in live)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_two_processes_fill_and_read_one_store(tmp_path: Path) -> None:
    def train(cache: TeacherCache | None, name: str) -> dict[str, Tensor]:
        module = distiller(teacher=network(1), teacher_cache=cache)
        keep = pl.callbacks.ModelCheckpoint(tmp_path / name, save_last=True, save_top_k=0, every_n_epochs=1)
        options = {"strategy": "ddp_fork", "devices": 2, "callbacks": [keep], "enable_checkpointing": True}
        trainer(2, **options).fit(module, shifted())
        state: dict[str, Tensor] = torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        return state

    live = train(None, "live")
    filled = train(float32(tmp_path / "store"), "filled")
    read = train(float32(tmp_path / "store"), "read")
    assert same(live, filled)
    assert same(live, read)
    assert (
        trained(float32(tmp_path / "store"), epochs=2, student=network())[1] == 0
    )  # no option of Fast changes this network


def test_a_shared_cache_serves_what_it_can(tmp_path: Path) -> None:
    """In a study one cache stands before all methods: those that read layers run the teacher, with the same bits."""

    def hint() -> dict[str, Knowledge]:
        torch.manual_seed(0)
        return {"hint": Knowledge(Hint(), 1.0, None, ["hidden.0"], ["hidden.0"])}

    live, runs = trained(None, knowledge=hint(), epochs=2)
    with pytest.raises(InputError, match="reads the teacher's layers"):
        trained(float32(tmp_path), knowledge=hint(), epochs=2)
    shared, again = trained(float32(tmp_path, shared=True), knowledge=hint(), epochs=2)
    assert runs == again == 10
    assert same(live, shared)
    assert not any(tmp_path.iterdir())
    trained(float32(tmp_path, shared=True), epochs=2)  # logits alone
    live, _ = trained(None, knowledge={"rkd": Knowledge(RKDDistance(), 1.0)}, epochs=2)
    read, runs = trained(float32(tmp_path, shared=True), knowledge={"rkd": Knowledge(RKDDistance(), 1.0)}, epochs=2)
    assert runs == 0
    assert same(live, read)
