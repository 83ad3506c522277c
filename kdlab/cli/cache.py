"""``kdlab cache``: a file of a recipe's own teacher's outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from kdlab.config.first_step import fit_to_first_step
from kdlab.config.lightning_cli import QUIET, build
from kdlab.errors import InputError
from kdlab.modules.base import DistillationModule
from kdlab.modules.output_writer import Choice, write_outputs


def cache(
    overrides: list[str],
    out: str = "teacher.safetensors",
    views: int = 1,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    top_k: int = 0,
    hidden: bool = False,
    embedding: bool = False,
) -> None:
    """Write the outputs of a recipe's teacher on every training sample to a file for kdlab.members.Stored.

    kdlab cache RECIPE [-c CONFIG ...] --out=FILE [--KEY=VALUE ...] takes the options of kdlab fit. In float32 a
    training with the file is the training with the teacher; float16 rounds by 2^-11 of a number, bfloat16 by 2^-8.

    Args:
        overrides: a config, and options of ``kdlab fit``
        out: the file, ``.safetensors``; it is written whole or not at all
        views: epochs of augmentation that are written, for trainings with data.distinct_epochs of the same number
        dtype: of the numbers
        top_k: of each sample or token, only so many most probable classes with their log-probabilities; 0 for all
        hidden: of language models, last hidden states and the head instead of logits: exact, and far smaller
        embedding: embeddings too
    """
    path = Path(out)
    if path.suffix != ".safetensors":
        raise InputError(f"--out is a .safetensors file, not {out!r}.")
    if top_k and hidden:
        raise InputError("--hidden keeps all that --top-k would choose from: give one of them.")
    if views < 1:
        raise InputError(f"--views is at least 1, not {views}.")
    first = ["-c"] if overrides and not overrides[0].startswith("-") else []
    cli = build([*first, *overrides, *QUIET, "--trainer.num_sanity_val_steps=0"], run=False, save_config=False)
    if not isinstance(cli.model, DistillationModule):
        raise InputError(f"kdlab cache takes a config of a kdlab module, not of {type(cli.model).__name__}.")
    if views > 1:
        cli.datamodule.distinct_epochs = views
    choice = Choice(views, getattr(torch, dtype), top_k or None, hidden, embedding)
    sizes: list[int] = []
    fit_to_first_step(cli, lambda: sizes.append(write_outputs(cli.model, path, choice)))
    print(f"{path}: {sizes[0]:,} bytes. A training uses it with")
    print(f"  --model.teacher=kdlab.members.Stored --model.teacher.path={path}")
