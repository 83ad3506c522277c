"""An on-policy run that is killed goes on bit for bit."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from kdlab.data import TextData
from tests.modules.test_resume import Die
from tests.modules.tiny import same, trainer, weights
from tests.teaching.test_on_policy import completions, distiller, lm
from tests.tiny_transformers import tokenizer_folder

pytestmark = pytest.mark.nightly


def a_run(folder: Path, texts: str, tokenizer: str, die_at: int | None = None) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    last = folder / "last.ckpt"
    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=3)
    module = distiller(None, lm(resid_pdrop=0.1).train())
    data = TextData(
        texts,
        tokenizer,
        task="causal",
        text="prompt",
        pair="completion",
        batch_size=4,
        cache=None,
        group_by_length=True,
    )
    run = trainer(3, callbacks=[checkpoint, Die(die_at)], enable_checkpointing=True)
    pl.seed_everything(5, verbose=False)
    run.fit(module, datamodule=data, ckpt_path=last if last.exists() else None)
    return weights(module.student)


def test_a_killed_run_has_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    texts, tokenizer = completions(tmp_path), tokenizer_folder(tmp_path / "tokenizer")
    process = multiprocessing.get_context("fork").Process(target=a_run, args=(tmp_path / "killed", texts, tokenizer, 8))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL  # in epoch 1 after batch 4 of 4; the last checkpoint is from batch 2
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 6
    resumed, whole = (a_run(tmp_path / name, texts, tokenizer) for name in ("killed", "whole"))
    assert same(whole, resumed)
