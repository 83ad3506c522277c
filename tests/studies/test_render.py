"""The table as Markdown, CSV and figure, and in a README of which nothing else is touched."""

from __future__ import annotations

import csv
import io
import struct
from pathlib import Path
from typing import Any

import pytest

from kdlab.studies import published
from kdlab.studies.ledger import Ledger
from kdlab.studies.render import BEGIN, END, figure, markdown, table_csv, write
from kdlab.studies.tables import Table, table
from tests.studies.small import PAIR, STUDY, enter, named, runs, study

SECOND = "tiny → big"
COLUMNS = (
    *("pair", "method", "seeds", "of", "top1", "std", "best", "gain", "gain_low", "gain_high", "published"),
    *("beyond_published", "perplexity", "agreement", "ece", "parameters", "megabytes", "latency"),
    *("file_top1", "file_megabytes", "file_latency", "minutes", "source"),
)
TWO = STUDY.replace("student: tiny}", "student: tiny}\n  - {teacher: tiny, student: big, methods: {KD: null}}").replace(
    "seeds:", "  CRD: {configs: [kd.yaml], options: {x: 1}}\nreference: CRD\nnote: A note.\nseeds:"
)
VALUES = {
    "tiny, plain": (0.70125, 0.70375),
    f"{PAIR}, KD": (0.72,),
    f"{PAIR}, CRD": (0.730, 0.732),
    f"{SECOND}, CRD": (0.8, 0.9),
}
SOURCES = ",".join(published.FIELDS) + '\nd,big,tiny,KD,71.5,,,,"Table 1, last epoch"\n'


