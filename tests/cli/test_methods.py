"""methods: the table of everything that can be chosen."""

from __future__ import annotations

import pytest

from kdlab.cli import main
from kdlab.cli.methods import HEADER, entries


def test_the_plain_table_has_every_method(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main(["methods"])
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    assert all(name in said for name in HEADER)
    assert {row.name for row in entries()} <= {line[0] for line in lines}
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
    families = sorted({row.family for row in entries()})
    expected = f"There is no family 'relations'; the families are {', '.join(families)}."
    assert (said.out, said.err) == ("", f"kdlab methods: {expected}\n")
