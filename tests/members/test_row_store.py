"""Rows on disk: right or absent, whatever happened to the process or the file."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from kdlab.errors import InputError
from kdlab.members import row_store as store
from kdlab.members.row_store import Form, Rows, _odd

ROWS, WIDTH = 3000, 33
ALL = np.arange(ROWS)
TRUE = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("float16")
OTHER = np.random.default_rng(1).normal(size=(ROWS, WIDTH)).astype("float16")
FORK = multiprocessing.get_context("fork")


def test_checksum_weights_are_splitmix64_made_odd() -> None:
    first = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # of Vigna's splitmix64.c from state 0
    assert _odd(3).tolist() == [number | 1 for number in first]


def test_a_checksum_is_the_weighted_sum_of_mixed_words(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows", 3, 3, "float64")
    words = np.random.default_rng(5).integers(0, 2**64, (3, 3), np.uint64)
    words[2] = 0
    rows.write(np.arange(3), words.view(np.float64))
    weights = [int(weight) for weight in _odd(3)]
    sums = [sum((w ^ (w >> 32)) * x for w, x in zip(row, weights, strict=True)) % 2**64 for row in words.tolist()]
    assert rows._sums.tolist() == [*sums[:2], 1]  # never 0, which marks a row that is absent


@pytest.mark.parametrize(
    ("width", "dtype", "k", "row"),
    [
        (32767, "float16", 3, 4 * 2 + 3 * 2),
        (32768, "float16", 3, 4 * 2 + 3 * 4),
        (10, "float32", 1, 2 * 4 + 2),
    ],
)
def test_a_row_of_the_highest_holds_numbers_and_classes(width: int, dtype: str, k: int, row: int) -> None:
    assert Form(width, dtype, k).row == (row, "uint8")
    assert Form(width, dtype).row == (width, dtype)


@pytest.mark.parametrize("bad", [-2, -1, 5, 6])
def test_classes_that_do_not_exist_are_refused(bad: int) -> None:
    form, cpu = Form(5, "float16", 2), torch.device("cpu")
    rows = form.encode(torch.eye(5))
    assert form.decode(rows, cpu).argmax(1).tolist() == [0, 1, 2, 3, 4]
    assert form.decode(rows[:0], cpu).shape == (0, 5)
    rows.view(np.int16)[1, -1] = bad
    with pytest.raises(InputError, match="classes that do not exist"):
        form.decode(rows, cpu)


def opened(folder: Path) -> Rows:
    return Rows(folder / "rows", ROWS, WIDTH, "float16")


def fill(folder: Path, values: npt.NDArray[np.float16], seed: int, rounds: int) -> None:
    rows, order = opened(folder), np.random.default_rng(seed)
    for _ in range(rounds):
        for places in np.split(order.permutation(ROWS), 30):
            rows.write(places, values[places])


@pytest.mark.parametrize(
    ("width", "dtype"), [(1, "float16"), (4, "float16"), (100, "float16"), (7, "float32"), (13, "uint8")]
)
def test_reads_what_was_written(tmp_path: Path, width: int, dtype: str) -> None:
    values = (np.random.default_rng(2).normal(size=(50, width)) * 40).astype(dtype)
    places = np.random.default_rng(3).permutation(80)[:50]
    rows = Rows(tmp_path / "rows", 80, width, dtype)
    rows.write(places, values)
    for each in (rows, Rows(tmp_path / "rows", 80, width, dtype)):
        read, present = each.read(places)
        assert present.all()
        assert read.dtype == dtype
        assert read.tobytes() == values.tobytes()
        absent = np.setdiff1d(np.arange(80), places)
        assert not each.read(absent)[1].any()
        assert each.count() == 50
    assert (tmp_path / "rows").stat().st_size == Rows.size(80, width, dtype)
    assert os.listdir(tmp_path) == ["rows"]


def test_a_row_of_zeros_is_there(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    rows.write(ALL[:1], np.zeros((1, WIDTH), "float16"))
    values, present = rows.read(ALL[:2])
    assert present.tolist() == [True, False]
    assert not values[0].any()


def test_reading_is_a_copy(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    rows.write(ALL, TRUE)
    values, _ = rows.read(ALL[:5])
    values[:] = 0
    assert (rows.read(ALL[:5])[0] == TRUE[:5]).all()


def test_of_a_place_named_twice_the_last_row_stays(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    rows.write(np.array([5, 5]), TRUE[:2])
    values, present = rows.read(np.array([5]))
    assert present.all()
    assert (values == TRUE[1]).all()


def test_any_flipped_bit_makes_a_row_absent(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows", 2, 4, "float16")
    rows.write(np.arange(2), TRUE[:2, :4])
    whole = bytearray((tmp_path / "rows").read_bytes())
    assert len(whole) == 2 * 8 + 2 * 8
    for bit in range(8 * len(whole)):
        whole[bit // 8] ^= 1 << bit % 8
        (tmp_path / "rows").write_bytes(whole)
        present = Rows(tmp_path / "rows", 2, 4, "float16").read(np.arange(2))[1]
        assert present.tolist() == [bit // 64 % 2 == 1, bit // 64 % 2 == 0]
        whole[bit // 8] ^= 1 << bit % 8


def test_rows_mixed_from_two_are_absent(tmp_path: Path) -> None:
    """As two writers leave them that differ by rounding: in each word either one's bits."""
    own, theirs = TRUE[:, :32].view(np.uint64), np.nextafter(TRUE, np.float16(9))[:, :32].copy().view(np.uint64)
    flips = TRUE[:, :32].copy()
    flips[:, 3::4] *= -1  # the highest bit of a word, which a plain weighted sum sees as the same for any weight
    for other in (theirs, flips.view(np.uint64)):
        rows = Rows(tmp_path / f"rows{id(other)}", ROWS, 32, "float16")
        rows.write(ALL, own.view("float16"))
        mixed = np.where(np.random.default_rng(4).random(own.shape) < 0.5, own, other)
        rows._words[:] = mixed
        assert (rows.read(ALL)[1] == (mixed == own).all(1)).all()


