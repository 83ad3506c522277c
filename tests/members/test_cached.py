"""Frozen teachers behind a cache: when they run, and what they give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kdlab.members import Cached, Frozen, TeacherCache
from kdlab.members.teacher_cache import Store
from kdlab.outputs import Batch, observe
from kdlab.schedules import Progress
from tests.modules.tiny import count_calls, network

ROWS = 12


def cached(
    folder: Path, names: tuple[str, ...] = ("teacher",), views: tuple[str, ...] = ()
) -> tuple[list[Cached], list[list[int]]]:
    """Teachers behind a cache, and the sizes of the batches that each was called with."""
    teachers = [Frozen(network(seed), name, fast=None) for seed, name in enumerate(names)]
    cache, rows = TeacherCache(str(folder)), {"": ROWS, **dict.fromkeys(views, 2 * ROWS)}
    members = []
    for teacher in teachers:
        forms = cache.forms(observe(teacher.network, batch_of(0).inputs), embedding=True)
        store = Store(cache, {"teacher": teacher.name, "data": "numbers"}, rows, forms)
        members.append(Cached(teacher, store, index_of))
    return members, [count_calls(teacher.network) for teacher in teachers]


def index_of(batch: Batch) -> Any:
    return batch.index


def batch_of(*index: int, epoch: int | None = 0, views: Any = None) -> Batch:
    places = torch.tensor(index)
    images = torch.randn(ROWS, 64, generator=torch.Generator().manual_seed(0))[places]
    progress = None if epoch is None else Progress(epoch, 0)
    return Batch(images, places % 10, places, views=views, progress=progress)


def test_teachers_run_only_for_what_is_missing(tmp_path: Path) -> None:
    members, calls = cached(tmp_path, ("teacher.0", "teacher.1"))
    firsts = [member(batch_of(0, 5, 7), {})[member.name] for member in members]
    agains = [member(batch_of(7, 0), {})[member.name] for member in members]
    assert calls == [[3], [3]]
    for member, first, again in zip(members, firsts, agains, strict=True):
        plain = member.teacher(batch_of(0, 5, 7), {})[member.name]
        for outputs, rows in ((first, [0, 1, 2]), (again, [2, 0])):
            assert torch.equal(outputs.logits, plain.logits[rows].half().float())
            assert torch.equal(outputs.embedding, plain.embedding[rows].half().float())
        assert again.index.tolist() == [7, 0]
        member(batch_of(7, 1), {})
    assert [sizes[-1] for sizes in calls] == [2, 2]


def test_each_epoch_has_its_own_rows(tmp_path: Path) -> None:
    (member,), calls = cached(tmp_path)
    for epoch in (0, 1, 1):
        member(batch_of(0, 1, epoch=epoch), {})
    assert calls == [[2, 2]]


def test_views_run_in_one_forward_and_are_kept(tmp_path: Path) -> None:
    (member,), calls = cached(tmp_path, views=("twice",))
    views = {"twice": torch.randn(4, 64)}
    first = member(batch_of(3, 4, views=views), {})["teacher"]
    again = member(batch_of(3, 4, views=views), {})["teacher"]
    assert calls == [[6]]
    assert first.views["twice"].logits.shape == (4, 10)
    torch.testing.assert_close(first.views["twice"].logits, member.teacher.network(views["twice"]), atol=1e-3, rtol=0)
    assert torch.equal(first.views["twice"].logits, again.views["twice"].logits)
    swapped = member(batch_of(4, 3, views={"twice": views["twice"].roll(2, 0)}), {})["teacher"]
    assert torch.equal(swapped.views["twice"].logits, first.views["twice"].logits.roll(2, 0))


def test_evaluation_runs_the_teachers_themselves(tmp_path: Path) -> None:
    (member,), calls = cached(tmp_path)
    for _ in range(2):
        outputs = member(batch_of(0, 1, epoch=None), {})["teacher"]
        assert torch.equal(outputs.logits, member.teacher.network(batch_of(0, 1).inputs))
    assert [size for size in calls[0] if size == 2] == [2] * 4


def test_name_and_network_are_the_teachers(tmp_path: Path) -> None:
    (_, member), _ = cached(tmp_path, ("teacher.0", "teacher.1"))
    assert member.is_frozen
    assert member.names == ("teacher.1",)
    assert member.networks_of("teacher.1") == ((member.teacher.network, ""),)
