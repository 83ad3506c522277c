"""A study's table: the ledger's rows of every cell, beside plain training and published values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import kdlab
from kdlab.studies import published
from kdlab.studies.columns import SHOWN
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.published import Published
from kdlab.studies.run_id import of_data
from kdlab.studies.runs import Run
from kdlab.studies.statistics import Difference, Spread, difference, relative_improvement, spread
from kdlab.studies.study import Pair, Study

Row = Mapping[str, str]
ROLES = ("teacher", "student")
COSTS = ("parameters", "megabytes", "latency")
"""Columns of which an ensemble has the sum over its members."""
NAMED = 8
"""Cells that a note names before it counts the others."""


@dataclass(frozen=True)
class Entry:
    """One cell of the table; accuracies and errors in percent.

    Attributes:
        wanted: number of seeds that the study has for it.
        values: accuracies after the last epoch, by seed.
        spreads: over the seeds, by the name of a :class:`~kdlab.studies.columns.Shown` column; ``None`` where nothing
            was measured. ``best`` is of the best epoch, chosen on the very images that it is measured on unless the
            recipe holds images out.
        gain: over plain training of the same student.
    """

    pair: str
    method: str
    wanted: int
    values: tuple[float, ...]
    spreads: Mapping[str, Spread | None]
    gain: Difference | None
    published: Published | None

    @property
    def complete(self) -> bool:
        """Return whether all seeds are there."""
        return len(self.values) == self.wanted

    @property
    def last(self) -> Spread | None:
        """Return the accuracy after the last epoch, the one that counts."""
        return self.spreads["top1"]

    @property
    def beyond(self) -> float | None:
        """Return the difference from the published value."""
        return self.last.mean - self.published.top1 if self.last and self.published else None


@dataclass(frozen=True)
class Table:
    """All cells, with notes on the rows behind them.

    Attributes:
        teachers: accuracies in percent of the teachers that were trained here, of an ensemble as its students' runs
            measured it.
        costs: parameters, size and latency of these teachers, of an ensemble the sums over its members.
        improvements: average relative improvement of the study's reference over each other method, in percent.
    """

    study: Study
    entries: tuple[Entry, ...]
    teachers: Mapping[str, float]
    improvements: Mapping[str, float | None]
    notes: tuple[str, ...]
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def retention(self, entry: Entry) -> float | None:
        """Return a cell's accuracy over that of its pair's teacher, in percent; ``None`` where one is not known."""
        pair = next(pair for pair in self.study.pairs if pair.name == entry.pair)
        teacher = self.teachers.get(pair.roles["teacher"].name) if "teacher" in pair.roles else None
        return 100 * entry.last.mean / teacher if entry.last and teacher else None

    def entry(self, pair: str, method: str) -> Entry | None:
        """Return a cell; ``None`` where the study leaves it out."""
        return next((entry for entry in self.entries if (entry.pair, entry.method) == (pair, method)), None)


def table(study: Study, runs: Sequence[Run], ledger: Ledger, with_published: bool = True) -> Table:
    """Return the table of a study; ``with_published`` is false where the recipe was changed by options.

    A row counts for a cell if its config is the cell's: rows of another recipe, another code or another version of
    kdlab are left out, and so are rows on other data than most of those with the same options of the data.

    Raises:
        InputError: the file of published values cannot be used.
    """
    keys = {run.key: of_data(run.config) for run in runs}
    done = [row for row in ledger.rows if row["status"] == FINISHED]
    fitting = [row for row in done if row["config"] in keys]
    counts: dict[str, Counter[str]] = {}
    for row in fitting:
        counts.setdefault(keys[row["config"]], Counter())[row["data"]] += 1
    rows = {x["config"]: x for x in fitting if x["data"] == counts[keys[x["config"]]].most_common(1)[0][0]}
    known = published.read(study.published) if study.published and with_published else {}
    elsewhere = published.read_measured(study.measured) if study.measured and with_published else {}
    networks = {pair.name: tuple(pair.roles[r].name if r in pair.roles else "" for r in ROLES) for pair in study.pairs}
    cells: dict[tuple[str, str], list[str]] = {}
    seeds: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        for cell in run.cells:
            cells.setdefault((cell.pair, cell.method), []).append(run.key)
            seeds.setdefault((cell.pair, cell.method), set()).add(cell.seed)
    taken: dict[str, None] = {}  # sources of values that are no runs of the study

    def values(pair: str, method: str, column: str = "accuracy", scale: float = 100.0) -> list[float]:
        texts = [rows[key][column] for key in cells.get((pair, method), ()) if key in rows]
        other = elsewhere.get((networks[pair][0], networks[pair][1], method))
        if not texts and other and column == "accuracy":
            taken[other.source] = None
            return [scale * value for seed, value in other.accuracies.items() if seed in seeds.get((pair, method), ())]
        return [scale * float(text) for text in texts if text]

    entries, together = [], dict[str, float]()
    for pair, method in ((pair, method.name) for pair in study.pairs for method in study.methods):
        if wanted := cells.get((pair.name, method)):
            accuracies, plain = values(pair.name, method), values(pair.name, study.baseline)
            gain = difference(accuracies, plain) if method != study.baseline else None
            shown = {to.name: spread(values(pair.name, method, column, to.scale)) for column, to in SHOWN.items()}
            value = _published(pair, method, known)
            entries.append(Entry(pair.name, method, len(wanted), tuple(accuracies), shown, gain, value))
            if (teacher := pair.roles.get("teacher")) and (measured := values(pair.name, method, "teacher_accuracy")):
                together[teacher.name] = measured[-1]  # of a frozen teacher all are the same
    taught = {teacher.key for run in runs for teacher in run.teachers}
    rows_of_teachers = {run.network: rows[run.key] for run in runs if run.key in taught and run.key in rows}
    teachers = {name: 100 * float(row["accuracy"]) for name, row in rows_of_teachers.items()}
    for (name, student, _), other in elsewhere.items():
        if not student and name not in teachers:
            teachers[name] = 100 * next(iter(other.accuracies.values()))
    costs = {name: _costs([row]) for name, row in rows_of_teachers.items()}
    ensembles = [pair.roles["teacher"] for pair in study.pairs if "teacher" in pair.roles]
    for ensemble in (several for several in ensembles if several.members and several.name in together):
        teachers[ensemble.name] = together[ensemble.name]
        costs[ensemble.name] = _costs([rows_of_teachers.get(member.name, {}) for member in ensemble.members])
    notes = [f"Measured here, but not as a run of this study: {source}." for source in taken]
    notes += _notes(done, fitting, list(rows.values()), ledger, set(keys))
    return Table(study, tuple(entries), teachers, _improvements(study, entries), tuple(notes), costs)


def _costs(rows: Sequence[Row]) -> dict[str, float]:
    """Return the sums of what networks cost, scaled as they are shown, of the columns that all rows have."""
    columns = [name for name in COSTS if all(row.get(name) for row in rows)]
    return {name: SHOWN[name].scale * sum(float(row[name]) for row in rows) for name in columns}


def _published(pair: Pair, method: str, known: Mapping[tuple[str, str, str], Published]) -> Published | None:
    """Return the published value of a cell, by its teacher, else by a peer, else of the student alone."""
    names = {role: network.name for role, network in pair.roles.items()}
    peers = [name for role, name in names.items() if role not in ("student", "teacher")]
    keys = [(other, names["student"], method) for other in (names.get("teacher", ""), *peers, "")]
    return next((known[key] for key in keys if key in known), None)


def _improvements(study: Study, entries: Sequence[Entry]) -> dict[str, float | None]:
    if study.reference is None:
        return {}
    means: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry.last is not None:
            means.setdefault(entry.method, {})[entry.pair] = entry.last.mean
    plain, reference = means.get(study.baseline, {}), means.get(study.reference, {})
    others = {method.name for method in study.methods} - {study.baseline, study.reference}
    return {name: relative_improvement(reference, means.get(name, {}), plain) for name in others}


def _notes(
    done: Sequence[Row], fitting: Sequence[Row], used: Sequence[Row], ledger: Ledger, keys: set[str]
) -> list[str]:
    notes = []
    others = [row for row in done if row["config"] not in keys]
    for version in sorted({row["kdlab"] for row in others}):
        why = "of another recipe or code" if version == kdlab.__version__ else f"of kdlab {version}"
        notes.append(_left_out(why, [row for row in others if row["kdlab"] == version]))
    counted = {row["run"] for row in used}
    if elsewhere := {row["run"]: row for row in fitting if row["run"] not in counted}:
        notes.append(_left_out("on other data", list(elsewhere.values())))
    repaired = {row["config"] for row in used}
    failed = [row for row in ledger.rows if row["status"] != FINISHED and row["config"] in keys - repaired]
    for row in {row["config"]: row for row in failed}.values():
        notes.append(f"{_cell(row)} failed: {row['error']}")
    for column, what in (("device", "On"), ("torch", "torch"), ("commit", "kdlab at commit")):
        if values := sorted({row[column] for row in used if row.get(column)}):
            notes.append(f"{what} {', '.join(values)}.")
    return notes


def _left_out(why: str, rows: Sequence[Row]) -> str:
    names = [_cell(row) for row in rows]
    more = f"; and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"Left out, {why}: {'; '.join(names[:NAMED])}{more}."


def _cell(row: Row) -> str:
    """Return the name of a row's cell, or of its network where it is a teacher's."""
    return ", ".join(part for part in (row["pair"] or row["network"], row["method"], f"seed {row['seed']}") if part)
