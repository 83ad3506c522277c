"""Old names of arguments."""

from __future__ import annotations

import inspect
import warnings

import jsonargparse
import pytest
from torch import nn

from kdlab.losses import CATKD


def test_old_name_sets_the_new_one_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="CATKD: the argument 'normalise' is deprecated; use 'normalize'"):
        assert CATKD(normalise=True).normalize
    assert list(inspect.signature(CATKD).parameters) == ["resolution", "normalize", "normalise"]


def test_new_name_gives_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CATKD(4, True).normalize
        assert not CATKD(normalize=False).normalize


@pytest.mark.parametrize("key", ["normalise", "normalize"])
@pytest.mark.parametrize("value", [True, False])
def test_class_path_configs_parse_either_name(key: str, value: bool) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    config = parser.parse_object({"loss": {"class_path": "kdlab.losses.CATKD", "init_args": {key: value}}})
    for parsed in (config, parser.parse_string(parser.dump(config))):
        assert parser.instantiate(parsed).loss.normalize is value


def test_class_path_configs_check_the_type_of_the_old_name() -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=nn.Module)
    with pytest.raises(jsonargparse.ArgumentError, match="normalise"):
        parser.parse_object({"loss": {"class_path": "kdlab.losses.CATKD", "init_args": {"normalise": "maybe"}}})
