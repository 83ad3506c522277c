"""Networks of transformers from a folder: weights, new parts, padded vocabularies, sentence vectors, adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.errors import InputError
from kdlab.models import bilstm, hugging_face, load_weights, lora, save_weights, static_encoder, with_weights
from kdlab.models.hugging_face import new_parameters
from kdlab.models.lora import merged
from kdlab.outputs import observe
from tests.tiny_transformers import TOKENS, texts, tiny, tokenizer_folder


@pytest.fixture
def folder(tmp_path: Path) -> str:
    tiny("Bert").save_pretrained(tmp_path / "bert")
    return tokenizer_folder(tmp_path / "bert")


def test_network_of_a_folder_is_what_was_saved(folder: str) -> None:
    network: Any = hugging_face(folder, local_files_only=True)
    assert all(module.training for module in network.modules())  # else Lightning trains it without dropout
    network.eval()
    assert new_parameters(network) == ()
    torch.testing.assert_close(network(**texts()).logits, tiny("Bert")(**texts()).logits, rtol=0, atol=0)


def test_weights_files_and_random_weights(folder: str, tmp_path: Path) -> None:
    other: Any = hugging_face(folder, pretrained=False, num_labels=3)
    assert other.classifier.out_features == 3
    save_weights(other, tmp_path / "other.safetensors")
    again: Any = hugging_face(folder, num_labels=3, weights=str(tmp_path / "other.safetensors"))
    assert torch.equal(again.classifier.weight, other.classifier.weight)
    assert torch.equal(again.bert.pooler.dense.weight, other.bert.pooler.dense.weight)


def test_parts_without_weights_are_named(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    network: Any = hugging_face(folder, "token-classification", config={"num_hidden_layers": 2})
    assert new_parameters(network) == ()  # the classifier has the same name and shape
    tiny("Bert", "Model").save_pretrained(Path(folder) / "base")
    with caplog.at_level("INFO"):
        base: Any = hugging_face(str(Path(folder) / "base"))
    assert [record.name for record in caplog.records] == ["kdlab.models"], "transformers' own table is left out"
    assert "classifier.bias, classifier.weight" in caplog.text
    assert new_parameters(base) == new_parameters(copy.deepcopy(base)) == ("classifier.weight",)
    save_weights(tiny("Bert"), Path(folder) / "trained.safetensors")  # with the same bias, zeros
    assert new_parameters(with_weights(copy.deepcopy(base), str(Path(folder) / "trained.safetensors"))) == ()
    with torch.no_grad():
        base.classifier.weight[0, 0] += 1
    assert new_parameters(base) == (), "what was trained is new no more"


def test_new_parts_of_a_sentence_encoder_are_named(folder: str) -> None:
    bare = tiny("Bert", "Model")
    bare.pooler = None
    bare.save_pretrained(Path(folder) / "base")
    encoder = hugging_face(str(Path(folder) / "base"), "embedding")
    assert new_parameters(encoder) == ("network.pooler.dense.weight",)


def test_unknown_folders_and_tasks_are_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="transformers cannot build"):
        hugging_face(str(tmp_path), local_files_only=True)
    with pytest.raises(InputError, match="task is 'sequence-classification' or"):
        hugging_face(str(tmp_path), "summaries")


@pytest.mark.parametrize(("kind", "head"), [("Bert", "ForMaskedLM"), ("GPT2", "ForCausalLM"), ("Llama", "ForCausalLM")])
def test_padded_vocabulary_is_trimmed_to_the_tokenizer(kind: str, head: str, tmp_path: Path) -> None:
    whole = tiny(kind, head, vocab_size=96)
    whole.save_pretrained(tmp_path)
    folder, task = tokenizer_folder(tmp_path), "masked-lm" if kind == "Bert" else "causal-lm"
    trimmed: Any = hugging_face(folder, task).eval()
    inputs = texts(vocabulary=70)
    expected = whole(**inputs).logits
    seen = observe(trimmed, inputs)
    assert expected.shape[-1] == 96
    torch.testing.assert_close(seen.logits, expected[..., : seen.logits.shape[-1]], rtol=0, atol=1e-6)
    assert seen.logits.shape[-1] == trimmed.config.vocab_size == TOKENS
    padded: Any = hugging_face(folder, task, trim_vocabulary=False)
    assert padded.config.vocab_size == 96


def test_sentence_vectors_are_means_of_the_tokens_that_count(tmp_path: Path) -> None:
    base = tiny("Bert", "Model")
    base.save_pretrained(tmp_path)
    inputs = texts()
    states, mask = base(**inputs).last_hidden_state, inputs["attention_mask"]
    expected = torch.stack([row[: int(count)].mean(0) for row, count in zip(states, mask.sum(1), strict=True)])
    encoder = hugging_face(str(tmp_path), "embedding").eval()
    seen = observe(encoder, inputs, ["hidden_states.4", "network.encoder.layer.1"])
    torch.testing.assert_close(seen.logits, expected)
    assert seen.embedding is seen.logits
    assert seen.layers[0].shape == (3, 7, 32)
    first = hugging_face(str(tmp_path), "embedding", pooling="first").eval()
    torch.testing.assert_close(observe(first, inputs).logits, states[:, 0])


def test_static_encoder_is_the_mean_of_token_vectors(tmp_path: Path) -> None:
    teacher, inputs = tiny("Bert", "Model"), texts()
    table = teacher.embeddings.word_embeddings.weight.detach().clone()
    network = static_encoder(teacher=teacher).eval()
    seen = observe(network, inputs)
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [table[ids[:length]].double().mean(0) for ids, length in zip(inputs["input_ids"], lengths, strict=True)]
    torch.testing.assert_close(seen.logits.double(), torch.stack(rows), rtol=1e-6, atol=1e-7)
    assert seen.embedding is seen.logits
    with torch.no_grad():
        network.embeddings.weight.zero_()
    assert torch.equal(teacher.embeddings.word_embeddings.weight, table), "the teacher's table is not the student's"
    save_weights(network, tmp_path / "static.safetensors")
    again = static_encoder(83, 32, weights=str(tmp_path / "static.safetensors"))
    assert not again.embeddings.weight.any()
    inputs["attention_mask"][2] = 0  # no token at all
    assert not observe(network, inputs).logits[2].any()
    with pytest.raises(InputError, match="needs vocabulary and width"):
        static_encoder(83)
    with pytest.raises(InputError, match=r"\(83, 32\), not \(80, 32\)"):
        static_encoder(80, teacher=teacher)


def test_bilstm_reads_a_text_without_its_padding() -> None:
    network, inputs = bilstm(83, 2, width=12, hidden=8, inner=10).eval(), texts()
    seen = observe(network, inputs, ["hidden_states.1"])
    assert seen.embedding is not None
    assert (seen.logits.shape, seen.embedding.shape, seen.layers[0].shape) == ((3, 2), (3, 10), (3, 7, 16))
    alone = {name: value[1:2, :3] for name, value in inputs.items()}
    torch.testing.assert_close(observe(network, alone).logits[0], seen.logits[1])
    inputs["attention_mask"][2] = 0  # no token at all
    assert observe(network, inputs).logits.isfinite().all()
    with pytest.raises(InputError, match="packing"):
        network(inputs["input_ids"], torch.zeros(3, 1, 7, 7))


def test_lora_trains_adapters_alone_and_merges(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    network: Any = lora(tiny("Bert"), rank=2, targets=["query", "value"])
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in trained)
    assert sum("lora_" in name for name in trained) == 4 * 2 * 2
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    network.eval()
    seen = observe(network, texts(), ["hidden_states.2"])
    assert seen.embedding is not None
    assert seen.embedding.shape == (3, 32)
    whole = merged(network)
    assert not any("lora" in name for name in whole.state_dict())
    torch.testing.assert_close(observe(whole, texts()).logits, seen.logits, rtol=1e-5, atol=1e-6)
    assert (observe(tiny("Bert"), texts()).logits - seen.logits).abs().max() > 1e-3
    save_weights(network, tmp_path / "lora.safetensors")
    again = load_weights(lora(tiny("Bert"), rank=2, targets=["query", "value"]).eval(), tmp_path / "lora.safetensors")
    torch.testing.assert_close(observe(again, texts()).logits, seen.logits, rtol=0, atol=0)
