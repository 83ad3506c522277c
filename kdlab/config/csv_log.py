"""CSVLogger whose rows survive a kill or a full disk."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from kdlab.files import atomic_write


class Continued(NamedTuple):
    """Where a resumed run goes on.

    Attributes:
        folder: the run's folder.
        step: steps taken before the checkpoint; ``None`` if unknown, and then every row stays.
        row: values and step of the row that is logged after the checkpoint, once more by the resumed run.
    """

    folder: Path
    step: int | None = None
    row: tuple[Mapping[str, float], int] | None = None

    def precedes(self, row: Mapping[str, str]) -> bool:
        """Return whether a row of the log was written before the checkpoint, and is not written again."""
        if self.step is not None and int(row["step"]) >= self.step:
            return False
        if self.row is None:
            return True
        again = {**self.row[0], "step": self.row[1]}
        return {name: value for name, value in row.items() if value} != {x: str(value) for x, value in again.items()}


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, continued: Continued | None) -> None:
        self._continued = continued
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """Keep the rows before the checkpoint that a run is resumed from; Lightning deletes them all."""
        path = Path(self.metrics_file_path)
        if self._continued is None:
            super()._check_log_dir_exists()
        elif path.is_file():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                rows = [row for row in reader if self._continued.precedes(row)]
                self.metrics_keys = list(reader.fieldnames or ())
            self._replace(path, self.metrics_keys, rows)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        self._replace(path, fieldnames, rows)

    @staticmethod
    def _replace(path: Path, fieldnames: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class CSVLogger(loggers.CSVLogger):
    """Lightning's, which empties the file before it writes all rows anew under a header with further columns.

    Attributes:
        continued: where a resumed run goes on; its log then goes on in the same file.
    """

    continued: Continued | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Return the writer, made at its first use."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(self.log_dir, self.continued)
        return cast("ExperimentWriter", self._experiment)
