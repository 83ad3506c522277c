"""Drawing samples of other and of the same class, and the memory of vectors."""

import itertools
import math
from collections import Counter

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses.relation.memory_bank import MemoryBank, draw_other_classes, draw_same_class
from tests.losses.slow import draw

LABELS = torch.tensor([0, 1, 1, 2, 0, 2, 2, 1, -1, 3])


def chi_square(counts, possible):
    """Above 5 standard deviations of its distribution if not uniform."""
    expected = sum(counts.values()) / len(possible)
    value = sum((counts[each] - expected) ** 2 / expected for each in possible)
    return (value - (len(possible) - 1)) / math.sqrt(2 * (len(possible) - 1))


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("own", [1, 3])
def test_others_are_of_other_classes_and_differ(count, own):
    torch.manual_seed(0)
    drawn = draw_other_classes(LABELS, torch.full((2000,), own), count, 3).tolist()
    others = {i for i, label in enumerate(LABELS.tolist()) if label != own}
    assert all(len(set(row)) == count and set(row) <= others for row in drawn)
    assert set(itertools.chain(*drawn)) == others


@pytest.mark.full
@pytest.mark.parametrize(("own", "count"), [(1, 3), (3, 2)])
def test_every_set_of_others_is_as_probable(own, count):
    """Over many calls: the rows of one share a permutation."""
    torch.manual_seed(0)
    others = [i for i, label in enumerate(LABELS.tolist()) if label != own]
    possible = list(itertools.combinations(others, count))
    for row in (0, 1):  # row 0 and row 1 of one call are of different classes
        kinds = torch.tensor([own, 2] if row == 0 else [2, own])
        drawn = [draw_other_classes(LABELS, kinds, count, 3)[row].sort().values for _ in range(3000)]
        assert chi_square(Counter(map(tuple, torch.stack(drawn).tolist())), possible) < 5


@pytest.mark.parametrize("own", [1, 3])
def test_more_than_there_are_come_with_replacement(own):
    torch.manual_seed(0)
    drawn = draw_other_classes(LABELS, torch.tensor([own, 0]), 30000, 3)
    assert drawn.shape == (2, 30000)
    others = [i for i, label in enumerate(LABELS.tolist()) if label != own]
    counts = Counter(drawn[0].tolist())
    assert counts.keys() == set(others)
    assert chi_square(counts, others) < 5


def test_one_of_the_same_class():
    torch.manual_seed(0)
    drawn = draw_same_class(LABELS, torch.tensor([2, 3] * 10000))
    assert set(drawn[1::2].tolist()) == {9}
    assert chi_square(Counter(drawn[::2].tolist()), [3, 5, 6]) < 5


def test_one_class_alone_has_no_others():
    with pytest.raises(InputError, match="of one class"):
        draw_other_classes(torch.zeros(4).long(), torch.zeros(2).long(), 2, 4)


def unit(row):
    return row / row.square().sum().sqrt()


def test_the_memory_moves_towards_new_vectors():
    torch.manual_seed(0)
    memory = MemoryBank(6, 3).double()
    old = {side: getattr(memory, side).clone() for side in ("student", "teacher")}
    new = {"student": draw(3, 3, seed=1), "teacher": draw(3, 3, seed=2)}
    memory.update(torch.tensor([4, 1, 4]), torch.tensor([7, 8, 9]), **new, momentum=0.3)
    for side, before in old.items():
        after = getattr(memory, side)
        for position, row in ((0, 4), (1, 1)):  # sample 4 comes twice: the first vector counts
            assert torch.allclose(after[row], unit(0.3 * before[row] + 0.7 * new[side][position]), atol=1e-14)
        assert torch.equal(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert memory.labels.tolist() == [-1, 8, -1, -1, 7, -1]


def test_the_first_of_many_copies_counts():
    memory, index = MemoryBank(5, 2), torch.tensor([3, 0, 3, 2, 0, 0, 3])
    memory.update(index, torch.arange(7), draw(7, 2).float(), draw(7, 2).float(), 0.5)
    assert memory.labels.tolist() == [1, -1, 3, 0, -1]


def test_the_memory_starts_uniform():
    torch.manual_seed(0)
    start, bound = MemoryBank(5000, 12).teacher, math.sqrt(3 / 12)
    assert start.abs().max() <= bound
    assert start.square().mean().item() == pytest.approx(1 / 12, rel=0.02)
    assert start.mean().abs() < 0.01


def test_vectors_of_any_length_are_remembered_with_length_1():
    memory, new = MemoryBank(4, 3).double(), 1e-6 * draw(2, 3)
    memory.update(torch.tensor([2, 0]), torch.tensor([1, 1]), new, new, momentum=0.0)
    assert torch.allclose(memory.student[2], unit(new[0]), atol=1e-14)


def test_a_memory_in_half_precision_rounds_only_what_it_writes():
    memory, new = MemoryBank(4, 3).bfloat16(), draw(4, 3).float()
    before = memory.student.float()
    memory.update(torch.arange(4), torch.arange(4), new, new, momentum=0.3)
    expected = torch.stack([unit(0.3 * old + 0.7 * row) for old, row in zip(before, new, strict=True)])
    assert torch.equal(memory.student, expected.bfloat16())
