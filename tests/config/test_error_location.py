"""Whose line it is: the key or the value that a parser complains of, where it was said last."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.config.error_location import blamed
from kdlab.config.located_yaml import Source, ends_with
from kdlab.errors import InputError
from kdlab.studies.study import Network, Part

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


@pytest.fixture
def blame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)
    for name, text in (("study.yaml", STUDY), ("first.yaml", FIRST), ("second.yaml", SECOND)):
        Path(name).write_text(text)
    source = Source(Path("study.yaml"))
    configs = (Path("first.yaml"), Path("second.yaml"))
    parts = [Part(("recipe",), configs), Part(("methods", "KD"))]
    networks = {f"model.{role}": Network(name, {}, {}) for role, name in (("teacher", "big"), ("student", "small"))}

    def where(said: str, *overrides: str) -> str:
        error = blamed(said, source, parts, networks, overrides, ("methods", "KD"))
        assert isinstance(error, InputError)
        assert str(error).endswith(said)
        return str(error).removesuffix(said)

    return where


@pytest.mark.parametrize(
    ("said", "place"),
    [
        ("the config has the unknown key 'temprature' (did you mean 'temperature'?).", "study.yaml, line 12: "),
        ("the config has the unknown key 'model.temprature'.", "study.yaml, line 12: "),
        ("the config has the unknown key 'size'.", "study.yaml, line 13: "),  # not batch_size
        ("the config has the unknown key 'depth'.", "study.yaml, line 2: "),  # options go over files
        ("the config has the unknown key 'widht'.", "study.yaml, line 8: "),  # another method's is no concern of this
        ("model.optimizer.lr: expected a number, not abc.", "second.yaml, line 4: "),  # the later file counts
        ("torch.optim has no 'SDG' (did you mean 'SGD'?).", "first.yaml, line 3: "),
        ("kdlab.data has no 'Digit' (did you mean 'Digits'?).", "second.yaml, line 2: "),
        ("model.knowledge.weight: expected a number, not lots.", "study.yaml, line 11: "),
        ("my_loss has no 'Soft'.", "study.yaml, line 11: "),
        ("model: there is no module 'my_loss'.", "study.yaml, line 11: "),
        ("the config has the unknown key 'hiden'.", "study.yaml, line 4: "),
        ("model.student.width: expected a whole number, not ten.", "study.yaml, line 5: "),
        ("model.student: expected a whole number, not ten.", "study.yaml, line 5: "),
        ("model.student.deep: expected a list, not 16.", "study.yaml, line 5: "),
        ("big has no 'Kind'.", "study.yaml, line 4: "),
        ("expected a number, not None.", "study.yaml, line 8: "),  # no text, and there may be many
        ("something is wrong.", "study.yaml, line 8: "),
        ("it fails at model.size: no more is known.", "study.yaml, line 8: "),
        ("expected a whole number, not 5.", "study.yaml, line 8: "),  # there are fives everywhere
    ],
)
def test_the_line_of_what_is_wrong(said: str, place: str, blame: object) -> None:
    assert callable(blame)
    assert blame(said) == place
    assert blame(said, "--trainer.max_epochs=3") == place


def test_the_command_line_is_no_file(blame: object) -> None:
    assert callable(blame)
    said = "the config has the unknown key 'size'."
    assert blame(said, "--data.batch_size=3", "--empty=") == "study.yaml, line 13: "
    assert blame("something is wrong.", "--empty=") == "study.yaml, line 8: "
    assert blame(said, "--data.batch_size=3", "--data.size=3") == "On the command line, "
    assert blame("torch.optim has no 'SDG'.", "--model.optimizer=torch.optim.SDG") == "On the command line, "
    assert blame("model.optimizer.lr: expected a number, not x.", "--model.optimizer.lr=x") == "On the command line, "


def test_a_key_ends_with_whole_parts() -> None:
    assert ends_with("a.b.c", "b.c")
    assert ends_with("a.init_args.b.init_args.c", "a.b.c")
    assert ends_with("b.c", "init_args.c")
    assert not ends_with("a.bb.c", "b.c")
    assert not ends_with("c", "b.c")
    assert not ends_with("a.b", "init_args")
