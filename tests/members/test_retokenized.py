"""A teacher with another tokenizer: its tokens and labels, and ULD with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdlab import Distiller, Knowledge
from kdlab.data import TextData
from kdlab.losses import ULD
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.members import Retokenized
from kdlab.outputs import Batch
from tests.modules.tiny import sgd, trainer
from tests.tiny_transformers import lines, tiny, tokenizer_folder

pytest.importorskip("transformers")
ROWS = [("the film is", "not good"), ("a", "very dull plot"), ("funny act", "or not")]


def setting(root: Path, pairs: bool) -> tuple[TextData, str, str]:
    """Texts in words; the teacher's tokenizer knows some words alone, and spells the others."""
    ours, theirs = tokenizer_folder(root / "ours"), tokenizer_folder(root / "theirs", ["the", "film", "not", "dull"])
    options: dict[str, Any] = {"task": "causal", "batch_size": 3, "cache": None}
    if pairs:
        rows = [dict(zip(("prompt", "completion"), row, strict=True)) for row in ROWS]
        options |= {"text": "prompt", "pair": "completion"}
    else:
        rows = [{"text": " ".join(row)} for row in ROWS]
        options |= {"text": "text"}
    for split in ("train", "dev"):
        lines(root / f"{split}.jsonl", rows)
    return TextData(str(root), ours, **options), ours, theirs


@pytest.mark.parametrize("pairs", [False, True])
def test_the_teacher_reads_the_same_texts(tmp_path: Path, pairs: bool) -> None:
    data, ours, theirs = setting(tmp_path, pairs)
    data.setup()
    batch = Batch.of(next(iter(data.train_dataloader())))
    member = Retokenized(tiny("GPT2", "ForCausalLM"), theirs, ours)
    seen = member.retokenized(batch)
    assert batch.index is not None
    for number, row in enumerate(batch.index.tolist()):
        first, second = ROWS[row]
        expected = member.backend(f"{first} {second}")["input_ids"]
        count = int(seen.inputs["attention_mask"][number].sum())
        assert seen.inputs["input_ids"][number, :count].tolist() == expected
        # [CLS] and [SEP] are no labels, nor is what comes before the student's first label.
        before = first if pairs else ""
        skipped = len(member.backend(before)["input_ids"]) - 1 if pairs else 1
        labels = [-100] * (skipped - 1) + expected[skipped:-1] + [-100, -100]
        assert seen.target[number, :count].tolist() == labels


@pytest.mark.full
def test_uld_compares_the_labeled_tokens_of_both(tmp_path: Path) -> None:
    data, ours, theirs = setting(tmp_path, pairs=True)
    torch.manual_seed(0)
    networks = [tiny("GPT2", "ForCausalLM", vocab_size=size).double() for size in (83, 70)]
    member = Retokenized(networks[1], theirs, ours)
    module = Distiller(networks[0].train(), member, {"uld": Knowledge(ULD())}, task=TokenCrossEntropy(), optimizer=sgd)
    data.setup()
    batch = Batch.of(next(iter(data.train_dataloader())))
    own = member.retokenized(batch)
    sides = []
    for network, seen in zip(networks, (batch, own), strict=True):
        logits = network(**seen.inputs).logits
        sides.append([row[label != -100].softmax(-1) for row, label in zip(logits, seen.target, strict=True)])
    values = []
    for q, p in zip(*sides, strict=True):
        both = [x.sort(-1, descending=True).values for x in (q, p)]
        count = min(map(len, both))
        values.append((both[0][:count] - F.pad(both[1], (0, 13))[:count]).abs().sum(-1).mean())
    trainer(1, precision="64-true", limit_val_batches=1).fit(module, datamodule=data)
    assert module.dry_run is not None
    assert module.dry_run.terms["uld"] == pytest.approx(torch.stack(values).mean().item(), rel=1e-6)
