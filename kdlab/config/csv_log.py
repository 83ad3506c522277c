"""CSVLogger whose rows survive a kill or a full disk."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import cast

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from kdlab.files import atomic_write


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with atomic_write(path, "w") as file:
            writer = csv.DictWriter(file, fieldnames)
            writer.writeheader()
            writer.writerows(rows)


class CSVLogger(loggers.CSVLogger):
    """Lightning's, which empties the file before it writes all rows anew under a header with further columns."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Return the writer, made at its first use."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return cast("ExperimentWriter", self._experiment)
