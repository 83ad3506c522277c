"""Defaults of losses are part of what a recipe means: a change of one changes results of people who set none."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from torch import nn

from kdlab import losses

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