def made(folder: Path, text: str = TWO, values: dict[str, tuple[float, ...]] = VALUES, sources: str = "") -> Table:
    if sources:
        folder.mkdir(exist_ok=True)
        (folder / "published.csv").write_text(sources)
        text += "published: published.csv\n"
    found = runs(folder, text)
    names = named(found)
    ledger = Ledger(folder / "ledger.csv")
    for name, several in values.items():
        for seed, value in enumerate(several):
            more: dict[str, Any] = {"agreement": 0.8, "ece": 0.05, "seconds": 90.0, "best_accuracy": value + 0.01}
            enter(ledger, names[f"{name}, seed {seed}"], value, **more)
    if "teacher big" in names and values:
        enter(ledger, names["teacher big"], 0.875)
    return table(study(folder, text), found, ledger)


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The cells below a heading, by the first cell of each row."""
    lines = text.split(heading, 1)[1].split("\n###", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({len(row) for row in cells}) == 1, "every row has as many cells as its head"
    return {row[0]: row[1:] for row in cells}


def test_a_pairs_part_of_the_markdown(tmp_path: Path) -> None:
    rows = rows_of(markdown(made(tmp_path)), f"### {PAIR}")
    assert rows["method"] == ["top-1", "n", "best epoch", "Δ plain", "retention", "agreement", "ECE", "minutes"]
    # The teacher has 87.5
    assert rows["plain"] == ["70.25 ± 0.18", "2", "71.25", "", "80.3", "80.00", "5.00", "1.5"]
    assert rows["KD"] == ["72.00", "1 of 2", "73.00", "+1.75", "82.3", "80.00", "5.00", "1.5"]
    # Means 73.1 and 70.25; half width 4.302653 * sqrt(0.01 + 0.015625) with freedom 1.91
    assert rows["CRD"][:3] == ["73.10 ± 0.14", "2", "74.10"]
    assert rows["CRD"][3].startswith("+2.85 [+2.1")
    assert rows["CRD"][3].endswith("]")


def test_overview_marks_incomplete_and_left_out_cells(tmp_path: Path) -> None:
    text = markdown(made(tmp_path))
    rows = rows_of(text.split("### ", 1)[0], "Δ:")
    assert rows["method"] == [PAIR, SECOND, "ARI of CRD, %"]
    assert rows["plain"] == ["70.25 ± 0.18", "", ""]
    assert rows["KD"] == ["72.00*", "–", "62.9"]  # (73.1 - 72) / (72 - 70.25)
    assert rows["CRD"] == ["73.10 ± 0.14", "85.00 ± 7.07", ""]
    assert "\\* not all seeds yet" in text
    whole = {**VALUES, f"{PAIR}, KD": (0.72, 0.73)}
    assert "*" not in markdown(made(tmp_path / "whole", values=whole)).split("### ", 1)[0]


def test_what_else_the_markdown_says(tmp_path: Path) -> None:
    text = markdown(made(tmp_path))
    assert "\nA note.\n" in text
    assert text.count("Teacher big, trained here: 87.50.") == 1
    assert "Δ: the difference from plain" in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "published" not in text
    one = markdown(made(tmp_path / "one", STUDY, {}))
    assert "ARI" not in one
    assert one.count("| method |") == 1, "one pair needs no overview"
    assert rows_of(one, f"### {PAIR}")["KD"] == [""] * 4, "columns without a value are left out"


def test_costs_have_columns_where_they_were_measured(tmp_path: Path) -> None:
    found = named(runs(tmp_path, STUDY))
    ledger = Ledger(tmp_path / "ledger.csv")
    costs = {"parameters": 1_234_567, "megabytes": 4.938, "latency": 0.00125, "perplexity": 7.5}
    enter(ledger, found[f"{PAIR}, KD, seed 0"], 0.5, **costs)
    enter(ledger, found["teacher big"], 0.8, parameters=22_000_000, megabytes=88.0, latency=0.0125)
    text = markdown(table(study(tmp_path), list(found.values()), ledger))
    rows = rows_of(text, f"### {PAIR}")
    assert rows["method"][5:] == ["perplexity", "M parameters", "MB", "ms a sample"]
    assert rows["KD"][4:] == ["62.5", "7.50", "1.23", "4.9", "1.25"]
    assert "Teacher big, trained here: 80.00, 22.00 M parameters, 88.0 MB, 12.50 ms a sample.\n" in text


def test_an_ensemble_of_teachers_is_shown_with_its_members(tmp_path: Path) -> None:
    mid = "  mid: {class_path: kdlab.models.mlp, init_args: {hidden: [32]}}\nteachers:"
    text = STUDY.replace("teachers:", mid).replace("{teacher: big,", "{name: two, teacher: [big, mid],")
    found = named(runs(tmp_path, text))
    ledger = Ledger(tmp_path / "ledger.csv")
    enter(ledger, found["teacher big"], 0.75, megabytes=12.0, latency=0.003)
    enter(ledger, found["teacher mid"], 0.5, megabytes=4.0, latency=0.001)
    enter(ledger, found["two, KD, seed 0"], 0.6, teacher_accuracy=0.8)
    shown = markdown(table(study(tmp_path, text), list(found.values()), ledger))
    line = "Teacher big + mid, trained here: 80.00 (its members alone: 75.00, 50.00), 16.0 MB, 4.00 ms a sample."
    assert f"### two\n\n{line}\n\n| method |" in shown
    assert rows_of(shown, "### two")["KD"][4] == "75.0"


def test_published_values_have_columns_where_there_are_any(tmp_path: Path) -> None:
    rows = rows_of(markdown(made(tmp_path, sources=SOURCES)), f"### {PAIR}")
    assert rows["method"][4:6] == ["published", "Δ published"]
    assert rows["KD"][4:6] == ["71.50", "+0.50"]
    assert rows["CRD"][4:6] == ["", ""]
    rows = rows_of(markdown(made(tmp_path, sources=SOURCES)), f"### {SECOND}")
    assert "published" not in rows["method"]


def test_the_csv_has_every_digit(tmp_path: Path) -> None:
    values = {"tiny, plain": (0.1 + 0.2, 1 / 3), f"{PAIR}, KD": (2 / 3,)}
    found = made(tmp_path, values=values, sources=SOURCES)
    text = table_csv(found)
    read = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == ",".join(COLUMNS)
    assert [(row["pair"], row["method"], row["seeds"], row["of"]) for row in read] == [
        (PAIR, "plain", "2", "2"),
        (PAIR, "KD", "1", "2"),
        (PAIR, "CRD", "0", "2"),
        (SECOND, "plain", "0", "2"),
        (SECOND, "CRD", "0", "2"),
    ]
    plain, kd, crd, *_ = read
    entries = found.entries
    assert entries[0].last is not None
    assert entries[1].gain is not None
    for cell, value in (
        (plain["top1"], entries[0].last.mean),
        (plain["std"], entries[0].last.std),
        (kd["top1"], 100 * (2 / 3)),
        (kd["gain"], entries[1].gain.value),
        (kd["published"], 71.5),
        (kd["beyond_published"], 100 * (2 / 3) - 71.5),
        (kd["agreement"], 80.0),
        (kd["ece"], 5.0),
        (kd["minutes"], 1.5),
        (kd["best"], 100 * (2 / 3 + 0.01)),
    ):
        assert struct.pack("d", float(cell)) == struct.pack("d", value)
    assert (kd["std"], kd["gain_low"], kd["gain_high"], kd["source"]) == ("", "", "", "Table 1, last epoch")
    assert {crd[name] for name in COLUMNS[4:]} == {""}
    assert plain["gain"] == ""


def test_the_csv_has_the_interval(tmp_path: Path) -> None:
    found = made(tmp_path)
    row = list(csv.DictReader(io.StringIO(table_csv(found))))[2]
    assert tuple(float(row[name]) for name in ("gain", "gain_low", "gain_high")) == found.entries[2].gain


def drawn(axis: Any, sign: str) -> list[tuple[float, int]]:
    """The points of an axis with this marker, from the left."""
    lines = [line for line in axis.lines if line.get_marker() == sign]
    return sorted((float(x), int(y)) for line in lines for x, y in zip(*line.get_data(), strict=True))


def test_figure_draws_seeds_means_and_published_values(
    tmp_path: Path,
) -> None:
    found = made(tmp_path, sources=SOURCES)
    axes = figure(found).axes
    assert [axis.get_title() for axis in axes] == [PAIR, SECOND]
    assert [each.get_text() for each in axes[0].get_yticklabels()] == ["CRD", "KD", "plain"], "the first at the top"

    assert drawn(axes[0], "o") == [(70.125, 2), (70.375, 2), (72.0, 1), (73.0, 0), (73.2, 0)]
    assert [mean for mean, _ in drawn(axes[0], "|")] == pytest.approx([70.25, 72.0, 73.1])
    assert [row for _, row in drawn(axes[0], "|")] == [2, 1, 0]
    assert drawn(axes[0], "x") == [(71.5, 1)]
    assert drawn(axes[1], "o") == [(80.0, 0), (90.0, 0)]
    assert [x for x, _ in drawn(axes[0], "None")] == [70.25, 70.25], "plain training, to compare with"


def test_a_figure_of_nothing_yet_can_be_drawn(tmp_path: Path) -> None:
    assert not [axis for axis in figure(made(tmp_path, values={})).axes if axis.lines]


def test_what_is_written(tmp_path: Path) -> None:
    found = made(tmp_path / "study")
    out = tmp_path / "new" / "out"
    paths = write(found, out)
    assert paths == [out / "report.md", out / "report.csv", out / "report.png"]
    assert sorted(out.iterdir()) == sorted(paths)
    assert paths[0].read_text() == "# Small networks\n\n" + markdown(found)
    assert paths[1].read_text() == table_csv(found)
    first = paths[2].read_bytes()
    assert first.startswith(b"\x89PNG")
    assert b"matplotlib" not in first.lower(), "another version of it is no other figure"
    write(found, out)
    assert paths[2].read_bytes() == first, "the same table is the same file"


OLD = "\nold\n### old\n"
README = f"# Title\n\nBefore, {END.upper()}.\n\n{BEGIN}{OLD}{END}\n\nAfter: {BEGIN[:-4]}\n  no newline at the end"


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the longest and says nothing here."""

    class Picture:
        def savefig(self, path: Path, **options: Any) -> None:
            path.touch()

    monkeypatch.setattr("kdlab.studies.render.figure", lambda found: Picture())


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("old", [OLD, "\n", ""])
def test_readme_changes_only_between_its_marks(old: str, tmp_path: Path) -> None:
    found = made(tmp_path / "study")
    readme = tmp_path / "README.md"
    readme.write_text(README.replace(OLD, old))
    for _ in range(2):  # a second time too
        assert write(found, tmp_path)[-1] == readme
        before, after = README.split(BEGIN)[0], README.split(END)[1]
        assert readme.read_text() == f"{before}{BEGIN}\n{markdown(found)}{END}{after}"


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(
    "text", ["# Title\n", f"{BEGIN}\nno end\n", f"no begin {END}\n", f"{END}\nturned round\n{BEGIN}\nkept\n", ""]
)
def test_a_readme_without_both_marks_is_left_alone(text: str, tmp_path: Path) -> None:
    found = made(tmp_path / "study")
    (tmp_path / "README.md").write_text(text)
    assert tmp_path / "README.md" not in write(found, tmp_path)
    assert (tmp_path / "README.md").read_text() == text


@pytest.mark.usefixtures("no_picture")
def test_a_readme_keeps_the_ends_of_its_lines(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(f"# Title\r\n{BEGIN}\r\n{END}\r\nAfter\r\n".encode())
    write(made(tmp_path / "study"), tmp_path)
    content = (tmp_path / "README.md").read_bytes()
    assert content.startswith(f"# Title\r\n{BEGIN}".encode())
    assert content.endswith(f"{END}\r\nAfter\r\n".encode())
