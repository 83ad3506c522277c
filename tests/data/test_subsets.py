"""Stratified subsets: right sizes, right shares, disjoint, fixed by the seed."""

from __future__ import annotations

import pytest
import torch

from kdlab.data.subsets import stratified, training_rows
from kdlab.errors import InputError

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("count", "shares"), [(10, [5, 3, 2]), (0, [0, 0, 0]), (100, [50, 30, 20]), (3, [1, 1, 1])])
def test_shares(count: int, shares: list[int]) -> None:
    rows = stratified(LABELS, count, seed=0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert torch.bincount(LABELS[rows], minlength=3).tolist() == shares


def test_every_count_is_met_within_one_of_its_share() -> None:
    for count in range(101):
        got = torch.bincount(LABELS[stratified(LABELS, count, seed=1)], minlength=3)
        assert int(got.sum()) == count
        assert ((got - torch.tensor([0.5, 0.3, 0.2]) * count).abs() < 1).all()


def test_the_seed_fixes_the_draw() -> None:
    assert torch.equal(stratified(LABELS, 30, 5), stratified(LABELS, 30, 5))
    assert not torch.equal(stratified(LABELS, 30, 5), stratified(LABELS, 30, 6))


def test_training_and_held_out_are_disjoint() -> None:
    rows, held_out = training_rows(LABELS, validation=20, seed=2)
    assert torch.bincount(LABELS[held_out]).tolist() == [10, 6, 4]
    assert sorted(rows.tolist() + held_out.tolist()) == list(range(100))


def test_omitted_classes_stay_in_validation_only() -> None:
    rows, held_out = training_rows(LABELS, validation=20, train_size=30, omit=[1], seed=2)
    assert torch.bincount(LABELS[rows], minlength=3).tolist() == [21, 0, 9]  # of 40 and 16 left
    assert torch.bincount(LABELS[held_out]).tolist() == [10, 6, 4]
    assert not set(rows.tolist()) & set(held_out.tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 100}, "validation=100 leaves no training images: the training set has 100"),
        ({"validation": -1}, "validation=-1"),
        ({"train_size": 101}, "train_size=101 must be from 1 to the 100"),
        ({"train_size": 0}, "train_size=0"),
        ({"validation": 20, "train_size": 81}, "train_size=81 must be from 1 to the 80"),
        ({"omit": [3, 1]}, r"omit names the classes \[3\]"),
        ({"omit": [0, 1, 2]}, "omit removes every training image"),
    ],
)
def test_impossible_subsets_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_rows(LABELS, **options)  # type: ignore[arg-type]
