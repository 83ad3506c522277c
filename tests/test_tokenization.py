"""Tokenizers: cut vocabularies, comparisons and messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.tokenization import check_cut, cut_tokenizer, difference, folder_or_name, load_tokenizer, vocabulary_of
from tests.tiny_transformers import SENTENCES, TOKENS, tokenizer_folder

CORPUS = [text for text, _ in SENTENCES]


def test_cut_wordpiece_writes_kept_words_alike(tmp_path: Path) -> None:
    whole = tokenizer_folder(tmp_path / "whole")
    size = cut_tokenizer(whole, CORPUS, 70, str(tmp_path / "small"))
    old, new = load_tokenizer(whole), load_tokenizer(str(tmp_path / "small"))
    assert size == 70 == len(vocabulary_of(new)) < len(vocabulary_of(old))
    for text in ("the film is good", "a very fine film"):
        assert new.tokenize(text) == old.tokenize(text)
        assert new.convert_ids_to_tokens(new(text)["input_ids"])[0] == "[CLS]"
        assert new.decode(new(text)["input_ids"]) == old.decode(old(text)["input_ids"])
    assert "[UNK]" not in new.tokenize("unfunny acts")  # dropped tokens are written with letters
    assert new.mask_token_id == vocabulary_of(new)["[MASK]"]


def test_cut_bpe_keeps_what_its_tokens_are_merged_from(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(CORPUS * 3, vocab_size=310, min_frequency=2, special_tokens=["<|endoftext|>"])
    (tmp_path / "whole").mkdir()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model._tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "whole")
    size = cut_tokenizer(str(tmp_path / "whole"), CORPUS, 285, str(tmp_path / "small"))
    old, new = (load_tokenizer(str(tmp_path / name)) for name in ("whole", "small"))
    assert size <= 285 < len(vocabulary_of(old))
    text = "the film is a very odd one"
    assert new.decode(new(text)["input_ids"]) == text
    kept = vocabulary_of(new)
    assert {token for line in CORPUS for token in new.tokenize(line)} <= kept.keys()
    assert any(len(token) > 2 for token in new.tokenize("the film"))


def test_a_folder_of_a_package_is_named_by_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_encoder"
    tokenizer_folder(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('it is not imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert folder_or_name("package:some_encoder/model") == str(package / "model")
    assert len(vocabulary_of(load_tokenizer("package:some_encoder/model"))) == TOKENS
    assert folder_or_name(str(package)) == str(package)
    assert folder_or_name("someone/bert") == "someone/bert"
    for path, reason in (
        ("package:some_encoder/modle", "the package 'some_encoder' has no folder 'modle'"),
        ("package:no_such_thing/model", "no package 'no_such_thing' is installed"),
        ("package:some.encoder/model", "no package 'some.encoder' is installed"),
    ):
        with pytest.raises(InputError, match=reason):
            folder_or_name(path)


def test_check_cut_maps_ids_and_names_strangers(tmp_path: Path) -> None:
    old, new = tokenizer_folder(tmp_path / "a"), tokenizer_folder(tmp_path / "b", ["film", "stranger"])
    with pytest.raises(InputError, match="1 tokens that the old one lacks, such as 'stranger'"):
        check_cut(load_tokenizer(new), vocabulary_of(load_tokenizer(old)))
    cut_tokenizer(old, CORPUS, 70, str(tmp_path / "c"))
    ids, cut = vocabulary_of(load_tokenizer(old)), load_tokenizer(str(tmp_path / "c"))
    kept = check_cut(cut, ids)
    assert all(kept[number] == ids[token] for token, number in vocabulary_of(cut).items())


def test_difference_names_both_sizes_and_the_first_token() -> None:
    assert difference({"a": 0}, {"a": 0}) == ""
    assert difference({"a": 0, "b": 1}, {"a": 1, "b": 0}) == "2 tokens against 2, and token 'a' has id 0 against 1"
    assert difference({"a": 0}, {"a": 0, "z": 1}) == "1 tokens against 2, and token 'z' has id none against 1"


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="There is no tokenizer in"):
        load_tokenizer(str(tmp_path), local_files_only=True)
