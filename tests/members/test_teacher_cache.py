"""The teacher cache: what it gives, when the teacher runs, and what its key depends on."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.members.row_store import Rows
from kdlab.members.teacher_cache import TeacherCache
from kdlab.outputs import Outputs

CPU, ROWS, CLASSES, WIDTH = torch.device("cpu"), 40, 7, 5
KINDS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"top_k": 3},
    {"dtype": "float32", "top_k": 6},
]


class Teachers:
    """Fixed outputs for every (view number, place), and how often they were asked."""

    def __init__(self, count: int = 1, shift: float = 0.0) -> None:
        numbers = torch.Generator().manual_seed(0)
        self.logits = torch.randn(count, 4, 3 * ROWS, CLASSES, generator=numbers) * 3 + shift
        self.embedding = torch.randn(count, 4, 3 * ROWS, WIDTH, generator=numbers)
        self.calls = 0

    def live(self, places: Tensor, view: int = 0) -> Callable[[], list[Outputs]]:
        def run() -> list[Outputs]:
            self.calls += 1
            both = zip(self.logits[:, view, places], self.embedding[:, view, places], strict=True)
            return [Outputs(logits, embedding=embedding) for logits, embedding in both]

        return run

    def look(self, cache: TeacherCache, places: Sequence[int], view: int = 0) -> list[Outputs]:
        at = torch.tensor(places)
        return cache.look([("", at, ROWS)], self.live(at, view), CPU)


def opened(folder: Path, embedding: bool = False, count: int = 1, **options: Any) -> TeacherCache:
    cache = TeacherCache(str(folder), **options)
    cache.open([{"teacher": number} for number in range(count)], {"data": "numbers"}, ROWS, embedding)
    return cache


def same(a: Sequence[Outputs], b: Sequence[Outputs]) -> bool:
    pairs = [(x.logits, y.logits) for x, y in zip(a, b, strict=True)]
    pairs += [(x.embedding, y.embedding) for x, y in zip(a, b, strict=True) if x.embedding is not None]
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("embedding", [False, True])
def test_fills_once_and_then_reads_the_same_bits(tmp_path: Path, options: dict[str, Any], embedding: bool) -> None:
    teachers, places = Teachers(2), [3, 1, 39, 0, 7]
    cache = opened(tmp_path, embedding, 2, **options)
    filled = teachers.look(cache, places)
    assert teachers.calls == 1
    for again in (cache, opened(tmp_path, embedding, 2, **options)):
        read = teachers.look(again, places)
        assert same(filled, read)
        assert all(each.logits.dtype == torch.float32 for each in read)
        assert all((each.embedding is not None) == embedding for each in read)
    assert teachers.calls == 1
    assert same(teachers.look(cache, places[::-1]), [each.map(lambda x: x.flip(0)) for each in filled])
    assert teachers.calls == 1


def test_float32_is_exactly_what_the_teacher_gave(tmp_path: Path) -> None:
    teachers, cache = Teachers(2), opened(tmp_path, True, 2, dtype="float32")
    for _ in range(2):
        for number, seen in enumerate(teachers.look(cache, [4, 2])):
            assert torch.equal(seen.logits, teachers.logits[number, 0, [4, 2]])
            assert seen.embedding is not None
            assert torch.equal(seen.embedding, teachers.embedding[number, 0, [4, 2]])


def test_float16_is_the_nearest(tmp_path: Path) -> None:
    teachers = Teachers()
    (seen,) = teachers.look(opened(tmp_path), range(ROWS))
    assert np.array_equal(seen.logits.numpy(), teachers.logits[0, 0, :ROWS].numpy().astype("float16").astype("float32"))


@pytest.mark.parametrize("classes", [CLASSES, 40000])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 8e-3)])
def test_top_k_against_a_slow_reference(tmp_path: Path, classes: int, batch: int, dtype: Any, near: float) -> None:
    logits = torch.randn(batch, classes) * 3
    logits[0, -1] = 12.0  # the last class among the highest
    cache, at = opened(tmp_path, dtype=dtype, top_k=2), torch.arange(batch)
    for _ in range(2):
        (seen,) = cache.look([("", at, ROWS)], lambda: [Outputs(logits)], CPU)
        for row, z in zip(seen.logits.double().numpy(), logits.double().numpy(), strict=True):
            highest = sorted(range(classes), key=lambda c, z=z: -z[c])[:2]  # type: ignore[misc]
            others = np.delete(z, highest)
            rest = np.log(np.exp(others).sum() / len(others))
            expected = np.full(classes, rest)
            expected[highest] = z[highest]
            assert np.abs(row - expected).max() < near
            p, q = np.exp(row) / np.exp(row).sum(), np.exp(z) / np.exp(z).sum()
            assert np.abs(p[highest] - q[highest]).max() < near


def test_runs_once_for_a_batch_with_anything_missing(tmp_path: Path) -> None:
    teachers, cache = Teachers(), opened(tmp_path, dtype="float32")
    teachers.look(cache, [0, 1])
    before, teachers = teachers, Teachers(shift=1.0)  # other numbers, as another GPU gives them
    (seen,) = teachers.look(cache, [1, 2])
    assert teachers.calls == 1
    assert torch.equal(seen.logits[0], before.logits[0, 0, 1])  # what is there stays
    assert torch.equal(seen.logits[1], teachers.logits[0, 0, 2])
    assert same(teachers.look(cache, [1, 2]), [seen])
    assert teachers.calls == 1


def test_a_place_named_twice_gives_what_is_kept(tmp_path: Path) -> None:
    cache, logits = opened(tmp_path, dtype="float32"), torch.randn(2, CLASSES)
    at = torch.tensor([4, 4])
    filled = cache.look([("", at, ROWS)], lambda: [Outputs(logits)], CPU)
    assert same(filled, cache.look([("", at, ROWS)], list, CPU))


def test_a_row_that_another_process_is_writing_is_what_the_teacher_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Rows.write

    def half(self: Rows, places: Any, values: Any) -> None:
        write(self, places, values)
        self._words[places[:1]] += np.uint64(1)

    monkeypatch.setattr(Rows, "write", half)
    teachers, cache = Teachers(), opened(tmp_path, dtype="float32")
    (seen,) = teachers.look(cache, [2, 3])
    assert torch.equal(seen.logits, teachers.logits[0, 0, [2, 3]])


@pytest.mark.parametrize("options", [{}, {"top_k": 2}])
def test_embeddings_are_added_to_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    teachers = Teachers()
    (logits,) = teachers.look(opened(tmp_path, **options), [1, 2])
    both, others = opened(tmp_path, True, **options), Teachers(shift=1.0)
    (seen,) = others.look(both, [1, 2])
    assert others.calls == 1
    assert torch.equal(seen.logits, logits.logits)
    assert seen.embedding is not None
    assert torch.equal(seen.embedding, others.embedding[0, 0, [1, 2]].half().float())
    assert same(others.look(opened(tmp_path, True, **options), [1, 2]), [seen])
    assert same(others.look(opened(tmp_path, **options), [1, 2]), [logits])
    assert others.calls == 1


def test_views_of_a_batch_have_files_of_their_own(tmp_path: Path) -> None:
    teachers, cache = Teachers(), opened(tmp_path, dtype="float32")
    index = torch.tensor([5, 0])
    crops = (index[:, None] * 3 + torch.arange(3)).flatten()
    parts, at = [("", index, ROWS), ("crops-logits-9/..", crops, 3 * ROWS)], torch.cat([index, crops])
    for _ in range(2):
        (seen,) = cache.look(parts, teachers.live(at), CPU)
        assert torch.equal(seen.logits, teachers.logits[0, 0, at])
    (seen,) = opened(tmp_path, dtype="float32").look(parts[1:], teachers.live(crops), CPU)
    assert torch.equal(seen.logits, teachers.logits[0, 0, crops])
    assert teachers.calls == 1
    assert len(os.listdir(next(tmp_path.iterdir()))) == 3  # key.json and one file a view


def test_every_epoch_has_a_view_unless_they_come_again(tmp_path: Path) -> None:
    teachers, every, two = Teachers(), opened(tmp_path), opened(tmp_path, views=2)
    for epoch in range(4):
        every.advance(epoch)
        (seen,) = teachers.look(every, [1], epoch)
        assert torch.equal(seen.logits, teachers.logits[0, epoch, [1]].half().float())
    assert teachers.calls == 4
    for epoch in range(4):
        two.advance(epoch)
        (seen,) = teachers.look(two, [1])
        assert torch.equal(seen.logits, teachers.logits[0, epoch % 2, [1]].half().float())
    assert teachers.calls == 4


def test_few_files_are_open_however_many_epochs(tmp_path: Path) -> None:
    teachers, cache = Teachers(2), opened(tmp_path, True, 2)
    before = len(os.listdir("/proc/self/fd"))
    for epoch in range(60):
        cache.advance(epoch)
        teachers.look(cache, [0])
        files = list(cache._stores[0]._files.values())
        cache.advance(epoch)
        teachers.look(cache, [1])
        assert all(x is y for x, y in zip(files, cache._stores[0]._files.values(), strict=True))
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_a_copy_uses_the_same_files(tmp_path: Path) -> None:
    teachers, cache = Teachers(), opened(tmp_path)
    teachers.look(cache, [0])
    for number, copied in enumerate((copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))), 1):
        assert same(teachers.look(copied, [number]), teachers.look(cache, [number]))
        assert teachers.calls == 1 + number


@pytest.mark.parametrize("options", KINDS)
def test_check_finds_other_numbers_with_a_right_checksum(tmp_path: Path, options: dict[str, Any]) -> None:
    teachers, cache = Teachers(), opened(tmp_path, True, check=2, **options)
    for calls in (1, 1, 2, 2, 3):  # one fills; of the four that read, the second and fourth are compared
        teachers.look(cache, [0, 1])
        assert teachers.calls == calls
    for kind in ("logits", "embedding"):
        shutil.rmtree(next(tmp_path.iterdir()))
        teachers = Teachers()
        cache = opened(tmp_path, True, check=1, **options)
        teachers.look(cache, [0, 1])
        values = getattr(teachers, kind)
        at = values[0, 0, 1].argmax()
        values[0, 0, 1, at] *= 1.004
        with pytest.raises(InputError, match=rf"cached {kind} .* differ by up to 0.0\d+ .* delete the folder"):
            teachers.look(cache, [0, 1])


def test_check_allows_what_the_dtype_does(tmp_path: Path) -> None:
    teachers = Teachers(shift=100.0)
    cache = opened(tmp_path, dtype="float32", check=1)
    teachers.look(cache, range(ROWS))
    spread = teachers.logits[0, 0, :ROWS].std()
    teachers.logits += 1e-4 * spread
    teachers.look(cache, range(ROWS))
    teachers.logits += 2e-4 * spread + 2e-4
    with pytest.raises(InputError, match="differ"):
        teachers.look(cache, range(ROWS))


@pytest.mark.parametrize(
    ("options", "seen", "message"),
    [
        ({}, Outputs(torch.zeros(2, 3, 4)), r"\(B, K\), not \(2, 3, 4\)"),
        ({}, Outputs(torch.zeros(2, 4)), "no embedding"),
        ({}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3, 4)), "no embedding"),
        ({"dtype": "float32"}, Outputs(torch.full((2, 4), torch.nan), embedding=torch.zeros(2, 3)), "not finite"),
        ({}, Outputs(torch.full((2, 4), 7e4), embedding=torch.zeros(2, 3)), "too large for float16"),
        ({"top_k": 2}, Outputs(torch.full((2, 4), torch.nan), embedding=torch.zeros(2, 3)), "not finite"),
        ({"top_k": 4}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3)), "below the 4 classes"),
        ({"top_k": 5}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3)), "below the 4 classes"),
    ],
)
def test_refuses_what_cannot_be_kept(tmp_path: Path, options: dict[str, Any], seen: Outputs, message: str) -> None:
    right = Outputs(torch.zeros(2, 9), embedding=torch.zeros(2, 3))
    cache = opened(tmp_path, True, 2, **options)
    with pytest.raises(InputError, match=message):
        cache.look([("", torch.arange(2), ROWS)], lambda: [right, seen], CPU)
    assert os.listdir(tmp_path) == []  # of the right teacher neither


def test_keeps_nothing_of_outputs_that_are_not_one_a_place(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        opened(tmp_path).look([("", torch.arange(2), ROWS)], lambda: [Outputs(torch.zeros(1, 4))], CPU)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"top_k": 0}, {"views": 0}, {"check": -1}])
def test_refuses_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        TeacherCache("x", **options)
