"""Positions of sequences that count, and heads of attention."""

from __future__ import annotations

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses.positions import counted_rows, mask_of, mean_of_rows, relation, split_heads
from kdlab.outputs import Outputs
from tests.losses.slow import draw


def masked(mask: torch.Tensor | None) -> Outputs:
    return Outputs(torch.zeros(2, 2), mask=mask)


def test_rows_are_those_of_positions_that_count() -> None:
    states, mask = draw(2, 3, 4), torch.tensor([[1, 0, 1], [0, 1, 0]])
    (rows,) = counted_rows(masked(mask), states)
    assert torch.equal(rows, torch.stack([states[0, 0], states[0, 2], states[1, 1]]))
    (rows,) = counted_rows(masked(None), states)
    assert torch.equal(rows, states.reshape(6, 4))
    (rows,) = counted_rows(masked(mask), states[:, 0])  # one position a sample, which no mask leaves out
    assert torch.equal(rows, states[:, 0])


@pytest.mark.parametrize("shape", [(2,), (2, 2), (2, 4), (2, 3, 1)])
def test_a_mask_has_the_length_of_the_layers(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="layers have 3 positions"):
        mask_of(masked(torch.ones(shape)), 3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_mean_of_no_rows_is_0(count: int) -> None:
    assert mean_of_rows(torch.full((count,), 3.0)) == (3 if count else 0)


def test_heads_are_parts_of_the_width() -> None:
    states = draw(2, 3, 8)
    heads = split_heads(states, 2, "query")
    assert torch.equal(heads[:, 1], states[..., 4:])
    assert torch.equal(split_heads(heads, 2, "query"), heads)
    with pytest.raises(InputError, match="'query' is 8 wide, which 3 heads"):
        split_heads(states, 3, "query")


def test_relation_is_scaled_by_the_root_of_the_width() -> None:
    left, right = draw(1, 1, 2, 3, seed=1), draw(1, 1, 2, 3, seed=2)
    scores = (left @ right.mT / math.sqrt(3)).softmax(-1)
    assert torch.allclose(relation(left, right, None).exp(), scores)
    of_first = relation(left, right, torch.tensor([[True, False]]))[0, 0, 0].exp()
    assert of_first.tolist() == [1, 0]
