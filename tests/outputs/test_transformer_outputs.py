"""Hidden states and attentions are requested where they are tapped; embeddings are what the classifier reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, classifier_of, observe
from kdlab.outputs.task_format import TaskFormat
from tests.tiny_transformers import texts, tiny

FAMILIES = ["Bert", "Roberta", "DistilBert", "GPT2", "Llama"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_taps_of_states_and_attentions_are_requested(kind: str) -> None:
    network, inputs = tiny(kind), texts()
    plain = network(**inputs)
    assert plain.hidden_states is None
    assert network.config._attn_implementation == "sdpa"
    seen = observe(network, inputs, ["hidden_states.0", "hidden_states.2", "attentions.1"])
    assert [tuple(layer.shape) for layer in seen.layers] == [(3, 7, 32), (3, 7, 32), (3, 4, 7, 7)]
    torch.testing.assert_close(seen.logits, plain.logits)
    torch.testing.assert_close(seen.layers[2][0].sum(-1), torch.ones(4, 7))
    state = network(**inputs, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(seen.layers[1], state, rtol=0, atol=0)


def test_without_such_taps_nothing_is_requested() -> None:
    network = tiny("Bert")
    assert Observer(network, ["bert.encoder.layer.1"])._requests == {}
    observe(network, texts(), ["bert.encoder.layer.1", "hidden_states.1"])
    assert network.config._attn_implementation == "sdpa"


def test_attentions_that_cannot_be_had_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = tiny("Bert")
    monkeypatch.setattr(type(network), "set_attn_implementation", lambda self, name: None)
    with pytest.raises(InputError, match="'sdpa': build it with attn_implementation='eager'"):
        Observer(network, ["attentions.0"])


@pytest.mark.parametrize("kind", FAMILIES)
def test_embedding_is_what_the_classifier_reads(kind: str) -> None:
    network, inputs = tiny(kind), texts()
    seen = observe(network, inputs)
    assert seen.logits.shape == (3, 2)
    assert seen.embedding is not None
    assert seen.embedding.shape == (3, 32)
    classifier = classifier_of(network)
    assert isinstance(classifier, nn.Linear)
    torch.testing.assert_close(classifier(seen.embedding), seen.logits)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("Bert", "ForMaskedLM"), ("DistilBert", "ForMaskedLM"), ("GPT2", "ForCausalLM"), ("Llama", "ForCausalLM")],
)
def test_embedding_of_a_language_model_enters_its_head(kind: str, head: str) -> None:
    network, inputs = tiny(kind, head), texts()
    seen = observe(network, inputs)
    assert seen.embedding is not None
    assert seen.embedding.shape == (3, 7, 32)
    assert classifier_of(network) is network.get_output_embeddings()
    torch.testing.assert_close(network.get_output_embeddings()(seen.embedding), seen.logits)


def test_mask_of_pairs_gives_the_positions_that_count() -> None:
    blocks = torch.tensor([[0.0, -1e4, -1e4], [-1e4, 0.0, -1e4], [0.0, -1e4, -1e4]])[None, None]
    for mask in (blocks, blocks >= 0):
        batch = Batch({"attention_mask": mask}, torch.zeros(1, 3))
        assert batch.mask is not None
        assert batch.mask.tolist() == [[True, True, False]]


def test_an_all_masked_text_has_no_rows() -> None:
    network, inputs = tiny("Bert", "ForTokenClassification"), texts()
    inputs["attention_mask"][1] = 0
    seen = observe(network, inputs)
    assert seen.logits.isfinite().all()
    batch = Batch(inputs, torch.zeros(3, 7, dtype=torch.int64))
    rows = TaskFormat("classes", -1, -100).counted(21, batch.target, batch.mask)
    assert rows is not None
    assert rows.view(3, 7).sum(1).tolist() == [7, 0, 4]
