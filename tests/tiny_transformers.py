"""A tokenizer of a few dozen tokens, tiny transformers of several families, and small text files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = ["the", "film", "is", "not", "good", "bad", "very", "dull", "fine", "plot", "act", "or", "and", "funny", "un"]
WORDS += ["##ny", "##ly"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz.,", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
TOKENS = len({*SPECIAL, *LETTERS, *WORDS})
SENTENCES = [
    ("the film is good", 1),
    ("a bad plot", 0),
    ("very funny and fine", 1),
    ("the act is not good or funny", 0),
    ("dull", 0),
    ("a very very fine film", 1),
    ("the plot is dull and the film is bad", 0),
    ("not bad", 1),
    ("a good act", 1),
]


def tokenizer_folder(folder: Path, words: list[str] = WORDS) -> str:
    """A WordPiece tokenizer of BERT's kind."""
    transformers = pytest.importorskip("transformers")
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = dict.fromkeys([*SPECIAL, *LETTERS, *words])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    numbers = {token: number for number, token in enumerate(vocabulary)}
    transformers.BertTokenizer(vocab=numbers, model_max_length=64).save_pretrained(folder)
    return str(folder)


def sentences(folder: Path, rows: list[tuple[str, int]] = SENTENCES) -> str:
    """A folder with train.tsv and dev.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    return str(folder)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tiny(kind: str, head: str = "ForSequenceClassification", **options: Any) -> Any:
    """A transformer of a family, with random weights: 4 layers, 4 heads, width 32, no dropout."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 83, "num_labels": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    longest = {"max_position_embeddings": 64}
    config = {
        "Bert": {**sizes, **off, **longest},
        "Roberta": {**sizes, **off, "max_position_embeddings": 66, "pad_token_id": 1},
        "DistilBert": {
            **longest,
            **dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0),
            **dict(zip(("dim", "n_layers", "n_heads", "hidden_dim"), (32, 4, 4, 48), strict=True)),
        },
        "GPT2": {
            **dict(zip(("n_embd", "n_layer", "n_head", "n_positions"), (32, 4, 4, 64), strict=True)),
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
            "bos_token_id": 2,
            "eos_token_id": 3,
        },
        "Llama": {**sizes, **longest, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3},
    }[kind]
    values = {**common, **config, **options}
    name = head.replace("ForCausalLM", "LMHeadModel") if kind == "GPT2" else head
    return getattr(transformers, kind + name)(getattr(transformers, f"{kind}Config")(**values)).eval()


def texts(rows: int = 3, length: int = 7, vocabulary: int = 83) -> dict[str, torch.Tensor]:
    """Random ids with a mask that leaves out the end of all rows but the first."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, vocabulary, (rows, length), generator=generator)
    lengths = torch.tensor([length, *range(3, rows + 2)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, 0), "attention_mask": mask}
