"""The teacher cache: what it gives, when the teacher runs, and what its key depends on."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.members import row_store, teacher_cache
from kdlab.members.filling import Filling
from kdlab.members.row_store import Rows
from kdlab.members.teacher_cache import Store, TeacherCache, _amount, plan_disk
from kdlab.outputs import Outputs

CPU, ROWS, CLASSES, WIDTH, CROPS = torch.device("cpu"), 40, 7, 5, "crops-logits-9/.."
KINDS: list[dict[str, Any]] = [
    {"dtype": "float32"},
    {"dtype": "float16"},
    {"top_k": 3},
    {"dtype": "float32", "top_k": 6},
]


class Teacher:
    """Fixed outputs for every (view number, place), and how often it was called."""

    def __init__(self, seed: int = 0, shift: float = 0.0) -> None:
        numbers = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(4, 3 * ROWS, CLASSES, generator=numbers) * 3 + shift
        self.embedding = torch.randn(4, 3 * ROWS, WIDTH, generator=numbers)
        self.calls = 0

    def live(self, places: Tensor, view: int = 0) -> Callable[[], Outputs]:
        def run() -> Outputs:
            self.calls += 1
            return Outputs(self.logits[view, places], embedding=self.embedding[view, places])

        return run

    def look(self, store: Store, places: Sequence[int], epoch: int = 0, view: int | None = None) -> Outputs:
        at = torch.tensor(places)
        return store.look(epoch, at, self.live(at, epoch if view is None else view), CPU)


def like(classes: int = CLASSES) -> Outputs:
    return Outputs(torch.zeros(1, classes), embedding=torch.zeros(1, WIDTH))


def opened(
    folder: Path,
    embedding: bool = False,
    name: str = "0",
    seen: Outputs | None = None,
    crops: int = 0,
    **options: Any,
) -> Store:
    cache = TeacherCache(str(folder), **options)
    forms = cache.forms(seen or like(), embedding)
    return Store(
        cache, {"teacher": name, "data": "numbers"}, {"": ROWS} | ({CROPS: crops * ROWS} if crops else {}), forms
    )


def same(a: Outputs, b: Outputs) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("embedding", [False, True])
def test_fills_once_and_then_reads_the_same_bits(tmp_path: Path, options: dict[str, Any], embedding: bool) -> None:
    places = [3, 1, 39, 0, 7]
    for name in ("0", "1"):
        teacher, store = Teacher(int(name)), opened(tmp_path, embedding, name, **options)
        filled = teacher.look(store, places)
        assert teacher.calls == 1
        for again in (store, opened(tmp_path, embedding, name, **options)):
            read = teacher.look(again, places)
            assert same(filled, read)
            assert read.logits.dtype == torch.float32
            assert (read.embedding is not None) == embedding
        assert teacher.calls == 1
        assert same(teacher.look(store, places[::-1]), filled.map(lambda x: x.flip(0)))
        assert teacher.calls == 1


def test_float32_is_exactly_what_the_teacher_gave(tmp_path: Path) -> None:
    teacher, store = Teacher(), opened(tmp_path, True, dtype="float32")
    for _ in range(2):
        seen = teacher.look(store, [4, 2])
        assert torch.equal(seen.logits, teacher.logits[0, [4, 2]])
        assert seen.embedding is not None
        assert torch.equal(seen.embedding, teacher.embedding[0, [4, 2]])


def test_float16_is_the_nearest(tmp_path: Path) -> None:
    teacher = Teacher()
    seen = teacher.look(opened(tmp_path), range(ROWS))
    assert np.array_equal(seen.logits.numpy(), teacher.logits[0, :ROWS].numpy().astype("float16").astype("float32"))


@pytest.mark.parametrize("classes", [CLASSES, 40000])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float16", 8e-3)])
def test_top_k_against_a_slow_reference(tmp_path: Path, classes: int, batch: int, dtype: Any, near: float) -> None:
    logits = torch.randn(batch, classes) * 3
    logits[0, -1] = 12.0  # the last class among the highest
    store, at = opened(tmp_path, seen=like(classes), dtype=dtype, top_k=2), torch.arange(batch)
    for _ in range(2):
        seen = store.look(0, at, lambda: Outputs(logits), CPU)
        for row, z in zip(seen.logits.double().numpy(), logits.double().numpy(), strict=True):
            highest = np.argsort(-z)[:2]
            others = np.delete(z, highest)
            rest = np.log(np.exp(others).sum() / len(others))
            expected = np.full(classes, rest)
            expected[highest] = z[highest]
            assert np.abs(row - expected).max() < near
            p, q = np.exp(row) / np.exp(row).sum(), np.exp(z) / np.exp(z).sum()
            assert np.abs(p[highest] - q[highest]).max() < near


def test_runs_once_for_a_batch_with_anything_missing(tmp_path: Path) -> None:
    teacher, store = Teacher(), opened(tmp_path, dtype="float32")
    teacher.look(store, [0, 1])
    before, teacher = teacher, Teacher(shift=1.0)  # other numbers, as another GPU gives them
    seen = teacher.look(store, [1, 2])
    assert teacher.calls == 1
    assert torch.equal(seen.logits[0], before.logits[0, 1])  # what is there stays
    assert torch.equal(seen.logits[1], teacher.logits[0, 2])
    assert same(teacher.look(store, [1, 2]), seen)
    assert teacher.calls == 1


def test_a_place_named_twice_gives_what_is_kept(tmp_path: Path) -> None:
    store, logits = opened(tmp_path, dtype="float32"), torch.randn(2, CLASSES)
    at = torch.tensor([4, 4])
    filled = store.look(0, at, lambda: Outputs(logits), CPU)
    assert same(filled, store.look(0, at, lambda: pytest.fail("it is there"), CPU))


def test_a_row_that_another_process_is_writing_is_what_the_teacher_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Rows.write

    def half(self: Rows, places: Any, values: Any) -> None:
        write(self, places, values)
        self._words[places[:1]] += np.uint64(1)

    monkeypatch.setattr(Rows, "write", half)
    teacher, store = Teacher(), opened(tmp_path, dtype="float32")
    seen = teacher.look(store, [2, 3])
    assert torch.equal(seen.logits, teacher.logits[0, [2, 3]])


@pytest.mark.parametrize("options", [{}, {"top_k": 2}])
def test_embeddings_are_added_to_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    teacher = Teacher()
    logits = teacher.look(opened(tmp_path, **options), [1, 2])
    both, others = opened(tmp_path, True, **options), Teacher(shift=1.0)
    seen = others.look(both, [1, 2])
    assert others.calls == 1
    assert torch.equal(seen.logits, logits.logits)
    assert seen.embedding is not None
    assert torch.equal(seen.embedding, others.embedding[0, [1, 2]].half().float())
    assert same(others.look(opened(tmp_path, True, **options), [1, 2]), seen)
    assert same(others.look(opened(tmp_path, **options), [1, 2]), logits)
    assert others.calls == 1


def test_views_of_a_batch_have_files_of_their_own(tmp_path: Path) -> None:
    teacher, store = Teacher(), opened(tmp_path, dtype="float32", crops=3)
    index = torch.tensor([5, 0])
    at = torch.cat([index, (index[:, None] * 3 + torch.arange(3)).flatten()])
    for _ in range(2):
        seen = store.look(0, index, teacher.live(at), CPU)
        assert torch.equal(seen.logits, teacher.logits[0, at])
    seen = opened(tmp_path, dtype="float32").look(0, index, teacher.live(index), CPU)
    assert torch.equal(seen.logits, teacher.logits[0, index])
    assert teacher.calls == 1
    assert len(os.listdir(next(tmp_path.iterdir()))) == 4  # key.json, .filling and one file a view


def test_every_epoch_has_a_view_unless_they_come_again(tmp_path: Path) -> None:
    teacher, every, two = Teacher(), opened(tmp_path), opened(tmp_path, views=2)
    for epoch in range(4):
        seen = teacher.look(every, [1], epoch)
        assert torch.equal(seen.logits, teacher.logits[epoch, [1]].half().float())
    assert teacher.calls == 4
    for epoch in range(4):
        seen = teacher.look(two, [1], epoch)
        assert torch.equal(seen.logits, teacher.logits[epoch % 2, [1]].half().float())
    assert teacher.calls == 4


def test_few_files_are_open_however_many_epochs(tmp_path: Path) -> None:
    teacher, store = Teacher(), opened(tmp_path, True)
    before = len(os.listdir("/proc/self/fd"))
    for epoch in range(60):
        teacher.look(store, [0], epoch, 0)
        files = store._files
        teacher.look(store, [1], epoch, 0)
        assert store._files is files
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # two files, and the lock


def test_a_copy_uses_the_same_files(tmp_path: Path) -> None:
    teacher, store = Teacher(), opened(tmp_path)
    teacher.look(store, [0])
    for number, copied in enumerate((copy.deepcopy(store), pickle.loads(pickle.dumps(store))), 1):
        assert same(teacher.look(copied, [number]), teacher.look(store, [number]))
        assert teacher.calls == 1 + number


@pytest.mark.parametrize("options", KINDS)
def test_check_finds_other_numbers_with_a_right_checksum(tmp_path: Path, options: dict[str, Any]) -> None:
    teacher, store = Teacher(), opened(tmp_path, True, check=2, **options)
    for calls in (1, 1, 2, 2, 3):  # one fills; of the four that read, the second and fourth are compared
        teacher.look(store, [0, 1])
        assert teacher.calls == calls
    for kind in ("logits", "embedding"):
        shutil.rmtree(next(tmp_path.iterdir()))
        teacher = Teacher()
        store = opened(tmp_path, True, check=1, **options)
        teacher.look(store, [0, 1])
        values = getattr(teacher, kind)
        at = values[0, 1].argmax()
        values[0, 1, at] *= 1.004
        with pytest.raises(InputError, match=rf"cached {kind} .* differ by up to 0.0\d+ .* delete the folder"):
            teacher.look(store, [0, 1])


def test_check_allows_what_the_dtype_does(tmp_path: Path) -> None:
    teacher = Teacher(shift=100.0)
    store = opened(tmp_path, dtype="float32", check=1)
    teacher.look(store, range(ROWS))
    spread = teacher.logits[0, :ROWS].std()
    teacher.logits += 1e-4 * spread
    teacher.look(store, range(ROWS))
    teacher.logits += 2e-4 * spread + 2e-4
    with pytest.raises(InputError, match="differ"):
        teacher.look(store, range(ROWS))


@pytest.mark.parametrize(
    ("options", "seen", "message"),
    [
        ({}, Outputs(torch.zeros(2, 3, 4)), r"\(B, K\), not \(2, 3, 4\)"),
        ({}, Outputs(torch.zeros(2, 4)), "no embedding"),
        ({}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3, 4)), "no embedding"),
        ({"top_k": 4}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3)), "below the 4 classes"),
        ({"top_k": 5}, Outputs(torch.zeros(2, 4), embedding=torch.zeros(2, 3)), "below the 4 classes"),
    ],
)
def test_refuses_what_has_no_form(options: dict[str, Any], seen: Outputs, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TeacherCache("x", **options).forms(seen, embedding=True)


@pytest.mark.parametrize(
    ("options", "logits", "embedding", "message"),
    [
        ({"dtype": "float32"}, torch.nan, 0.0, "not finite"),
        ({"dtype": "float32"}, 0.0, torch.inf, "not finite"),
        ({}, 7e4, 0.0, "too large for float16"),
        ({"top_k": 2}, torch.nan, 0.0, "not finite"),
        ({"top_k": 2}, 0.0, -torch.inf, "not finite"),
    ],
)
def test_refuses_what_cannot_be_kept(
    tmp_path: Path, options: dict[str, Any], logits: float, embedding: float, message: str
) -> None:
    seen = Outputs(torch.full((2, CLASSES), logits), embedding=torch.full((2, WIDTH), embedding))
    with pytest.raises(InputError, match=message):
        opened(tmp_path, True, **options).look(0, torch.arange(2), lambda: seen, CPU)
    assert os.listdir(tmp_path) == []  # of the right kind neither


def test_keeps_nothing_of_outputs_that_are_not_one_a_place(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        opened(tmp_path).look(0, torch.arange(2), lambda: Outputs(torch.zeros(1, CLASSES)), CPU)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("options", [{"dtype": "bfloat16"}, {"top_k": 0}, {"views": 0}, {"check": -1}])
def test_refuses_arguments_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        TeacherCache("x", **options)


def test_least_arguments_are_taken() -> None:
    TeacherCache("x", top_k=1, views=1, check=0)


@pytest.mark.parametrize("factor", [0.97, 1.03, -0.97, -1.03])
@pytest.mark.parametrize(("options", "size"), [({"dtype": "float32"}, 1.0), ({}, 1.0), ({"top_k": 2}, 1.0), ({}, 0.0)])
def test_check_allows_a_part_of_the_deviation(
    tmp_path: Path, options: dict[str, Any], size: float, factor: float
) -> None:
    """1e-4 of it, 1e-6 of the largest, and what float16 rounds; the logits are numbers of float16."""
    logits = size * torch.tensor([[64.0, 8.0, -2.0], [8.5, -32.0, 0.5]], dtype=torch.float64)
    allowed = 1e-4 * float(logits.std(correction=0)) + 1e-6 * float(logits.abs().max())
    if "dtype" not in options:
        allowed += 2**-10 * float(logits[0, 0]) + 2**-24
    store, at, changed = opened(tmp_path, seen=like(3), check=1, **options), torch.arange(2), logits.clone()
    store.look(0, at, lambda: Outputs(logits), CPU)
    changed[0, 0] += factor * allowed
    if abs(factor) < 1:
        store.look(0, at, lambda: Outputs(changed), CPU)
    else:
        with pytest.raises(InputError, match="differ"):
            store.look(0, at, lambda: Outputs(changed), CPU)


def test_folder_file_and_key_have_their_names(tmp_path: Path) -> None:
    """Another name would leave all that was cached unused, without a word."""
    store = opened(tmp_path, crops=2, top_k=3)
    key = {"format": 1, "teacher": "0", "data": "numbers", "rows": ROWS, "dtype": "float16", "top_k": 3}
    text = json.dumps(key, sort_keys=True, separators=(",", ":"))
    assert store.folder == tmp_path / hashlib.sha256(text.encode()).hexdigest()[:32]
    assert store.key == json.dumps(key, sort_keys=True, indent=1) + "\n"
    assert store.path(3, "", "logits") == store.folder / "00003--logits-7"
    assert store.path(3, "a/b", "logits") == store.folder / "00003-a%2Fb-logits-7"


@pytest.mark.parametrize(("free", "fits"), [(0, True), (-1, False)])
def test_a_disk_of_just_that_size_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, fits: bool
) -> None:
    store = opened(tmp_path, views=3)
    size = 3 * sum(store.sizes(0).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size + free))
    if fits:
        assert plan_disk([store], 7) == size
    else:
        with pytest.raises(InputError, match="lower views"):
            plan_disk([store], 7)


def test_amounts_are_in_gb_from_1_gb_on() -> None:
    assert [_amount(size) for size in (10**6, 999 * 10**6, 10**9)] == ["1.0 MB", "999.0 MB", "1.0 GB"]


def test_a_shared_cache_keeps_the_embedding_for_others(tmp_path: Path) -> None:
    teacher = Teacher()
    seen = teacher.look(opened(tmp_path, dtype="float32", shared=True), [4, 2])  # a method that reads logits alone
    assert seen.embedding is not None
    read = teacher.look(opened(tmp_path, embedding=True, dtype="float32"), [4, 2])
    assert read.embedding is not None
    assert torch.equal(read.embedding, teacher.embedding[0, [4, 2]])
    assert teacher.calls == 1


def test_a_shared_cache_of_a_teacher_without_embedding_has_logits(tmp_path: Path) -> None:
    store = opened(tmp_path, dtype="float32", shared=True, seen=Outputs(torch.zeros(1, CLASSES)))
    assert [*store.forms] == ["logits"]


def test_a_shared_cache_has_no_views(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no views"):
        TeacherCache(str(tmp_path), views=2, shared=True)


def test_another_machine_reads_and_does_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Teacher(), Teacher()
    here, there = opened(tmp_path), opened(tmp_path)
    first.look(here, [1, 2])
    monkeypatch.setattr(platform, "node", lambda: "another machine")
    seen = second.look(there, [2, 3])
    assert torch.equal(seen.logits, second.logits[0, [2, 3]].half().float()), "rounded as it would be if it were stored"
    assert second.calls == 1
    second.look(there, [1, 2])
    assert second.calls == 1, "it reads what the first machine wrote"
    first.look(here, [3])
    assert first.calls == 2, "the second did not write row 3"


def test_other_processes_of_the_machine_write_too(tmp_path: Path) -> None:
    first, second = Teacher(), Teacher()
    first.look(opened(tmp_path), [1])
    store = opened(tmp_path)
    second.look(store, [2])
    second.look(store, [1, 2])
    assert second.calls == 1


def test_a_machine_may_fill_when_the_other_has_ended(tmp_path: Path) -> None:
    code = (
        "import platform, sys; from pathlib import Path; from kdlab.members.filling import Filling\n"
        "platform.node = lambda: 'another machine'\n"
        "filling = Filling(Path(sys.argv[1]))\nprint(filling.granted(), flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        assert not Filling(tmp_path).granted()
        other.kill()  # the lock ends with its process
    filling = Filling(tmp_path)
    assert filling.granted()
    assert filling.path.read_text() == platform.node()
    assert pickle.loads(pickle.dumps(filling)).path == filling.path


def test_files_of_this_view_and_the_next_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Path]] = []
    monkeypatch.setattr(teacher_cache, "prefetch", lambda paths: seen.append(list(paths)))
    teacher, store = Teacher(), opened(tmp_path, views=2)
    for epoch in (0, 0, 1):
        teacher.look(store, [1], epoch)
    names = [[path.name.partition("-")[0] for path in paths] for paths in seen]
    assert names == [["00000", "00001"], ["00001", "00000"]]
    assert {path.parent for paths in seen for path in paths} == {store.folder}


def test_top_k_states_its_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits = torch.tensor([[4.0, 2.0, 1.0, 0.0], [1.0, 5.0, -1.0, 0.5]])
    p = torch.softmax(logits.double(), 1)
    q = p.clone()
    for row, rest in ((0, [2, 3]), (1, [2, 3])):  # two are kept, the others share what is left
        q[row, rest] = p[row, rest].mean()
    expected = float((p * (p / q).log()).sum(1).mean())
    assert row_store.Form(4, "float32", 2).error(logits, 1.0) == pytest.approx(expected, rel=1e-4)
    with caplog.at_level("INFO", logger="kdlab.teaching"):
        TeacherCache(str(tmp_path), "float32", top_k=2).forms(Outputs(logits), embedding=False)
    assert f"top_k=2 of 4 logits: mean KL to all of them {expected:.2g} at temperature 1" in caplog.text
