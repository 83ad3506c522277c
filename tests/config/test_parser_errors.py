"""Which part of an unknown key is the wrong one."""

from __future__ import annotations

import pytest

from kdlab.config.parser_errors import _wrong_part

KNOWN = ("model", "trainer", "knowledge", "loss", "weight", "temperature", "max_epochs")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("modle.knowledge.mine.wieght", "modle"),
        ("model.knowlege.mine.loss", "knowlege"),
        ("knowledge.mine.wieght", "wieght"),  # the name of a knowledge is free
        ("knowledge.mine.loss.temprature", "temprature"),
        ("trainer.temperature", "temperature"),  # right elsewhere
        ("wieght", "wieght"),
    ],
)
def test_the_first_part_that_is_no_name_is_wrong(key: str, wrong: str) -> None:
    assert _wrong_part(key, KNOWN) == wrong
