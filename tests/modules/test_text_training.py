"""Text runs: resume mid-epoch, and what setup checks before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from kdlab import Distiller, Knowledge
from kdlab.data import TextData
from kdlab.errors import InputError
from kdlab.losses import Hint, SoftTargets
from kdlab.models import bilstm, hugging_face, lora, student_from_teacher
from tests.modules.tiny import same, sgd, trainer, weights
from tests.tiny_transformers import SENTENCES, TOKENS, sentences, tiny, tokenizer_folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sentences(tmp_path_factory.mktemp("sentences"), SENTENCES * 3)


def texts(folder: str, tokenizer: str, **options: Any) -> TextData:
    return TextData(folder, tokenizer, **{"batch_size": 8, "cache": None, **options})


def distiller(**networks: Any) -> Distiller:
    teacher = tiny("Bert")
    knowledge = {
        "soft": Knowledge(SoftTargets(2.0), 0.5),
        "attention": Knowledge(Hint(None), 1.0, student_layers=["attentions.1"], teacher_layers=["attentions.3"]),
    }
    defaults = {"student": student_from_teacher(tiny("Bert", hidden_dropout_prob=0.1), 2), "teacher": teacher}
    return Distiller(**({"knowledge": knowledge, "optimizer": sgd} | defaults | networks))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("task", ["classification", "masked"])
def test_resume_mid_epoch_is_bit_exact(task: Any, folder: str, tokenizer: str, tmp_path: Path) -> None:
    """Four batches an epoch; saved after the sixth step, in the middle of the second epoch."""

    def build() -> tuple[Distiller, TextData]:
        torch.manual_seed(3)
        data = texts(folder, tokenizer, task=task, group_by_length=True)
        if task == "classification":
            return distiller(), data
        student = student_from_teacher(tiny("Bert", "ForMaskedLM", hidden_dropout_prob=0.1), 2)
        return Distiller(student, None, task=Tokens(), optimizer=sgd), data

    whole, data = build()
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(max_steps=10, callbacks=[saved], enable_checkpointing=True).fit(whole, datamodule=data)
    again, data = build()
    trainer(max_steps=10).fit(again, datamodule=data, ckpt_path=tmp_path / "step=6.ckpt")
    assert same(weights(whole), weights(again))
    halfway, data = build()
    trainer(max_steps=6).fit(halfway, datamodule=data)
    assert not same(weights(whole), weights(halfway))


class Tokens(nn.Module):
    """Cross-entropy of logits (B, L, V)."""

    target_kind, class_axis, ignore_index = "classes", -1, -100

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def refused(module: Distiller, data: TextData) -> str:
    with pytest.raises(InputError) as caught:
        trainer(max_steps=1).fit(module, datamodule=data)
    return str(caught.value)


def test_another_tokenizer_is_refused_with_both_sizes(folder: str, tokenizer: str, tmp_path: Path) -> None:
    tiny("Bert").save_pretrained(tmp_path)
    other = tokenizer_folder(tmp_path, ["film", "is", "stranger"])
    message = refused(distiller(teacher=hugging_face(other)), texts(folder, tokenizer))
    assert f"The teacher's tokenizer ({other!r}) is not that of the data" in message
    assert f"{TOKENS - 14} tokens against {TOKENS}, and token 'film' has id 59 against 60" in message


def test_too_few_embeddings_are_refused(folder: str, tokenizer: str) -> None:
    message = refused(distiller(student=tiny("Bert", vocab_size=40).train()), texts(folder, tokenizer))
    assert message.startswith(
        f"The student has 40 embeddings, but the tokenizer {tokenizer!r} has ids up to {TOKENS - 1}"
    )


@pytest.mark.parametrize(("kind", "positions"), [("Bert", 10), ("Roberta", 8), ("GPT2", 10)])
def test_texts_longer_than_a_network_are_refused(kind: str, positions: int, folder: str, tokenizer: str) -> None:
    name = "n_positions" if kind == "GPT2" else "max_position_embeddings"
    short = tiny(kind, **{name: 10}).train()
    module = Distiller(short, None, optimizer=sgd)
    message = refused(module, texts(folder, tokenizer))  # the longest has 9 words, [CLS] and [SEP]
    assert f"The student has {positions} positions, but the longest text has 11 tokens" in message
    assert f"data.max_length={positions}" in message
    fitted = texts(folder, tokenizer, max_length=positions)
    trainer(max_steps=1).fit(module, datamodule=fitted)


def test_packing_needs_a_network_that_takes_positions(folder: str, tokenizer: str) -> None:
    data = texts(folder, tokenizer, task="masked", packing=True)
    module = Distiller(bilstm(TOKENS, TOKENS), None, task=Tokens(), optimizer=sgd)
    assert "takes no position_ids" in refused(module, data)
    packed = tiny("Bert", "ForMaskedLM").train()
    trainer(max_steps=2).fit(Distiller(packed, None, task=Tokens(), optimizer=sgd), datamodule=data)


def test_a_teacher_with_a_new_classifier_is_refused(folder: str, tokenizer: str, tmp_path: Path) -> None:
    tiny("Bert", "Model").save_pretrained(tmp_path)
    teacher = hugging_face(str(tmp_path))
    message = refused(distiller(teacher=teacher), texts(folder, tokenizer))
    assert "logits are read by knowledge 'soft', but its files have no classifier.weight" in message


def test_padded_vocabularies_that_differ_are_refused(folder: str, tokenizer: str) -> None:
    module = distiller(
        student=tiny("Bert", "ForMaskedLM").train(),
        teacher=tiny("Bert", "ForMaskedLM", vocab_size=96),
        knowledge={"soft": Knowledge(SoftTargets(), 1.0)},
        task=Tokens(),
    )
    message = refused(module, texts(folder, tokenizer, task="masked"))
    assert "the student gives 83 classes and the teacher 96" in message


@pytest.mark.parametrize("kind", ["bilstm", "lora"])
def test_other_students_learn_from_a_transformer(kind: str, folder: str, tokenizer: str) -> None:
    student: Any = bilstm(TOKENS, 2, width=12, hidden=8, inner=10)
    if kind == "lora":
        student = lora(tiny("Bert"), rank=2, targets=["query"])
    module = Distiller(student, tiny("Bert"), {"soft": Knowledge(SoftTargets(2.0), 0.5)}, optimizer=sgd)
    before = weights(module)
    run = trainer(max_steps=2, limit_val_batches=1)
    run.fit(module, datamodule=texts(folder, tokenizer))
    changed = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    if kind == "lora":
        assert changed
        assert all("lora_" in name or "modules_to_save" in name for name in changed if "metrics" not in name)
    assert any(name.startswith("student.") for name in changed)
