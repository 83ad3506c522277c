"""Columns of a study: what a ledger keeps of a run, and what a report shows of a cell.

A new measurement is one line in :data:`COLUMNS`; with ``shown`` it is in the report, its CSV file and W&B too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from torch import Tensor

    from kdlab.studies.run_callback import Record
    from kdlab.studies.runs import Run
    from kdlab.studies.statistics import Difference, Spread
    from kdlab.studies.tables import Entry

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""BatchNorm's state, which is no parameter."""


@dataclass(frozen=True)
class Trained:
    """A run that ended well.

    Attributes:
        metrics: of the test, by name without ``test/``.
        record: of the training.
        trainer: of training and test.
        student: tensors of the deployed network; empty for an ensemble.
        environment: device, versions and commit.
    """

    metrics: Mapping[str, float]
    record: Record
    trainer: Trainer
    student: Mapping[str, Tensor]
    environment: Mapping[str, str]


class Shown(NamedTuple):
    """Mean over the seeds in a report: its name in CSV and W&B, its heading in Markdown, its unit and digits."""

    name: str
    heading: str
    scale: float = 100.0
    text: Callable[[Spread], str] = lambda spread: f"{spread.mean:.2f}"


class Column(NamedTuple):
    """One value of a run in the ledger.

    Attributes:
        name: in the ledger and in ``result.json``.
        planned: the value from the run and the fingerprint of its data, before the training.
        measured: the value after the training; it replaces the planned one.
        shown: of the cell in the report.
    """

    name: str
    planned: Callable[[Run, str], Any] | None = None
    measured: Callable[[Trained], Any] | None = None
    shown: Shown | None = None


def _of_cell(name: str) -> Callable[[Run, str], Any]:
    return lambda run, _: getattr(run.cells[0], name) if run.cells else ""


def _option(key: str) -> Callable[[Run, str], Any]:
    def read(run: Run, _: str) -> Any:
        value: Any = run.config
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    return read


def _metric(*names: str) -> Callable[[Trained], float | None]:
    return lambda trained: next((trained.metrics[name] for name in names if name in trained.metrics), None)


def _best(index: int) -> Callable[[Trained], float | None]:
    return lambda trained: best[index] if (best := trained.record.best()) else None


def _environment(name: str) -> Callable[[Trained], str]:
    return lambda trained: trained.environment[name]


def _parameters(trained: Trained) -> int | None:
    counted = [value for name, value in trained.student.items() if name.rsplit(".", 1)[-1] not in STATISTICS]
    return sum(value.numel() for value in counted) if trained.student else None


def spread_text(value: Spread) -> str:
    """Return mean and standard deviation with two digits."""
    return f"{value.mean:.2f}" + (f" ± {value.std:.2f}" if value.std is not None else "")


TOP1 = Shown("top1", "top-1", text=spread_text)
BEST = Shown("best", "best epoch")
MINUTES = Shown("minutes", "minutes", 1 / 60, lambda spread: f"{spread.mean:.{1 if spread.mean >= 1 else 2}f}")

COLUMNS = (
    Column("run", lambda run, data: run.identity(data)),
    Column("config", lambda run, _: run.key),  # hash of the recipe with its seed and code
    Column("data", lambda _, data: data),  # fingerprint
    Column("kind", lambda run, _: "student" if run.cells else "teacher"),
    Column("pair", _of_cell("pair")),
    Column("method", _of_cell("method")),
    Column("seed", lambda run, _: run.seed),
    Column("status"),
    Column("error"),
    # accuracies are in [0, 1] with every digit
    Column("accuracy", measured=_metric("deployed_accuracy", "student_accuracy"), shown=TOP1),
    Column("best_accuracy", measured=_best(1), shown=BEST),
    Column("best_epoch", measured=_best(0)),
    Column("agreement", measured=_metric("agreement"), shown=Shown("agreement", "agreement")),
    Column("kl_to_teacher", measured=_metric("kl_to_teacher")),
    Column("ece", measured=_metric("deployed_ece", "student_ece"), shown=Shown("ece", "ECE")),
    Column("teacher_accuracy", measured=_metric("teacher_accuracy")),
    Column("ensemble_accuracy", measured=_metric("ensemble_accuracy")),
    Column("network", lambda run, _: run.network),
    Column("parameters", measured=_parameters),
    Column("batch", _option("data.init_args.batch_size")),  # of all processes
    Column("rate", _option("model.init_args.optimizer.init_args.lr")),
    Column("epochs", _option("trainer.max_epochs"), lambda trained: trained.trainer.current_epoch),
    Column("steps", measured=lambda trained: trained.trainer.global_step),
    Column("precision", _option("trainer.precision")),
    Column("processes", measured=lambda trained: trained.trainer.world_size),
    Column("seconds", measured=lambda trained: trained.record.seconds, shown=MINUTES),  # training and validation
    *(Column(name, measured=_environment(name)) for name in ("device", "kdlab", "commit", "torch", "lightning")),
    Column("python", measured=_environment("python")),
    Column("finished", lambda *_: datetime.now(timezone.utc).isoformat(timespec="seconds")),
)
FIELDS = tuple(column.name for column in COLUMNS)
"""Names of the ledger's columns."""
SHOWN = {column.name: column.shown for column in COLUMNS if column.shown}


