"""A stored and an on-policy teacher: two processes (gloo, CPU) train as one does on the same global batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from kdlab import Distiller, Knowledge
from kdlab.data import TextData
from kdlab.losses import ForwardKL, GeneralizedJSD
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.members import Stored
from kdlab.modules.output_writer import Choice
from kdlab.outputs import Batch
from kdlab.teaching import OnPolicy
from tests.modules.test_position_weights_ddp import Data
from tests.modules.test_stored_tokens import network, texts, written
from tests.modules.tiny import sgd, trainer, weights
from tests.teaching.test_on_policy import Rows, lm
from tests.tiny_transformers import SENTENCES, sentences, tokenizer_folder

pytest.importorskip("transformers")
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]


def trained(module: Distiller, data: Any, processes: int, steps: int, **options: Any) -> dict[str, Tensor]:
    strategy: dict[str, Any] = {"strategy": "ddp_fork", "devices": processes} if processes > 1 else {}
    pl.seed_everything(0, verbose=False)
    trainer(max_steps=steps, precision="64-true", **strategy, **options).fit(module, datamodule=data)
    return weights(module.student)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("choice", [Choice(), Choice(hidden=True)], ids=["logits", "hidden"])
def test_a_stored_teacher_in_two_processes_equals_one(choice: Choice, tmp_path: Path) -> None:
    folders = sentences(tmp_path / "data", SENTENCES * 2), tokenizer_folder(tmp_path / "tokenizer")
    file = written(tmp_path / "t.safetensors", texts(folders), choice)

    def fitted(teacher: Any, processes: int) -> dict[str, Tensor]:
        data: TextData = texts(folders)
        knowledge = {"kl": Knowledge(ForwardKL(chunk_size=4))}
        task = TokenCrossEntropy(chunk_size=4)
        student = network(0).double().train()  # as which two processes give their weights back
        module = Distiller(student, teacher, knowledge, task=task, task_weight=0.5, optimizer=sgd)
        return trained(module, data, processes, 5)  # more than an epoch, whose last batch is smaller

    one = fitted(Stored(file.path), 1)
    assert difference(one, fitted(Stored(file.path), 2)) < 1e-9  # its head multiplies in float32, in other chunks
    live = fitted(network(1), 2)  # in float64, where the file has float32
    assert difference(one, live) < 1e-5
    assert difference(one, fitted(network(2), 2)) > 1e-3


class Count(pl.Callback):
    """Writes down which batches each process generated."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        rewrite, drawn = pl_module.plan.rewrite, list[bool]()

        def noted(batch: Batch) -> Batch:
            after: Batch = rewrite(batch)
            drawn.append(after.is_generated)
            torch.save(drawn, self.folder / f"{trainer.world_size}-{trainer.global_rank}.pt")
            return after

        object.__setattr__(pl_module.plan, "rewrite", noted)


@pytest.mark.parametrize("generator", ["student", "teacher"])
def test_on_policy_in_two_processes_equals_one(generator: Any, tmp_path: Path) -> None:
    """Without sampling, whose draws differ between processes; continuations end at different lengths."""
    ends = []
    for processes in (1, 2):
        options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 5, "stop_tokens": [*range(0, 83, 4)]}
        teaching = OnPolicy(lm(seed=1), share=0.5, generator=generator, **options)
        knowledge = {"jsd": Knowledge(GeneralizedJSD(0.5))}
        module = Distiller(lm().double().train(), teaching, knowledge, task=TokenCrossEntropy(), optimizer=sgd)
        data = Data(Rows(24))
        ends.append(trained(module, data, processes, 6, use_distributed_sampler=False, callbacks=[Count(tmp_path)]))
    drawn = [torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]
    assert drawn[0] == drawn[1] == drawn[2]
    assert 0 < sum(drawn[0]) < 6
    assert difference(*ends) < 1e-11
