"""A training with the teacher's outputs from the cache is the training with the teacher itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import Distiller, InputError, Knowledge
from kdlab.data import Digits, Rotations, View
from kdlab.losses import DIST, Hint, RKDDistance, SoftTargets
from kdlab.teaching import EBKD, TeacherCache
from kdlab.teaching.cache import describe
from tests.modules.tiny import count_calls, digits, distiller, network, pairs, same, trainer, weights


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


def test_half_precision_stays_within_its_rounding(tmp_path: Path) -> None:
    teacher = network(1)
    cache = TeacherCache(str(tmp_path))
    module = distiller(teacher=teacher, teacher_cache=cache)
    seen: list[tuple[Tensor, Tensor]] = []
    assert module.teacher is not None
    lessons = module.teacher.lessons

    def noted(outputs: Any, batch: Any) -> Any:
        made = lessons(outputs, batch)
        if cache.is_open:
            seen.append((made[0].teacher.logits, teacher(batch.inputs)))
        return made

    module.teacher.lessons = noted  # type: ignore[method-assign]
    trainer(1).fit(module, digits())
    assert len(seen) == 5
    assert all((kept - true).abs().max() <= 2**-11 * true.abs().max() for kept, true in seen)
    assert any((kept - true).abs().max() > 0 for kept, true in seen)


def test_all_methods_and_seeds_of_a_study_share_a_store(tmp_path: Path) -> None:
    assert trained(float32(tmp_path))[1] == 15
    other = {"a": Knowledge(DIST(), 2.0)}
    assert trained(float32(tmp_path), knowledge=other)[1] == 0
    assert trained(float32(tmp_path), student=network(7, (32,)), epochs=2)[1] == 0
    whole = {"train_size": None, "batch_size": 32, "augmentation_seed": 0}
    assert trained(float32(tmp_path), shifted(seed=4, **whole), 1)[1] == 40
    assert trained(float32(tmp_path), shifted(seed=5, **whole), 1)[1] == 0


def test_in_another_order_the_samples_get_the_same_logits(tmp_path: Path) -> None:
    whole = {"train_size": None, "batch_size": 32, "augmentation_seed": 0}
    trained(float32(tmp_path), shifted(seed=4, **whole), 1)
    live, _ = trained(None, shifted(seed=5, **whole), 1)
    read, runs = trained(float32(tmp_path), shifted(seed=5, **whole), 1)
    assert runs == 0
    assert all(float((live[name] - read[name]).abs().max()) < 1e-5 for name in live)


def test_a_module_can_be_fitted_again_with_its_cache(tmp_path: Path) -> None:
    ends = []
    for cache in (None, float32(tmp_path)):
        module = distiller(teacher=network(1), teacher_cache=cache, teacher_fast=None)
        for data in (shifted(), shifted(padding=2)):
            trainer(2).fit(module, data)
        ends.append(weights(module.student))
    assert same(*ends)
    assert module.teacher is not None
    assert module.teacher._index is not None  # read where it was before its transfer


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


@pytest.mark.parametrize("options", [embedding, views])
def test_embeddings_and_further_views_come_from_the_cache_too(
    tmp_path: Path, options: Callable[[], dict[str, Any]]
) -> None:
    def data() -> Digits:
        return shifted(views={"strong": Rotations([90, 180])})

    live, _ = trained(None, data(), 2, **options())
    trained(float32(tmp_path), data(), 2, **options())
    assert [each for each in tmp_path.glob("*/*") if "strong" in each.name] or options is embedding
    read, runs = trained(float32(tmp_path, check=1), data(), 2, **options())
    assert runs in (10, 0)  # the check runs the teacher beside the store; with a view the batches are larger
    assert same(live, read)


def test_an_ensemble_comes_from_the_stores_of_its_teachers(tmp_path: Path) -> None:
    def both() -> list[nn.Module]:
        return [network(1), network(2)]

    live, _ = trained(None, teacher=both(), ensemble=EBKD())
    assert trained(float32(tmp_path))[1] == 15  # the first of them alone
    filled, runs = trained(float32(tmp_path), teacher=both(), ensemble=EBKD())
    assert runs == 15
    read, runs = trained(float32(tmp_path), teacher=both(), ensemble=EBKD())
    assert runs == 0
    assert same(live, filled)
    assert same(live, read)
    assert len(list(tmp_path.iterdir())) == 2


class Brighter(Digits):
    """Other data in the same form."""

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().read(train)
        images[:, 0, 0, 0] += 1
        return images, labels


def normalised() -> Digits:
    data = shifted()
    data.mean = [0.4]
    return data


def other_weight() -> dict[str, Any]:
    teacher = network(1)
    with torch.no_grad():
        next(teacher.parameters()).view(-1)[3] += 1e-6
    return {"teacher": teacher}


@pytest.mark.parametrize(
    "changed",
    [
        other_weight,
        lambda: {"data": shifted(padding=2)},
        lambda: {"data": shifted(flip=True)},
        lambda: {"data": shifted(seed=1)},
        lambda: {"data": Brighter(train_size=160, batch_size=32, padding=1)},
        lambda: {"data": shifted(train_size=192)},
        lambda: {"data": normalised()},
        lambda: {"data": shifted(seed=1, augmentation_seed=0)},
    ],
    ids=["teacher", "padding", "flip", "seed", "pixel", "size", "mean", "other images of the same set"],
)
def test_old_entries_are_not_used_after_a_change(tmp_path: Path, changed: Callable[[], dict[str, Any]]) -> None:
    trained(float32(tmp_path))
    live, runs = trained(None, **changed())
    kept, again = trained(float32(tmp_path), **changed())
    assert runs == again > 0
    assert same(live, kept)
    assert len(list(tmp_path.iterdir())) == 2


class Jitter(Digits):
    """A user's own random transform."""

    def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        return images + torch.randint(0, 2, images.shape).byte()


