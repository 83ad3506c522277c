"""Defaults and saved tensors of losses: a change of one changes results, or breaks checkpoints, of people."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from torch import nn

from kdlab import losses
from tests.losses.test_contract import sized

TABLE = Path(__file__).with_name("defaults.json")
LOSSES = {
    name: value
    for name in losses.__all__
    if inspect.isclass(value := getattr(losses, name)) and issubclass(value, nn.Module)
}


def defaults(kind: type[nn.Module]) -> dict[str, str]:
    parameters = inspect.signature(kind).parameters.values()
    return {one.name: repr(one.default) for one in parameters if one.default is not one.empty}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_defaults_are_those_of_the_table(name: str) -> None:
    """The table was read against the papers' constants in the docstrings; change both, with a line in CHANGELOG.md."""
    assert defaults(LOSSES[name]) == json.loads(TABLE.read_text())[name]


STATES = Path(__file__).with_name("states.json")


def shapes(kind: type[nn.Module]) -> dict[str, list[int]]:
    state = sized(kind).state_dict()
    left_out = ("_extra_state", "running_mean", "running_var", "num_batches_tracked")
    return {name: list(tensor.shape) for name, tensor in state.items() if not name.endswith(left_out)}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_saved_tensors_are_those_of_the_table(name: str) -> None:
    """Widths, kernels and biases of trained parts are the paper's, and checkpoints of users hold them."""
    assert shapes(LOSSES[name]) == json.loads(STATES.read_text()).get(name, {})
