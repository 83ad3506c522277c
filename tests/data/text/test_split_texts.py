"""Texts that are split into several samples."""

from __future__ import annotations

from typing import Any

import pytest

from kdlab.data.text import text_data
from kdlab.errors import InputError
from tests.data.text.test_text_data import draw, ready, tokenizer  # noqa: F401


def test_a_split_texts_rest_of_one_token_is_left_out(tokenizer: str, monkeypatch: Any) -> None:  # noqa: F811
    backend = text_data.load_tokenizer(tokenizer)
    backend.backend_tokenizer.post_processor = None  # no special tokens, as in GPT-2
    monkeypatch.setattr(text_data, "load_tokenizer", lambda *_: backend)
    rows = [{"text": "the film is good and"}, {"text": "the plot"}]
    options: dict[str, Any] = {"text": "text", "label": None, "task": "causal", "too_long": "split", "max_length": 2}
    data = ready({"train": rows, "test": rows}, tokenizer, **options)
    pieces = [data.backend.decode(data._sets["train"][draw(place)]["input_ids"][0]) for place in range(3)]  # type: ignore[call-overload]
    assert pieces == ["the film", "is good", "the plot"]
    assert data.sizes["train"] == 3
    rows.append({"text": "dull"})  # of one token as it is
    with pytest.raises(InputError, match="1 texts of 5 give fewer than 2 tokens, the first in row 3"):
        ready({"train": rows, "test": rows}, tokenizer, **options)
