"""The line of a config error: where its key or its value was set last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kdlab.config.error_location import Origin, locate
from kdlab.config.located_yaml import Source, ends_with
from kdlab.errors import InputError

STUDY = """\
recipe:
  options: {model.size: 1, data.batch_size: 2, model.depth: 3}
networks:
  big: {class_path: a.Net, init_args: {hiden: 3, kind: big.Kind}}
  small: {class_path: a.Net, init_args: {width: ten, deep: 16}}
methods:
  early: {options: {model.loss: my_loss.Soft, model.size: 1}}
  KD:
    options:
      model.knowledge:
        soft: {loss: my_loss.Soft, weight: lots}
      model.temprature: 2
      model.size: 4
      model.teacher_fast: null
  other: {options: {model.widht: 1}}
"""
FIRST = "model:\n  init_args:\n    optimizer: {class_path: torch.optim.SDG, init_args: {lr: abc}}\n    depth: 5\n"
SECOND = "data:\n  class_path: kdlab.data.Digit\n\nmodel: {init_args: {optimizer: {init_args: {lr: abc}}}}\n"
Where = Callable[..., str]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    monkeypatch.chdir(tmp_path)
    for name, text in (("study.yaml", STUDY), ("first.yaml", FIRST), ("second.yaml", SECOND)):
        Path(name).write_text(text)
    source = Source(Path("study.yaml"))
    origins = [Origin(source, ("methods", "KD", "options")), Origin(source, ("recipe", "options"))]
    origins += [Origin(Source(Path(name))) for name in ("second.yaml", "first.yaml")]
    for role, network in (("teacher", "big"), ("student", "small")):
        origins.append(Origin(source, ("networks", network, "init_args"), f"model.{role}"))

    def located(key: str, value: str, *overrides: str) -> str:
        error = locate(
            InputError("It fails.", key=key, value=value), origins, overrides, Origin(source, ("methods", "KD"))
        )
        return str(error).removesuffix("It fails.")

    return located


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("temprature", "", "study.yaml, line 12: "),
        ("model.temprature", "", "study.yaml, line 12: "),
        ("size", "", "study.yaml, line 13: "),  # not batch_size
        ("depth", "", "study.yaml, line 2: "),  # options precede files
        ("widht", "", "study.yaml, line 8: "),  # that of another method is not in this config
        ("model.optimizer.lr", "abc", "second.yaml, line 4: "),  # the later file counts
        ("", "torch.optim.SDG", "first.yaml, line 3: "),
        ("", "kdlab.data.Digit", "second.yaml, line 2: "),
        ("model.knowledge.weight", "lots", "study.yaml, line 11: "),
        ("", "my_loss.Soft", "study.yaml, line 11: "),
        ("", "my_loss", "study.yaml, line 11: "),
        ("hiden", "", "study.yaml, line 4: "),
        ("model.student.width", "ten", "study.yaml, line 5: "),
        ("model.student", "ten", "study.yaml, line 5: "),
        ("model.student.deep", "16", "study.yaml, line 5: "),
        ("", "big.Kind", "study.yaml, line 4: "),
        ("", "None", "study.yaml, line 8: "),  # no text
        ("", "", "study.yaml, line 8: "),
        ("", "5", "study.yaml, line 8: "),  # no text: there are fives everywhere
    ],
)
def test_the_line_of_a_key_or_a_value(key: str, value: str, place: str, where: Where) -> None:
    assert where(key, value) == place
    assert where(key, value, "--trainer.max_epochs=3") == place


def test_an_option_of_the_command_line_precedes_all_files(where: Where) -> None:
    assert where("size", "", "--data.batch_size=3", "--empty=") == "study.yaml, line 13: "
    assert where("", "", "--empty=") == "study.yaml, line 8: "
    assert where("size", "", "--data.batch_size=3", "--data.size=3") == "On the command line, "
    assert where("", "torch.optim.SDG", "--model.optimizer=torch.optim.SDG") == "On the command line, "
    assert where("model.optimizer.lr", "x", "--model.optimizer.lr=x") == "On the command line, "


def test_a_key_ends_with_whole_parts() -> None:
    assert ends_with("a.b.c", "b.c")
    assert ends_with("a.init_args.b.init_args.c", "a.b.c")
    assert ends_with("b.c", "init_args.c")
    assert not ends_with("a.bb.c", "b.c")
    assert not ends_with("c", "b.c")
    assert not ends_with("a.b", "init_args")
