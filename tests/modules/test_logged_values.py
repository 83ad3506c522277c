"""The page on logged values names every key that runs log, and no other."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.losses import SoftTargets
from tests.documentation import PAGES

PAGE = (PAGES / "reference/logged_values.md").read_text()
KEYS = re.findall(r"^\| `([^`]+)` \|", PAGE, re.M)
PATTERNS = [
    re.compile(key.replace("STAGE", "(val|test)").replace("NAME", "[a-z]+").replace("OPTIMIZER", "[A-Z]+"))
    for key in KEYS
]
CASES: dict[str, tuple[Any, torch.Tensor, dict[str, Any]]] = {
    "classes": (nn.CrossEntropyLoss(), torch.arange(8) % 3, {"skip_nonfinite": 1, "watch_gradients": True}),
    "several labels": (nn.BCEWithLogitsLoss(), (torch.arange(24).view(8, 3) % 2).float(), {}),
    "regression": (nn.MSELoss(), torch.arange(24.0).view(8, 3), {}),
    "co-training": (nn.CrossEntropyLoss(), torch.arange(8) % 3, {}),
}


def logged(case: str, folder: Path) -> set[str]:
    """The keys that a run of two steps, validated and tested, logs."""
    task, targets, options = CASES[case]
    knowledge = {"soft": Knowledge(SoftTargets(1.0))}
    networks = [nn.Linear(5, 3), nn.Linear(5, 3)]
    if case == "co-training":
        module: Any = CoTrainer(dict(zip("ab", networks, strict=True)), knowledge, task=task, **options)
    else:
        module = Distiller(*networks, knowledge, task=task, **options)
    loader = DataLoader(TensorDataset(torch.randn(8, 5), targets), 4)
    log = CSVLogger(folder, name="", version=0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=log, log_every_n_steps=1, callbacks=[LearningRateMonitor()], **quiet
    )
    trainer.fit(module, loader, loader)
    trainer.test(module, loader, verbose=False)
    with (folder / "version_0/metrics.csv").open() as file:
        return {name for name in csv.DictReader(file).fieldnames or () if name not in ("epoch", "step")}


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_the_page_names_every_logged_key_and_no_other(tmp_path: Path) -> None:
    keys = set[str]().union(*(logged(case, tmp_path / case) for case in CASES))
    assert len(keys) > 30
    assert [key for key in sorted(keys) if not any(pattern.fullmatch(key) for pattern in PATTERNS)] == []
    assert [key for key, pattern in zip(KEYS, PATTERNS, strict=True) if not any(map(pattern.fullmatch, keys))] == []
