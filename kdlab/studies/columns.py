"""Columns of a study: where each value of a run comes from, and how a report shows its mean over the seeds.

A new measurement is one line in :data:`COLUMNS`: the worker, the ledger, the report, its CSV file and W&B read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from torch import Tensor

    from kdlab.studies.run_callback import Record
    from kdlab.studies.runs import Run

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""State of BatchNorm, which is no parameter."""


class Trained(NamedTuple):
    """A run that ended well: metrics of its test without ``test/``, and tensors of its student (none: an ensemble).

    ``latency`` is in seconds, of one sample on the processor; ``None`` where it was not measured. ``file`` has the
    measurements of its exported file by column, where the study names a format.
    """

    metrics: Mapping[str, float]
    record: Record
    trainer: Trainer
    student: Mapping[str, Tensor]
    environment: Mapping[str, str]
    latency: float | None = None
    file: Mapping[str, float | None] = MappingProxyType({})


class Shown(NamedTuple):
    """A mean over seeds in a report: name in CSV and W&B, heading in Markdown, unit and text of the mean."""

    name: str
    heading: str
    scale: float = 100.0
    text: Callable[[float], str] = "{:.2f}".format


class Column(NamedTuple):
    """A value of a run in ledger and result: from its plan and its data, and once it is trained, from the training."""

    name: str
    planned: Callable[[Run, str], Any] | None = None
    measured: Callable[[Trained], Any] | None = None
    shown: Shown | None = None


def _cell(name: str) -> Callable[[Run, str], Any]:
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


def _environment(name: str) -> Column:
    return Column(name, measured=lambda trained: trained.environment[name])


def _of_file(name: str) -> Callable[[Trained], float | None]:
    return lambda trained: trained.file.get(name)


def _parameters(trained: Trained) -> int | None:
    sizes = [value.numel() for name, value in trained.student.items() if name.rsplit(".", 1)[-1] not in BUFFERS]
    return sum(sizes) if trained.student else None


def _megabytes(trained: Trained) -> float | None:
    return sum(value.nbytes for value in trained.student.values()) / 1e6 if trained.student else None


def _perplexity(trained: Trained) -> float | None:
    """Return exp of the mean cross-entropy of the tokens, where a language model was tested."""
    loss = trained.metrics.get("loss")
    of_tokens = getattr(getattr(trained.trainer, "datamodule", None), "task", None) in ("causal", "masked")
    return math.exp(loss) if of_tokens and loss is not None and loss < 700 else None


COLUMNS = (
    Column("run", lambda run, data: run.identity(data)),
    Column("config", lambda run, _: run.key),  # hash of the recipe with its seed and code
    Column("data", lambda _, data: data),  # fingerprint
    Column("kind", lambda run, _: "student" if run.cells else "teacher"),
    *(Column(name, _cell(name)) for name in ("pair", "method")),
    Column("seed", lambda run, _: run.seed),
    *(Column(name) for name in ("status", "error")),
    # accuracies are in [0, 1] with every digit
    Column("accuracy", measured=_metric("deployed_accuracy", "student_accuracy"), shown=Shown("top1", "top-1")),
    Column("best_accuracy", measured=_best(1), shown=Shown("best", "best epoch")),
    Column("best_epoch", measured=_best(0)),
    Column("perplexity", measured=_perplexity, shown=Shown("perplexity", "perplexity", 1.0)),
    Column("agreement", measured=_metric("agreement"), shown=Shown("agreement", "agreement")),
    Column("kl_to_teacher", measured=_metric("kl_to_teacher")),
    Column("ece", measured=_metric("deployed_ece", "student_ece"), shown=Shown("ece", "ECE")),
    *(Column(name, measured=_metric(name)) for name in ("teacher_accuracy", "ensemble_accuracy")),
    Column("network", lambda run, _: run.network),
    Column("parameters", measured=_parameters, shown=Shown("parameters", "M parameters", 1e-6)),
    Column("megabytes", measured=_megabytes, shown=Shown("megabytes", "MB", 1.0, "{:.1f}".format)),
    Column("latency", measured=lambda trained: trained.latency, shown=Shown("latency", "ms a sample", 1e3)),
    # of the file that the study exports, in its runtime
    Column("file_accuracy", measured=_of_file("accuracy"), shown=Shown("file_top1", "top-1 of the file")),
    Column("file_megabytes", measured=_of_file("megabytes"), shown=Shown("file_megabytes", "its MB", 1.0)),
    Column("file_latency", measured=_of_file("latency"), shown=Shown("file_latency", "its ms a sample", 1e3)),
    Column("batch", _option("data.init_args.batch_size")),  # of all processes
    Column("rate", _option("model.init_args.optimizer.init_args.lr")),
    Column("epochs", _option("trainer.max_epochs"), lambda trained: trained.trainer.current_epoch),
    Column("steps", measured=lambda trained: trained.trainer.global_step),
    Column("precision", _option("trainer.precision")),
    Column("processes", measured=lambda trained: trained.trainer.world_size),
    Column(  # training with validation
        "seconds",
        measured=lambda trained: trained.record.seconds,
        shown=Shown("minutes", "minutes", 1 / 60, lambda mean: f"{mean:.{1 if mean >= 1 else 2}f}"),
    ),
    *(_environment(name) for name in ("device", "kdlab", "commit", "torch", "lightning", "python")),
    Column("finished", lambda *_: datetime.now(timezone.utc).isoformat(timespec="seconds")),
)
FIELDS = tuple(column.name for column in COLUMNS)
SHOWN = {column.name: column.shown for column in COLUMNS if column.shown}
