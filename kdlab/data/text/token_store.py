"""Tokenized texts in one block of memory, and their cache on disk."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kdlab.data.text.text_files import Rows
from kdlab.errors import InputError
from kdlab.files import atomic_write, locked

FORMAT = 2  # of the cache; raise it when tokens of the same text become others
CHUNK = 1024
"""Texts that are tokenized at once."""


class Tokens(NamedTuple):
    """The tokens of all texts of a split, one after the other.

    Attributes:
        cut: how many texts were longer than the longest allowed.
        ids: (T,) int32.
        types: (T,) int32, which sentence of a pair a token is of; empty if the tokenizer gives no types.
        words: (T,) int32, the word that a token begins, -1 for special tokens and the rest of a word; empty unless
            texts are lists of words.
        seconds: (N,) int64, the tokens of each text before its second sentence begins; 0 where it has none.
        ends: (N,) int64, where each text ends.
        rows: (N,) int64, the row of the source that each text is of.
    """

    cut: int
    ids: Tensor
    types: Tensor
    words: Tensor
    seconds: Tensor
    ends: Tensor
    rows: Tensor

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of each text, (N,) int64."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def part(self, text: int) -> slice:
        """Return where the tokens of a text are."""
        return slice(int(self.ends[text - 1]) if text else 0, int(self.ends[text]))


class TokenSettings(NamedTuple):
    """How texts become tokens.

    Attributes:
        max_length: tokens of a text, special ones included; ``None`` for no limit.
        too_long: "truncate", "split" (the rest makes further samples) or "raise".
        words: whether a text is a list of words.
    """

    max_length: int | None
    too_long: str
    words: bool


def tokens_of(rows: Rows, tokenizer: Any, settings: TokenSettings, cache: str | None) -> Tokens:
    """Return the tokens of a split, from the cache if it has them.

    The cache's file is named by a hash of the texts, the tokenizer and the settings. A file that cannot be read is
    written anew.

    Raises:
        InputError: a text is too long and ``too_long="raise"``, or the cache cannot be written.
    """
    if cache is None:
        return _tokenize(rows, tokenizer, settings)
    path = Path(cache).expanduser() / f"{_key(rows, tokenizer, settings)}.safetensors"
    with locked(path.with_suffix(".lock"), "The tokens are being written", wait=True):
        if (stored := _load(path)) is not None:
            return stored
        made = _tokenize(rows, tokenizer, settings)
        with atomic_write(path) as file:
            file.write(save({**made._asdict(), "cut": torch.tensor(made.cut)}))
    return made


def _load(path: Path) -> Tokens | None:
    with contextlib.suppress(OSError, SafetensorError, KeyError, TypeError):
        tensors = load(path.read_bytes())
        return Tokens(**{**tensors, "cut": int(tensors["cut"])})  # type: ignore[arg-type]
    return None


def _key(rows: Rows, tokenizer: Any, settings: TokenSettings) -> str:
    digest = hashlib.sha256(repr((FORMAT, settings, tokenizer.padding_side, tokenizer.truncation_side)).encode())
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # what an earlier call set is no part of the tokenizer
    backend.no_padding()
    digest.update(backend.to_str().encode())
    digest.update(importlib.metadata.version("tokenizers").encode())
    for column in (rows.text, rows.pair or ()):
        digest.update(json.dumps(column, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _tokenize(rows: Rows, tokenizer: Any, settings: TokenSettings) -> Tokens:
    parts: list[Tokens] = []
    for first in range(0, len(rows.text), CHUNK):
        texts = _checked(rows.text[first : first + CHUNK], settings.words, rows.source, first)
        pairs = rows.pair and _checked(rows.pair[first : first + CHUNK], settings.words, rows.source, first)
        parts.append(_chunk(texts, pairs, first, tokenizer, settings, rows.source))
    starts = torch.tensor([0, *(len(part.ids) for part in parts)]).cumsum(0)
    ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
    _, ids, types, words, seconds, _, places = (list(column) for column in zip(*parts, strict=True))
    joined: list[Tensor] = [torch.cat(column) for column in (ids, types, words, seconds, ends, places)]
    return Tokens(sum(part.cut for part in parts), *joined)


def _checked(texts: Sequence[Any], words: bool, source: str, first: int) -> list[Any]:
    """Return texts, or lists of words, of which a file of tables has only text."""
    checked = [text.split() if words and isinstance(text, str) else text for text in texts]
    for row, text in enumerate(checked, first + 1):
        right = (
            isinstance(text, list) and all(isinstance(word, str) for word in text) if words else isinstance(text, str)
        )
        if not right:
            what = "a list of words" if words else "text"
            raise InputError(f"{source}, row {row}: the text is a {type(text).__name__}, where {what} is needed.")
    return checked


def _chunk(
    texts: list[Any], pairs: list[Any] | None, first: int, tokenizer: Any, settings: TokenSettings, source: str
) -> Tokens:
    limit, split = settings.max_length, settings.too_long == "split"
    options: dict[str, Any] = {"truncation": True, "max_length": limit} if limit else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoded = tokenizer(
            texts,
            pairs,
            is_split_into_words=settings.words,
            return_overflowing_tokens=limit is not None,
            return_attention_mask=False,
            verbose=False,
            **options,
        )
    origin = encoded.get("overflow_to_sample_mapping") or list(range(len(texts)))
    repeats = [place for place in range(1, len(origin)) if origin[place] == origin[place - 1]]
    too_long = sorted({origin[place] for place in repeats})
    if too_long and settings.too_long == "raise":
        raise InputError(
            f"{source}, row {first + too_long[0] + 1}: the text has more than max_length={limit} tokens: raise it, or "
            "let too_long be 'truncate' or 'split'."
        )
    dropped = set() if split else set(repeats)
    chosen = [place for place in range(len(origin)) if place not in dropped]
    ids = [encoded["input_ids"][place] for place in chosen]
    types = [encoded["token_type_ids"][place] for place in chosen] if "token_type_ids" in encoded else []
    words = [_first_of_words(encoded.word_ids(place)) for place in chosen] if settings.words else []
    return Tokens(
        len(too_long),
        _flat(ids),
        _flat(types),
        _flat(words),
        torch.tensor([_before_second(encoded.sequence_ids(place)) if pairs else 0 for place in chosen]),
        torch.tensor([len(each) for each in ids]).cumsum(0),
        torch.tensor([first + origin[place] for place in chosen]),
    )


def _first_of_words(words: Sequence[int | None]) -> list[int]:
    """Return the word that a token begins, else -1."""
    before = [None, *words[:-1]]
    return [-1 if word is None or word == last else word for word, last in zip(words, before, strict=True)]


def _before_second(sentences: Sequence[int | None]) -> int:
    """Return how many tokens come before those of the second sentence."""
    return sentences.index(1) if 1 in sentences else len(sentences)


def _flat(lists: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor([number for part in lists for number in part], dtype=torch.int32)
