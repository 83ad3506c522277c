"""The progress bar, with the accuracy of student and teacher."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class StudentBar(RichProgressBar):
    """Rich's bar; after the loss it shows the last validation's student and teacher accuracy in per cent."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The bar's numbers, accuracies in per cent and without the run's version."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        names = {"val/student_accuracy": "student", "val/teacher_accuracy": "teacher"}
        for name, short in names.items():
            if isinstance(value := shown.pop(name, None), float):
                shown[short] = f"{value:.2%}"
        return dict(shown)
