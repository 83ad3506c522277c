"""methods: the table of everything that can be chosen."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from typing import Any, NamedTuple

import pytest
import yaml

from kdlab import teaching
from kdlab.cli import main
from kdlab.cli.methods import HEADER, WAYS_HEADER, entries, ways
from tests.config_files import RECIPES, layers

PERSON = r"(?:[A-Z]\.[ -])+[A-Z]\w+(?: [A-Z]\w+)?"
CITATION = re.compile(
    rf'(?<!, )({PERSON}(?:, {PERSON})*)( et al\.)?, "[^"]+"(?: \([^)]*\))?, [^"]*?\b((?:19|20)\d\d)\b(?!\.?\d)'
)
"""Authors, title and year, as docstrings give them: A. Author, B.-C. Writer, "Title", VENUE 2020."""


def cited(kind: Any) -> list[str]:
    """The papers that a class' docstring cites, each as authors and year."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    found = []
    for names, more, year in CITATION.findall(text):
        surnames = [each.split(". ")[-1] for each in names.split(", ")]
        several = len(surnames) > 2 or more
        found.append(f"{surnames[0]} et al. {year}" if several else f"{' and '.join(surnames)} {year}")
    return found


def test_the_plain_table_has_every_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods"])
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert all(name in said for name in HEADER)
    assert {row[0] for row in (*entries(), *ways())} <= {line[0] for line in lines}
    assert all(name in said for name in WAYS_HEADER)
    (soft,) = [line for line in lines if line[0] == "SoftTargets"]
    assert soft[-3:] == ["response", "logits", "0.9"]


@pytest.mark.parametrize("family", ["relation", "teachers"])
def test_one_family_alone(family: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "--markdown", "--family", family])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    shown = {row[0].strip("`") for row in rows}
    assert shown == {row.name for row in entries() if row.family == family}
    assert 2 < len(shown) < len(entries())


def test_an_unknown_family_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["methods", "--family", "relations"])
    assert stop.value.code == 2
    said = capsys.readouterr()
    families = sorted({"teaching", *(row.family for row in entries())})
    expected = f"There is no family 'relations'; the families are {', '.join(families)}."
    assert (said.out, said.err) == ("", f"kdlab methods: {expected}\n")


def test_the_ways_of_learning_together_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "--markdown", "--family", "teaching"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == list(WAYS_HEADER)
    assert [tuple(row) for row in rows[2:]] == [(f"`{name}`", *rest) for name, *rest in ways()]


def test_ways_are_those_that_a_teaching_declares_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Way(NamedTuple):
        method: str
        paper: str
        recipes: tuple[str, ...]

    class Further(teaching.Peers):
        """Peers of a user, without a way of its own."""

    declared = (Way("Mutual learning", "Zhang et al. 2018", ("dml", "dml_sequential")), Way("Another", "", ("mcl",)))
    monkeypatch.setattr(teaching.Peers, "ways", declared, raising=False)
    monkeypatch.setattr(teaching, "Further", Further, raising=False)
    monkeypatch.setattr(teaching, "__all__", ["Further", "Peers"])
    assert ways() == [
        ("Peers", "Mutual learning", "Zhang et al. 2018", "dml, dml_sequential"),
        ("Peers", "Another", "", "mcl"),
    ]


@pytest.mark.parametrize("way", ways(), ids=lambda way: way[1])
def test_a_way_is_what_its_configs_and_docstrings_say(way: tuple[str, str, str, str]) -> None:
    name, _, paper, configs = way
    for config in configs.split(", "):
        read = [yaml.safe_load(path.read_text()) for path in layers(config)]
        options = [each["model"]["init_args"] for each in read if "model" in each]
        ways_of = [each.get(key) or {} for each in options for key in ("teaching", "teacher")]
        kinds = [each["class_path"] for each in ways_of if each.get("class_path", "").startswith("kdlab.teaching.")]
        assert kinds[-1:] == ([] if name == "FrozenTeacher" else [f"kdlab.teaching.{name}"])
        named = re.findall(r"(kdlab\.\w+)\.([A-Z]\w+)", str(read))
        assert not paper or paper in [
            each for room, kind in named for each in cited(getattr(import_module(room), kind))
        ]


def test_every_config_and_every_teaching_is_in_the_table() -> None:
    listed = [config for *_, configs in ways() for config in configs.split(", ")]
    assert sorted(listed) == RECIPES
    kinds = {name for name in teaching.__all__ if issubclass(getattr(teaching, name), teaching.Teaching)}
    assert {name for name, *_ in ways()} == kinds - {"Teaching"}


def test_a_citation_is_authors_and_year() -> None:
    class Several:
        """Two.

        Papers: A. One, "Title of it", CVPR 2020. B.-C. Two, D. Three, "Another: one" (X), 2019, arXiv 1901.00001;
        E. Four, F. G. Van Five, H. Six, "Third", NeurIPS 2021, arXiv 2101.00001. A. Seven et al., "Fourth", 2018.
        """

    assert cited(Several) == ["One 2020", "Two and Three 2019", "Four et al. 2021", "Seven et al. 2018"]
    assert cited(int) == []