class Mixed(Digits):
    """Mixup after the transfer, from the global generator."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return batch._replace(inputs=batch.inputs.lerp(batch.inputs.flip(0), float(torch.rand(()))))


class MixedIn(Distiller):
    """Mixup in the module."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Loose(View):
    """A view that keeps an object which does not say what it is."""

    def __init__(self) -> None:
        self.transform = object()

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        return images


def patched() -> Digits:
    data = shifted()
    data.augment = lambda images, index, epoch: images  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda: Jitter(train_size=160, batch_size=32), r"Jitter has its own augment\(\), which may draw at random"),
        (lambda: Mixed(train_size=160, batch_size=32), r"Mixed has its own on_after_batch_transfer\(\)"),
        (patched, r"its own augment\(\)"),
        (lambda: shifted(views={"loose": Loose()}), "attributes that say nothing of themselves"),
        (lambda: pairs(), "plain loaders say nothing"),
    ],
    ids=["augment", "mixup", "patched", "view", "loaders"],
)
def test_what_cannot_be_keyed_is_refused(tmp_path: Path, data: Callable[[], Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        trained(float32(tmp_path / "new"), data())
    assert not (tmp_path / "new").exists()


def test_a_module_with_its_own_transforms_is_refused(tmp_path: Path) -> None:
    module = MixedIn(network(), network(1), {"a": Knowledge(SoftTargets())}, teacher_cache=float32(tmp_path))
    with pytest.raises(InputError, match=r"MixedIn has its own on_after_batch_transfer\(\)"):
        trainer().fit(module, shifted())


class Late(Distiller):
    """Mixup inside the step."""

    def training_step(self, raw: Any, batch_idx: int) -> Tensor:
        return super().training_step(raw, batch_idx)


class Slower(Digits):
    """Shows each augmentation twice."""

    def shown(self, epoch: int) -> int:
        return epoch // 2


class Unplain(Digits):
    """Says what cannot be written down."""

    def fingerprint(self) -> dict[str, Any]:
        return {"what": {1, 2}}


def test_other_ways_to_change_a_batch_are_refused(tmp_path: Path) -> None:
    module = Late(network(), network(1), {"a": Knowledge(SoftTargets())}, teacher_cache=float32(tmp_path))
    with pytest.raises(InputError, match=r"Late has its own training_step\(\)"):
        trainer().fit(module, shifted())
    with pytest.raises(InputError, match=r"Slower has its own shown\(\)"):
        trained(float32(tmp_path), Slower(train_size=160, batch_size=32))
    with pytest.raises(InputError, match=r"fingerprint\(\) must give plain numbers"):
        trained(float32(tmp_path), Unplain(train_size=160, batch_size=32))


class Sorted(Digits):
    """Sorts each batch by its labels after the transfer, and says so."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        order = batch.target.argsort(stable=True)
        return batch._replace(inputs=batch.inputs[order], target=batch.target[order], index=batch.index[order])

    def fingerprint(self) -> dict[str, Any]:
        return {"sorted": True}


def test_a_teachers_lists_are_part_of_the_key() -> None:
    first, second = network(1), network(1)
    assert describe(first) == describe(second)
    first.scales, second.scales = [1.0], [5.0]  # type: ignore[assignment]
    assert describe(first) != describe(second)


def test_a_batch_that_is_reordered_after_its_transfer_keeps_its_rows(tmp_path: Path) -> None:
    trained(float32(tmp_path), Sorted(train_size=160, batch_size=40), 1)
    live, _ = trained(None, Sorted(train_size=160, batch_size=32), 1)
    read, runs = trained(float32(tmp_path), Sorted(train_size=160, batch_size=32), 1)
    assert runs == 0
    assert all(float((live[name] - read[name]).abs().max()) < 1e-5 for name in live)


def test_a_transform_that_says_what_it_depends_on_is_keyed(tmp_path: Path) -> None:
    class Darker(Digits):
        by = 1

        def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
            return images // (1 + self.by)

        def fingerprint(self) -> dict[str, Any]:
            return {"darker": self.by, "seed": self.seed}

    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 15
    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 0
    Darker.by = 2
    assert trained(float32(tmp_path), Darker(train_size=160, batch_size=32))[1] == 15


def test_losses_that_read_layers_are_refused(tmp_path: Path) -> None:
    hint = {"hint": Knowledge(Hint(), student_layers=["hidden.0"])}
    with pytest.raises(InputError, match=r"knowledge 'hint' \(Hint\) reads the teacher's layers hidden\.0"):
        trained(float32(tmp_path), knowledge=hint)
    with pytest.raises(InputError, match="depend on its batch"):
        trained(float32(tmp_path), teacher_batchnorm="batch")


def test_views_and_distinct_epochs_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"after 3 epochs, but teacher_cache\.views is 2"):
        trained(float32(tmp_path, views=2), shifted(distinct_epochs=3))
    data = shifted()
    trained(float32(tmp_path, views=2), data)
    assert trained(float32(tmp_path), shifted(distinct_epochs=2))[1] == 0


def test_what_cache_and_data_agree_on_ends_with_the_fit(tmp_path: Path) -> None:
    data, cache = shifted(), float32(tmp_path, views=2)
    trained(cache, data)
    assert (data.distinct_epochs, cache.views) == (None, 2)
    live, _ = trained(None, data)
    assert same(live, trained(None, shifted())[0])
    repeating, cache = shifted(distinct_epochs=2), float32(tmp_path)
    trained(cache, repeating)
    assert (repeating.distinct_epochs, cache.views) == (2, None)
    assert trained(cache, shifted(distinct_epochs=3))[1] == 5  # the views of epochs 0 and 1 are there


def test_a_full_disk_is_found_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("kdlab.teaching.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 0\.0 MB in .* where 0\.0 MB are free"):
        trained(float32(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


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
    assert trained(float32(tmp_path / "store"), epochs=2, student=network())[1] == 10  # of another Fast: its own store