def test_a_row_without_its_checksum_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two writes: the values come first, so that a new row has none and an old one a wrong one."""
    rows = opened(tmp_path)
    rows.write(ALL[:1], OTHER[:1])

    def killed(self: Rows, words: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "_checksums", killed)
    with pytest.raises(KeyboardInterrupt):
        rows.write(ALL[:2], TRUE[:2])
    monkeypatch.undo()
    values, present = rows.read(ALL[:2])
    assert not present.any()
    assert (values == TRUE[:2]).all()


@pytest.mark.parametrize("bad", [-2, -1, ROWS, ROWS + 1])
def test_refuses_places_outside(tmp_path: Path, bad: int) -> None:
    rows = opened(tmp_path)
    with pytest.raises(InputError, match=f"has {ROWS} rows"):
        rows.read(np.array([0, bad]))
    with pytest.raises(InputError, match=f"has {ROWS} rows"):
        rows.fill(np.array([0, bad]), TRUE[:2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("form", [Form(WIDTH, "float16"), Form(WIDTH, "float32")])
def test_refuses_numbers_that_are_not_finite(form: Form, bad: float) -> None:
    values = torch.from_numpy(TRUE[:3].copy())
    values[1, 2] = bad
    with pytest.raises(InputError, match="not finite") as caught:
        form.encode(values)
    assert ("too large for float16" in str(caught.value)) == (form.dtype == "float16")


def test_nothing_at_no_places(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    rows.write(ALL[:0], TRUE[:0])
    values, present = rows.read(ALL[:0])
    assert values.shape == (0, WIDTH)
    assert present.shape == (0,)


@pytest.mark.parametrize("change", [1, -8])
def test_refuses_a_file_of_another_size(tmp_path: Path, change: int) -> None:
    opened(tmp_path)
    os.truncate(tmp_path / "rows", Rows.size(ROWS, WIDTH, "float16") + change)
    with pytest.raises(InputError, match="bytes, where 3000 rows of 33 float16 take"):
        opened(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(file: int, start: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="make room"):
        opened(tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_space_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        opened(tmp_path / name)
        assert (tmp_path / name / "rows").stat().st_blocks * 512 >= Rows.size(ROWS, WIDTH, "float16")
        monkeypatch.delattr(os, "posix_fallocate", raising=False)  # as on macOS


def test_a_file_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).write(ALL, TRUE)
    store._create(tmp_path / "rows", Rows.size(ROWS, WIDTH, "float16"))  # saw no file a moment ago
    assert opened(tmp_path).read(ALL)[1].all()
    assert os.listdir(tmp_path) == ["rows"]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose another folder"):
        opened(tmp_path / "none")


def test_two_processes_fill_at_once(tmp_path: Path) -> None:
    filling = [FORK.Process(target=fill, args=(tmp_path, TRUE, seed, 3)) for seed in range(3)]
    for each in filling:
        each.start()
    for each in filling:
        each.join()
        assert each.exitcode == 0
    values, present = opened(tmp_path).read(ALL)
    assert present.all()
    assert (values == TRUE).all()
    assert os.listdir(tmp_path) == ["rows"]


def test_two_processes_with_different_bits_are_never_mixed(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    filling = [FORK.Process(target=fill, args=(tmp_path, v, s, 40)) for s, v in enumerate((TRUE, OTHER))]
    for each in filling:
        each.start()
    seen = 0
    while any(each.is_alive() for each in filling):
        values, present = rows.read(ALL)
        whole = (values == TRUE).all(1) | (values == OTHER).all(1)
        assert whole[present].all()
        seen += int(present.sum())
    assert seen
    assert [each.exitcode for each in filling] == [0, 0]


def killed_while_filling(folder: Path, rounds: int) -> None:
    wait = random.Random(0)
    for number in range(rounds):
        folder.mkdir(exist_ok=True)
        filling = FORK.Process(target=fill, args=(folder, (TRUE, OTHER)[number % 2], number, 10**6))
        filling.start()
        time.sleep(wait.random() * 0.05)
        assert filling.pid is not None
        os.kill(filling.pid, signal.SIGKILL)
        filling.join()
        values, present = opened(folder).read(ALL)
        whole = (values == TRUE).all(1) | (values == OTHER).all(1)
        assert whole[present].all()
        if number % 5 == 4:  # at the creation too
            (folder / "rows").unlink()
    fill(folder, TRUE, 0, 1)
    values, present = opened(folder).read(ALL)
    assert present.all()
    assert (values == TRUE).all()


def test_a_killed_process_leaves_right_rows_only(tmp_path: Path) -> None:
    killed_while_filling(tmp_path / "few", 12)


@pytest.mark.nightly
def test_many_killed_processes_leave_right_rows_only(tmp_path: Path) -> None:
    killed_while_filling(tmp_path / "many", 400)
