"""kdlab's own contestants: a Distiller in a Trainer, set up as the command line does it."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hand import STAGES, SUMS, student_in_bf16
from inputs import WARM, Clock, RandomImages, Setting, Untouched, networks
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from kdlab import Distiller, Knowledge
from kdlab.config.lightning_cli import LAST
from kdlab.config.progress_bar import StudentBar
from kdlab.losses import CRD, AttentionTransfer, ReviewKD, RKDAngle, RKDDistance, SimilarityPreserving, SoftTargets
from kdlab.modules.checkpoint_io import AtomicCheckpointIO
from kdlab.schedules import Linear
from kdlab.teaching import Fast, TeacherCache

ON_LOGITS_OR_EMBEDDING = ["kd", "rkd", "crd"]


def knowledge(method: str) -> dict[str, Any]:
    """The arguments of a Distiller that say what is learnt; numbers as in ``configs/knowledge/METHOD.yaml``."""
    soft = {"kd": Knowledge(SoftTargets(4.0), weight=0.9)}
    at = {"at": Knowledge(AttentionTransfer(), weight=1000.0, student_layers=STAGES, teacher_layers=STAGES)}
    if method == "kd":
        return {"knowledge": soft, "task_weight": 0.1}
    if method == "kd+at":
        return {"knowledge": {**soft, **at}, "task_weight": 0.1}
    warm_up = Linear(length=20, offset=1)
    found: dict[str, dict[str, Knowledge]] = {
        "at": at,
        "rkd": {"distance": Knowledge(RKDDistance(), weight=25.0), "angle": Knowledge(RKDAngle(), weight=50.0)},
        "sp": {"sp": Knowledge(SimilarityPreserving(), 3000.0, student_layers=STAGES[2:], teacher_layers=STAGES[2:])},
        "reviewkd": {"reviewkd": Knowledge(ReviewKD(), 0.6, warm_up, student_layers=STAGES, teacher_layers=SUMS)},
        "crd": {"crd": Knowledge(CRD(negatives=16_384, temperature=0.07), weight=0.8)},
    }
    return {"knowledge": found[method]}


class Fit:
    """A contestant whose turn is a short fit of one module by a new Trainer.

    Forms: ``plain`` (the teacher as it is), ``bare`` (plain, without bar and logger), ``fast`` (the teacher as timing
    chooses, the student in channels_last and, where that is faster, in bf16), ``cached`` (logits and embeddings from
    disk), ``cached+fast``.
    """

    def __init__(self, method: str, form: str, setting: Setting, folder: Path) -> None:
        self.name, self.setting, self.folder = f"{method}/{form}", setting, folder
        self.lean = form == "bare"
        self.clock = Clock(setting)
        fast = "fast" in form
        bf16 = fast and student_in_bf16(setting)
        self.needs = "bf16" if fast and not bf16 else None
        self.precision = "bf16-mixed" if bf16 else "32-true"
        cached = "cached" in form
        cache = TeacherCache(str(folder / "cache"), dtype="float32", views=1) if cached else None
        student, teacher = networks()
        self.teacher = Untouched(teacher)
        options: dict[str, Any] = {
            "teacher_fast": Fast(precision="auto", timed=str(folder / "teacher_fast.json")) if fast else None,
            "teacher_cache": cache,
            "channels_last": fast,
        }
        self.module = Distiller(student, teacher, **knowledge(method), **options)
        self.data = RandomImages(self.clock, batch_size=setting.batch)
        self.data.setup()  # the images are not part of a method's memory
        if cached:  # the first fit fills what the timed ones read: batches are the same in every fit
            self.turn(setting.steps)

    def turn(self, steps: int) -> Clock:
        """Fit for the warm-up, ``steps`` timed steps and one more, whose ask ends the last of them."""
        self.clock.steps = steps
        with tempfile.TemporaryDirectory(dir=self.folder) as runs:
            fit(self.module, self.data, WARM + steps + 1, Path(runs), self.setting, self.lean, self.precision)
        return self.clock

    def complaints(self) -> list[str]:
        """What is wrong with the teacher after all turns."""
        return self.teacher.complaints()


def fit(
    module: pl.LightningModule,
    data: Any,
    steps: int,
    runs: Path,
    setting: Setting,
    lean: bool,
    precision: Any = None,
    epochs: int = 1,
) -> None:
    """Fit epochs of ``steps`` steps, each with validation and a checkpoint; with bar and CSV log unless ``lean``."""
    bar = StudentBar(console_kwargs={"file": io.StringIO(), "force_terminal": True, "width": 120})
    options: dict[str, Any] = LAST
    checkpoint = ModelCheckpoint(dirpath=runs / "checkpoints" if lean else None, **options)
    trainer = pl.Trainer(
        accelerator="gpu" if setting.device.type == "cuda" else "cpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        limit_train_batches=steps,
        num_sanity_val_steps=0,
        default_root_dir=runs,
        logger=False if lean else CSVLogger(runs, name=""),
        callbacks=[checkpoint] if lean else [checkpoint, bar],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=not lean,
        enable_model_summary=False,
    )
    trainer.fit(module, **({"datamodule": data} if isinstance(data, pl.LightningDataModule) else data))


def forms(methods: list[str]) -> list[tuple[str, str]]:
    """Every method with each form that makes sense for it."""
    found = [(method, "plain") for method in methods]
    found += [(method, "bare") for method in methods if method in ("kd", "kd+at")]
    found += [(method, "fast") for method in methods]
    return found + [
        (method, form) for method in methods if method in ON_LOGITS_OR_EMBEDDING for form in ("cached", "cached+fast")
    ]


class Said(logging.Handler):
    """Keeps what kdlab says of itself, each sentence once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a sentence."""
        if (text := record.getMessage()) not in self.sentences:
            self.sentences.append(text)


def quieten() -> Said:
    """Keep Lightning's messages off the screen, and collect kdlab's."""
    said = Said()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("kdlab").addHandler(said)
    logging.getLogger("kdlab").setLevel(logging.INFO)
    logging.getLogger("kdlab").propagate = False
    warnings.filterwarnings("ignore")
    torch.set_float32_matmul_precision("highest")
    return said
