"""Every shipped knowledge for text trains small networks of Hugging Face's."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from kdlab.knowledge import Knowledge
from kdlab.losses.tokens import next_token_labels
from kdlab.modules import Distiller
from tests.config_files import CONFIGS, names
from tests.modules.tiny import trainer
from tests.tiers import tiered

CLASSIFIERS = {"tinybert", "pkd", "embed_distill", "margin_mse", "distill_kl"}
VOCABULARY, LENGTH = 70, 6


def built(value: Any) -> Any:
    """What a config says, with every class path called."""
    if isinstance(value, dict) and "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**built(value.get("init_args", {})))
    if isinstance(value, dict):
        return {key: built(each) for key, each in value.items()}
    return value


def network(layers: int, classifier: bool, seed: int) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=12,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        num_labels=5,
        output_hidden_states=True,
        output_attentions=True,
        attn_implementation="eager",
    )
    kind = transformers.BertForSequenceClassification if classifier else transformers.BertForMaskedLM
    return kind(config)


def batches(classifier: bool) -> DataLoader[Any]:
    tokens = torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(LENGTH) < torch.tensor([[6], [3], [4], [5]])).long()
    labels = torch.arange(4) if classifier else next_token_labels(tokens, mask)
    rows = zip(tokens, mask, labels, strict=True)
    return DataLoader([{"input_ids": t, "attention_mask": m, "labels": y} for t, m, y in rows], batch_size=4)


@pytest.mark.parametrize("name", tiered(names("knowledge/text"), ["distilbert", "forward_kl", "tinybert", "uld"]))
def test_knowledge_for_text(name: str) -> None:
    options = yaml.safe_load((CONFIGS / f"knowledge/text/{name}.yaml").read_text())["model"]["init_args"]
    knowledge = {key: Knowledge(**built(value)) for key, value in options.pop("knowledge").items()}
    classifier = name in CLASSIFIERS
    networks = network(4 if name == "tinybert" else 6, classifier, 1), network(12, classifier, 2)
    module = Distiller(*networks, knowledge, optimizer=lambda p: torch.optim.SGD(p, lr=0.01), **built(options))
    trainer(max_steps=2, max_epochs=14).fit(module, batches(classifier))
    terms = module.dry_run.terms
    assert {*terms} >= {*knowledge}
    assert all(value > 0 for value in terms.values())
