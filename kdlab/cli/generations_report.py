"""What ``kdlab generations`` reports: every generation and their ensembles on the test set."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from kdlab.files import atomic_write
from kdlab.metrics import StudentVersusTeacher
from kdlab.outputs import Batch, logits_of, run


class Row(NamedTuple):
    """What the test set says of one generation (``members`` is 1), or of the mean of the first ``members``."""

    name: str
    members: int
    accuracy: float
    agreement: float | None
    """With the generation before: the share of samples on which both name the same class."""
    ece: float
    """Expected calibration error, 15 bins."""


class Together(pl.LightningModule):
    """All generations on the test set, each against the one before, and the ensembles."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.alone = nn.ModuleList(StudentVersusTeacher() for _ in networks)
        self.ensembles = nn.ModuleList(StudentVersusTeacher() for _ in networks[1:])

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch."""
        batch = Batch.of(raw)
        logits: list[Tensor] = [logits_of(run(each, batch.inputs)).float() for each in self.networks]
        for number, metrics in enumerate(self.alone):
            metrics.update(logits[number], logits[number - 1] if number else None, batch.target)  # type: ignore[operator]
        for members, metrics in enumerate(self.ensembles, 2):
            mean = torch.stack([each.softmax(-1) for each in logits[:members]]).mean(0)
            metrics.update(mean.log(), None, batch.target)  # type: ignore[operator]

    def rows(self) -> list[Row]:
        """What was found."""
        found = [(f"generation {number}", 1, each) for number, each in enumerate(self.alone)]
        found += [(f"first {members} together", members, each) for members, each in enumerate(self.ensembles, 2)]
        rows = []
        for name, members, metrics in found:
            values = {key: float(value) for key, value in metrics.compute().items()}  # type: ignore[operator]
            row = Row(name, members, values["student_accuracy"], values.get("agreement"), values["student_ece"])
            rows.append(row)
        return rows


def table(rows: Sequence[Row]) -> Table:
    """The rows for a terminal."""
    last = max((row for row in rows if row.members == 1), key=rows.index)
    shown = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("", "test\naccuracy %", "agreement with\nthe one before %", "ECE %"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for row in rows:
        cells = ["" if value is None else f"{100 * value:.2f}" for value in row[2:]]
        shown.add_row(row.name, *cells, style="bold" if row is last else "")
    shown.caption = f"{last.name} is deployed; together: the mean of their probabilities"
    return shown


def write(rows: Sequence[Row], path: Path) -> None:
    """The rows as a CSV file."""
    with atomic_write(path, "w") as file:
        csv.writer(file).writerows([("network", "members", "test_accuracy", "agreement_with_previous", "ece"), *rows])
