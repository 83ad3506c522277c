"""A study's table: what the ledger says of every cell, beside plain training and beside what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import kdlab
from kdlab.studies import published
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.published import Published
from kdlab.studies.runs import Run
from kdlab.studies.statistics import Difference, Spread, difference, relative_improvement, spread
from kdlab.studies.study import Pair, Study

SHOWN = 8
"""Cells that a note names before it says how many more."""


@dataclass(frozen=True)
class Entry:
    """One cell of the table; accuracies and errors in percent.

    Attributes:
        wanted: how many seeds the study has for it.
        last: after the last epoch, which is what counts.
        best: of the best epoch, which was chosen on the very images that it is the accuracy on, unless the recipe
            holds images out.
        gain: over plain training of the same student.
        beyond: over the published value.
        agreement: share of test images on which student and teacher say the same.
        ece: expected calibration error, 15 bins.
        minutes: of one training.
    """

    pair: str
    method: str
    wanted: int
    values: tuple[float, ...]
    last: Spread | None
    best: Spread | None
    gain: Difference | None
    published: Published | None
    beyond: float | None
    agreement: Spread | None
    ece: Spread | None
    minutes: Spread | None

    @property
    def complete(self) -> bool:
        """Whether all seeds are there."""
        return len(self.values) == self.wanted


@dataclass(frozen=True)
class Table:
    """All cells, and what has to be said of the rows behind them."""

    study: Study
    entries: tuple[Entry, ...]
    teachers: Mapping[str, float]
    """Accuracies in percent of the teachers that were trained here."""
    improvements: Mapping[str, float | None]
    """Average relative improvement of the study's reference over each other method, in percent."""
    notes: tuple[str, ...]

    def entry(self, pair: str, method: str) -> Entry | None:
        """A cell; ``None`` where the study leaves it out."""
        return next((each for each in self.entries if (each.pair, each.method) == (pair, method)), None)


def table(study: Study, runs: Sequence[Run], ledger: Ledger, with_published: bool = True) -> Table:
    """The table of a study from its ledger.

    A row counts for a cell if its config is the cell's: rows of another recipe, another code or another version of
    kdlab are left out, and so are rows on other data than most.

    Args:
        study: the study.
        runs: all of its runs.
        ledger: rows of any runs.
        with_published: ``False`` where the recipe was changed, so that published values are not of it.

    Raises:
        InputError: the file of published values cannot be used.
    """
    ours = {run.key for run in runs}
    done = [row for row in ledger.rows if row["status"] == FINISHED]
    fitting = [row for row in done if row["config"] in ours]
    data = Counter(row["data"] for row in fitting).most_common(1)
    rows = {row["config"]: row for row in fitting if row["data"] == data[0][0]}
    known = published.read(study.published) if study.published and with_published else {}
    keys: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for cell in run.cells:
            keys.setdefault((cell.pair, cell.method), []).append(run.key)
    entries = []
    for pair in study.pairs:
        for method in study.methods:
            if (pair.name, method.name) in keys:
                own, plain = keys[pair.name, method.name], keys.get((pair.name, study.baseline), [])
                entries.append(_entry(study, pair, method.name, own, plain, rows, known))
    notes = _notes(done, fitting, list(rows.values()), ledger, ours)
    taught = {run.teacher.key for run in runs if run.teacher is not None}
    teachers = {
        run.network: 100 * float(rows[run.key]["accuracy"]) for run in runs if run.key in taught and run.key in rows
    }
    return Table(study, tuple(entries), teachers, _improvements(study, entries), tuple(notes))


def _entry(
    study: Study,
    pair: Pair,
    method: str,
    own: Sequence[str],
    plain: Sequence[str],
    rows: Mapping[str, Mapping[str, str]],
    known: Mapping[tuple[str, str, str], Published],
) -> Entry:
    def column(name: str, keys: Sequence[str] = own, scale: float = 100.0) -> list[float]:
        return [scale * float(rows[key][name]) for key in keys if key in rows and rows[key][name]]

    values = column("accuracy")
    student = pair.roles["student"].name
    teacher = pair.roles["teacher"].name if "teacher" in pair.roles else ""
    peers = [network.name for role, network in pair.roles.items() if role not in ("student", "teacher")]
    places = [(name, student, method) for name in (teacher, *peers, "")]
    value = next((known[place] for place in places if place in known), None)
    last = spread(values)
    return Entry(
        pair=pair.name,
        method=method,
        wanted=len(own),
        values=tuple(values),
        last=last,
        best=spread(column("best_accuracy")),
        gain=difference(values, column("accuracy", plain)) if method != study.baseline else None,
        published=value,
        beyond=last.mean - value.top1 if last and value else None,
        agreement=spread(column("agreement")),
        ece=spread(column("ece")),
        minutes=spread(column("seconds", scale=1 / 60)),
    )


def _improvements(study: Study, entries: Sequence[Entry]) -> dict[str, float | None]:
    if study.reference is None:
        return {}
    means: dict[str, dict[str, float]] = {}
    for each in entries:
        if each.last is not None:
            means.setdefault(each.method, {})[each.pair] = each.last.mean
    others = [each.name for each in study.methods if each.name not in (study.baseline, study.reference)]
    plain, reference = means.get(study.baseline, {}), means.get(study.reference, {})
    return {name: relative_improvement(reference, means.get(name, {}), plain) for name in others}


def _notes(
    done: Sequence[Mapping[str, str]],
    fitting: Sequence[Mapping[str, str]],
    used: Sequence[Mapping[str, str]],
    ledger: Ledger,
    ours: set[str],
) -> list[str]:
    notes = []
    others = [row for row in done if row["config"] not in ours]
    for version in sorted({row["kdlab"] for row in others}):
        why = "of another recipe or code" if version == kdlab.__version__ else f"of kdlab {version}"
        notes.append(_left_out(why, [row for row in others if row["kdlab"] == version]))
    counted = {row["run"] for row in used}
    if strange := {row["run"]: row for row in fitting if row["run"] not in counted}:
        notes.append(_left_out("on other data", list(strange.values())))
    failed = [row for row in ledger.rows if row["status"] != FINISHED and row["config"] in ours]
    latest = {row["config"]: row for row in failed if row["config"] not in {each["config"] for each in used}}
    for row in latest.values():
        notes.append(f"{_cell(row)} failed: {row['error']}")
    for column, what in (("device", "On"), ("torch", "torch"), ("commit", "kdlab at commit")):
        if values := sorted({row[column] for row in used if row.get(column)}):
            notes.append(f"{what} {', '.join(values)}.")
    return notes


def _left_out(why: str, rows: Sequence[Mapping[str, str]]) -> str:
    names = [_cell(row) for row in rows]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"Left out, {why}: {'; '.join(names[:SHOWN])}{more}."


def _cell(row: Mapping[str, str]) -> str:
    """A ledger row by the name of its cell, or of its network where it is a teacher."""
    return ", ".join(part for part in (row["pair"] or row["network"], row["method"], f"seed {row['seed']}") if part)