def planned(run: Run, data: str) -> dict[str, Any]:
    """Return what is known of a run whether it ends well or not."""
    return {column.name: column.planned(run, data) for column in COLUMNS if column.planned}


def measured(trained: Trained) -> dict[str, Any]:
    """Return what was measured."""
    return {column.name: column.measured(trained) for column in COLUMNS if column.measured}


class CellColumn(NamedTuple):
    """One column of the report.

    Attributes:
        name: in CSV and W&B; empty if it is not there.
        value: the value there, with every digit.
        heading: in Markdown; empty if it is not there.
        text: the text there.
    """

    name: str
    value: Callable[[Entry], Any] = lambda entry: None
    heading: str = ""
    text: Callable[[Entry], str] = lambda entry: ""


def _cell_column(shown: Shown) -> CellColumn:
    def value(entry: Entry) -> float | None:
        return spread.mean if (spread := entry.spreads[shown.name]) else None

    def text(entry: Entry) -> str:
        return shown.text(spread) if (spread := entry.spreads[shown.name]) else ""

    return CellColumn(shown.name, value, shown.heading, text)


def _gain(index: int) -> Callable[[Entry], float | None]:
    return lambda entry: entry.gain[index] if entry.gain else None


def _seeds(entry: Entry) -> str:
    done = len(entry.values)
    return "" if not done else str(done) if entry.complete else f"{done} of {entry.wanted}"


def _difference(value: Difference | None) -> str:
    if value is None:
        return ""
    interval = "" if value.low is None or value.high is None else f" [{value.low:+.2f}, {value.high:+.2f}]"
    return f"{value.value:+.2f}{interval}"


CELL_COLUMNS = (
    CellColumn("pair", lambda entry: entry.pair),
    CellColumn("method", lambda entry: entry.method, "method", lambda entry: entry.method),
    CellColumn("seeds", lambda entry: len(entry.values)),
    CellColumn("of", lambda entry: entry.wanted),
    _cell_column(TOP1),
    CellColumn("std", lambda entry: entry.last.std if entry.last else None),
    CellColumn("", heading="n", text=_seeds),
    _cell_column(BEST),
    CellColumn("gain", _gain(0), "Δ {baseline}", lambda entry: _difference(entry.gain)),
    CellColumn("gain_low", _gain(1)),
    CellColumn("gain_high", _gain(2)),
    CellColumn(
        "published",
        lambda entry: entry.published.top1 if entry.published else None,
        "published",
        lambda entry: f"{entry.published.top1:.2f}" if entry.published else "",
    ),
    CellColumn(
        "beyond_published",
        lambda entry: entry.beyond,
        "Δ published",
        lambda entry: "" if entry.beyond is None else f"{entry.beyond:+.2f}",
    ),
    *(_cell_column(shown) for shown in SHOWN.values() if shown not in (TOP1, BEST)),
    CellColumn("source", lambda entry: entry.published.source if entry.published else None),
)
EXPORTED = tuple(column for column in CELL_COLUMNS if column.name)
"""Columns of the report as CSV and in W&B."""
