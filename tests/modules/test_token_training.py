"""Trainings on token logits: chunks, positions that count, accumulated batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from kdlab.knowledge import Knowledge
from kdlab.losses import ULD, ForwardKL, SoftTargets
from kdlab.losses.tokens import TokenCrossEntropy, next_token_labels
from kdlab.modules import Distiller
from kdlab.outputs import Batch, factored, observe
from tests.modules.tiny import trainer as tiny_trainer

VOCABULARY, LENGTH = 31, 6


class Tiny(nn.Module):
    """A network that reads one token and predicts the next."""

    def __init__(self, width: int, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(VOCABULARY, width), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.mix(self.embed(input_ids)).tanh())}


def sequences(count: int = 8) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = torch.tensor([6, 2, 4, 3, 6, 6, 2, 2])[:count]
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = next_token_labels(tokens, mask)
    return [{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in zip(tokens, mask, labels, strict=True)]


def networks(teacher_vocabulary: int = VOCABULARY) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(1)
    return Tiny(8), Tiny(12, teacher_vocabulary)


def trained(loss: nn.Module, task: nn.Module, batch: int = 4, data: object = None, **options: object) -> nn.Module:
    """The student after an epoch, in double precision."""
    student, teacher = networks(options.pop("teacher_vocabulary", VOCABULARY))
    module = Distiller(
        student,
        teacher,
        {"tokens": Knowledge(loss, 0.5)},
        task=task,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    trainer = tiny_trainer(precision="64-true", log_every_n_steps=1, **options)
    trainer.fit(module, DataLoader(data or sequences(), batch_size=batch))
    return student


def difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def test_chunks_train_the_same_student_without_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = trained(ForwardKL(), TokenCrossEntropy())
    computed = []
    dense = factored.FactoredLogits.dense
    monkeypatch.setattr(factored.FactoredLogits, "dense", lambda self: computed.append(len(self)) or dense(self))
    chunked = trained(ForwardKL(chunk_size=3), TokenCrossEntropy(chunk_size=3))
    assert difference(eager, chunked) < 1e-14
    assert difference(eager, networks()[0].double()) > 1e-3
    # A chunk of the teacher's has at most 3 rows; the accuracy of the log goes through all rows, 64 at a time.
    assert computed
    assert max(size for size in computed if size != 4 * LENGTH) <= 3


def test_a_reader_without_chunks_computes_the_logits() -> None:
    eager = trained(SoftTargets(1.0), TokenCrossEntropy())
    assert difference(eager, trained(SoftTargets(1.0), TokenCrossEntropy(chunk_size=3))) < 1e-14


def test_accumulated_batches_count_by_their_labels() -> None:
    whole = trained(ForwardKL(), TokenCrossEntropy(), batch=4)
    parts = trained(ForwardKL(), TokenCrossEntropy(), batch=1, accumulate_grad_batches=4)
    assert difference(whole, parts) < 1e-14
    assert difference(whole, networks()[0].double()) > 1e-3


def test_clipping_sees_the_weighted_gradient() -> None:
    options = {"gradient_clip_val": 0.1}
    whole = trained(ForwardKL(), TokenCrossEntropy(), batch=4, **options)
    parts = trained(ForwardKL(), TokenCrossEntropy(), batch=2, accumulate_grad_batches=2, **options)
    assert difference(whole, parts) < 1e-14


@pytest.mark.parametrize("positions", ["labeled", "attended"])
def test_knowledge_selects_the_positions(positions: str) -> None:
    """The term of a step is the loss on the rows that a mask of its own would choose."""
    student, teacher = (each.double() for each in networks())
    rows = sequences(4)
    batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    module = Distiller(student, teacher, {"kl": Knowledge(ForwardKL(positions=positions))}, task=TokenCrossEntropy())
    trainer = tiny_trainer(precision="64-true")
    inputs = Batch.of(batch).inputs
    seen = [observe(copy.deepcopy(network), inputs).logits for network in (student, teacher)]
    counted = batch["labels"] != -100 if positions == "labeled" else batch["attention_mask"].bool()
    p, q = (z[counted].softmax(-1) for z in reversed(seen))
    trainer.fit(module, DataLoader(rows, batch_size=4))
    expected = (p * (p / q).log()).sum(-1).mean().item()
    assert module.dry_run.terms["kl"] == pytest.approx(expected, rel=1e-10)


def test_other_vocabularies_train_with_uld() -> None:
    student = trained(ULD(), TokenCrossEntropy(), teacher_vocabulary=40)
    assert difference(student, networks()[0].double()) > 1e-3


def test_a_batch_without_labels_gives_no_gradient() -> None:
    rows = [{**row, "labels": torch.full_like(row["labels"], -100)} for row in sequences(4)]
    student = trained(ForwardKL(chunk_size=2), TokenCrossEntropy(chunk_size=2), data=rows, accumulate_grad_batches=1)
    assert difference(student, networks()[0].double()) == 0
