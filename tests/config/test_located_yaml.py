"""YAML with the line of every part, and with errors for invalid YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab.config.located_yaml import Source
from kdlab.errors import InputError

TEXT = """\
# a comment
one: 1
two:
  - a
  - {b: 2,
     c: [3, 4]}
three:

  four:
    five: 5.5e-3
shared: &shared {x: 1,
  y: 2}
own:
  <<: *shared
  y: 3
again: *shared
"""


def source(tmp_path: Path, text: str) -> Source:
    path = tmp_path / "file.yaml"
    path.write_text(text)
    return Source(path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as refused:
        source(tmp_path, text)
    return str(refused.value)


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ((), 2),
        (("one",), 2),
        (("two",), 3),
        (("two", 0), 4),
        (("two", 1), 5),
        (("two", 1, "b"), 5),
        (("two", 1, "c"), 6),
        (("two", 1, "c", 1), 6),
        (("three", "four"), 9),
        (("three", "four", "five"), 10),
        (("own", "y"), 15),
        (("own", "x"), 11),  # it stands where it was written
        (("again",), 16),
        (("three", "six"), 7),  # missing: the line of what it is missing in
        (("three", "four", "five", "six", 7), 10),
        (("nowhere",), 2),
    ],
)
def test_every_part_has_its_line(place: tuple[Any, ...], line: int, tmp_path: Path) -> None:
    assert source(tmp_path, TEXT).line(place) == line


PLAIN = ["[1, {a: ~}]", "a", "'1e-3': 1e-3", "? x\n: !!set {a, b}", "n: null\nt: yes\nd: 2024-01-31"]


@pytest.mark.parametrize("text", [TEXT, *PLAIN])
def test_the_content_is_what_yaml_reads(text: str, tmp_path: Path) -> None:
    assert source(tmp_path, text).content == yaml.safe_load(text)


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_a_file_without_content_is_empty(text: str, tmp_path: Path) -> None:
    assert not source(tmp_path, text).content


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1),
        ("a:\n  b: 1\n  c: 2\n  b: 1\n", 4, 2),
        ("- 0\n- {a: 1,\n   a: 1}\n", 3, 2),
        ("a: &x {k: 1}\nb:\n  <<: *x\n  m: 1\n  m: 2\n", 5, 4),
        ("1: a\n1: b\n", 2, 1),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_both_lines(text: str, line: int, first: int, tmp_path: Path) -> None:
    said = refusal(tmp_path, text)
    assert said.startswith(f"{tmp_path / 'file.yaml'}, line {line}: ")
    assert said.endswith(f"is here twice, first in line {first}.")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3),
        ("a: 1\n\tb: 2\n", 2),
        ("a: 1\nb: c: d\n", 2),
        ("a: 1\nb: *missing\n", 2),
        ("a: 1\nb: !!python/name:os.system ''\n", 2),
        ("a: 1\n---\nb: 2\n", 2),
    ],
)
def test_what_is_not_yaml_names_its_line(text: str, line: int, tmp_path: Path) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'file.yaml'}, line {line}: this is not YAML: ")


@pytest.mark.parametrize("text", ["a: 1\n{b: 2}: 3\n", "a: 1\n? [b, c]\n: 3\n", "a: 1\nb: 2024-13-45\n"])
def test_what_python_cannot_hold_names_its_line(text: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, text).startswith(f"{tmp_path / 'file.yaml'}, line 2: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        Source(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(InputError, match=r"bytes\.yaml"):
        Source(tmp_path / "bytes.yaml")


def test_a_mapping_is_asked_for(tmp_path: Path) -> None:
    found = source(tmp_path, "good: {a: 1}\nnone:\nlist: [1]\nword: x\n\nodd:\n  fine: 1\n  7: 1\n")
    content = found.content
    assert found.mapping(content["good"], ("good",)) == {"a": 1}
    assert found.mapping(content["none"], ("none",)) == {}
    for name, line in (("list", 3), ("word", 4)):
        with pytest.raises(InputError, match=rf"file\.yaml, line {line}: {name} is a mapping of names, not "):
            found.mapping(content[name], (name,))
    with pytest.raises(InputError, match="is a mapping"):
        found.mapping(False, ("word",))
    with pytest.raises(InputError, match=r"line 8: names in odd are text: write '7' in quotes"):
        found.mapping(content["odd"], ("odd",))


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    found = source(tmp_path, "a:\n  b:\n    options: 1\n    sedes: 2\n")
    with pytest.raises(InputError, match=r"line 4: a\.b has no 'sedes'; the nearest are 'seeds'") as refused:
        found.mapping(found.content["a"]["b"], ("a", "b"), ("configs", "options", "seeds"))
    assert "\n" not in str(refused.value)
    found.mapping(found.content["a"]["b"], ("a", "b"), ("options", "sedes"))
    with pytest.raises(InputError, match=r"line 1: the study has no 'a'"):
        found.mapping(found.content, (), ("b",))
