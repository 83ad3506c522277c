"""Write texts, tokenizer and configs of the networks for the study, from Python's own library.

python experiments/tiny_lm/prepare.py
"""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

import transformers
from tokenizers import ByteLevelBPETokenizer

FOLDER = Path("runs/tiny_lm/data")
VOCABULARY, LENGTH = 2048, 128
SIZES = {"teacher": (4, 6, 192), "student": (2, 4, 96)}
"""Layers, heads and width."""
LARGEST = 60_000
"""Characters; longer modules are mostly tables."""


def modules() -> dict[str, list[str]]:
    """Return the sources of the library without its tests; every 24th module, by the hash of its path, is a test."""
    library = Path(sysconfig.get_path("stdlib"))
    texts: dict[str, list[str]] = {"train": [], "test": []}
    for path in sorted(library.rglob("*.py")):
        place = path.relative_to(library)
        if {"test", "tests", "idlelib", "lib2to3", "encodings", "site-packages"} & set(place.parts):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        if 500 < len(text) < LARGEST:
            number = int(hashlib.sha256(place.as_posix().encode()).hexdigest(), 16)
            texts["train" if number % 24 else "test"].append(text)
    return texts


def main() -> None:
    """Write everything to :data:`FOLDER`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = modules()
    for split, rows in texts.items():
        (FOLDER / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        print(split, len(rows), "modules,", sum(map(len, rows)), "characters")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts["train"], VOCABULARY, special_tokens=["<end>"], show_progress=False)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, eos_token="<end>", model_max_length=LENGTH
    )
    for name, (layers, heads, width) in SIZES.items():
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer),
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            n_positions=LENGTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=tokenizer.eos_token_id,
        )
        config.save_pretrained(FOLDER / name)
        tokenizer.save_pretrained(FOLDER / name)


if __name__ == "__main__":
    main()
