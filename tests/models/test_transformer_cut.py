"""Students cut out of transformers: layers, widths and vocabularies, against slices by hand."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.errors import InputError
from kdlab.models import hugging_face, student_from_teacher
from kdlab.models.transformer_cut import sizes_of
from kdlab.outputs import observe
from kdlab.tokenization import cut_tokenizer, load_tokenizer, vocabulary_of
from tests.tiny_transformers import SENTENCES, texts, tiny, tokenizer_folder

FAMILIES = {
    "Bert": "bert.encoder.layer",
    "Roberta": "roberta.encoder.layer",
    "DistilBert": "distilbert.transformer.layer",
    "GPT2": "transformer.h",
    "Llama": "model.layers",
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("layers", "taken"), [(2, [0, 3]), ([1, 2, 3], [1, 2, 3])])
def test_depth_cut_has_the_teachers_layers(kind: str, layers: Any, taken: list[int]) -> None:
    teacher = tiny(kind)
    before = copy.deepcopy(teacher.state_dict())
    student: Any = student_from_teacher(teacher, layers)
    assert all(module.training for module in student.modules())
    # By hand: the teacher without its other layers.
    expected = copy.deepcopy(teacher)
    blocks = expected.get_submodule(FAMILIES[kind])
    parent, _, name = FAMILIES[kind].rpartition(".")
    setattr(expected.get_submodule(parent), name, torch.nn.ModuleList(blocks[layer] for layer in taken))
    expected.config.num_hidden_layers = len(taken)
    inputs: dict[str, Any] = texts() | ({"use_cache": False} if kind in ("GPT2", "Llama") else {})
    torch.testing.assert_close(student(**inputs).logits, expected(**inputs).logits, rtol=0, atol=0)
    assert student.config.num_hidden_layers == len(taken)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    shared = {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not shared


@pytest.mark.parametrize("kind", FAMILIES)
def test_width_cut_takes_the_first_heads_and_dimensions(kind: str) -> None:
    teacher = tiny(kind)
    student: Any = student_from_teacher(teacher, 2, hidden=16, intermediate=12)
    assert student.config.num_attention_heads == 2
    assert student(**texts()).logits.isfinite().all()
    layer = student.get_submodule(f"{FAMILIES[kind]}.1").state_dict()
    last = teacher.get_submodule(f"{FAMILIES[kind]}.3").state_dict()
    if kind == "GPT2":
        block = last["attn.c_attn.weight"].view(32, 3, 32)[:16, :, :16]
        torch.testing.assert_close(layer["attn.c_attn.weight"].view(16, 3, 16), block)
        assert layer["mlp.c_fc.weight"].shape == (16, 12)
    else:
        query = next(name for name in layer if name.endswith(("query.weight", "q_proj.weight", "q_lin.weight")))
        torch.testing.assert_close(layer[query], last[query][:16, :16])


def test_width_cut_with_narrower_heads_keeps_each_heads_start() -> None:
    teacher = tiny("Bert")
    student: Any = student_from_teacher(teacher, hidden=16, heads=4)
    query = teacher.bert.encoder.layer[0].attention.self.query.weight
    output = teacher.bert.encoder.layer[0].attention.output.dense.weight
    small = student.bert.encoder.layer[0].attention
    torch.testing.assert_close(small.self.query.weight, query.view(4, 8, 32)[:, :4, :16].reshape(16, 16))
    torch.testing.assert_close(small.output.dense.weight, output.view(32, 4, 8)[:16, :, :4].reshape(16, 16))


def test_what_is_smaller_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    teacher = tiny("Bert")
    with caplog.at_level(logging.INFO, "kdlab.models"):
        student = student_from_teacher(teacher, 2)
    old, new = sizes_of(teacher), sizes_of(student)
    assert old.embeddings == new.embeddings == (83 + 64 + 2) * 32
    assert old.layers == 2 * new.layers
    assert new.total == sum(p.numel() for p in student.parameters())
    assert (
        f"embeddings {old.embeddings:,} of {old.embeddings:,}, layers {new.layers:,} of {old.layers:,}" in caplog.text
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 5}, "layers=5 is out of range: the teacher has 4 layers"),
        ({"layers": [0, 4]}, "the teacher has 4 layers, 0 to 3"),
        ({"layers": []}, "out of range"),
        ({"hidden": 64}, "hidden=64 is out of range: the teacher has 32"),
        ({"heads": 8}, "heads=8 is out of range: the teacher has 4"),
        ({"heads": 3}, "3 heads do not divide hidden=32"),
        ({"intermediate": 99}, "intermediate=99 is out of range: the teacher has 48"),
    ],
)
def test_sizes_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        student_from_teacher(tiny("Bert"), **options)


def test_a_student_of_a_sentence_encoder_is_one(tmp_path: Path) -> None:
    tiny("Bert", "Model").save_pretrained(tmp_path)
    teacher: Any = hugging_face(str(tmp_path), "embedding", pooling="first")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    student: Any = student_from_teacher(teacher, layers=[1, 3], hidden=16)
    assert (student.pooling, len(student.network.encoder.layer), len(teacher.network.encoder.layer)) == ("first", 2, 4)
    vectors, inputs = observe(student.eval(), texts()).logits, texts()
    torch.testing.assert_close(vectors, student.network(**inputs).last_hidden_state[:, 0])
    query = "network.encoder.layer.{}.attention.self.query.weight"
    torch.testing.assert_close(student.state_dict()[query.format(1)], before[query.format(3)][:16, :16])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_network_without_layers_cannot_be_cut() -> None:
    with pytest.raises(InputError, match="Linear is no transformer of Hugging Face"):
        student_from_teacher(torch.nn.Linear(2, 2), 1)


@pytest.fixture
def cut(tmp_path: Path) -> tuple[str, str]:
    """A saved masked language model with its tokenizer, and the folder of its cut tokenizer."""
    whole = tokenizer_folder(tmp_path / "whole")
    tiny("Bert", "ForMaskedLM", vocab_size=88).save_pretrained(whole)  # 5 rows of padding
    small = str(tmp_path / "small")
    cut_tokenizer(whole, [text for text, _ in SENTENCES], 70, small)
    return whole, small


def test_cut_vocabulary_is_the_same_function_on_its_tokens(cut: tuple[str, str]) -> None:
    whole, small = cut
    full: Any = hugging_face(whole, "masked-lm").eval()
    less: Any = hugging_face(whole, "masked-lm", vocabulary=small).eval()
    old, new = (load_tokenizer(folder) for folder in cut)
    ids = vocabulary_of(old), vocabulary_of(new)
    assert less.config.vocab_size == len(ids[1]) == 70
    old_ids = [ids[0][token] for token in sorted(ids[1], key=ids[1].__getitem__)]
    given = new("the film is un ##known", return_tensors="pt")
    tokens = new.convert_ids_to_tokens(given["input_ids"][0])
    inputs = {"input_ids": torch.tensor([[ids[0][token] for token in tokens]])}
    logits = full(**inputs).logits[..., old_ids]
    torch.testing.assert_close(less(given["input_ids"]).logits, logits, rtol=0, atol=1e-6)
    assert less.config.pad_token_id == ids[1]["[PAD]"]


def test_student_with_a_cut_vocabulary(cut: tuple[str, str]) -> None:
    whole, small = cut
    teacher: Any = hugging_face(whole, "masked-lm")
    student: Any = student_from_teacher(teacher, 1, vocabulary=small)
    assert student.bert.embeddings.word_embeddings.weight.shape == (70, 32)
    assert student.cls.predictions.bias.shape == (70,)
    assert student.cls.predictions.decoder.weight is student.bert.embeddings.word_embeddings.weight
