"""Batches of text: labels of each task, order, masks, packing, caching and messages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from kdlab.data import TextData
from kdlab.data.samplers import Draw
from kdlab.data.text.length_groups import LengthGroups
from kdlab.data.text.packing import packed_rows
from kdlab.errors import InputError
from kdlab.outputs import Batch
from tests.tiny_transformers import SENTENCES, TOKENS, lines, sentences, tiny, tokenizer_folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sentences(tmp_path_factory.mktemp("sentences"))


def ready(root: Any, tokenizer: str, **options: Any) -> TextData:
    data = TextData(root, tokenizer, **{"cache": None, "batch_size": 4, **options})
    data.setup()
    return data


def draw(*positions: int, epoch: int = 0) -> Draw:
    return Draw(torch.tensor(positions), epoch)


def test_sentences_are_padded_to_the_longest(folder: str, tokenizer: str) -> None:
    data = ready(folder, tokenizer)
    batch: Any = data._sets["train"][draw(4, 0)]
    assert data.backend.batch_decode(batch["input_ids"]) == [
        "[CLS] dull [SEP] [PAD] [PAD] [PAD]",
        "[CLS] the film is good [SEP]",
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["index"].tolist() == [4, 0]
    assert (data.num_classes, data.classes, data.sizes) == (2, ["0", "1"], {"train": 9, "val": 9, "test": 9})
    eights: Any = ready(folder, tokenizer, multiple_of=8)._sets["train"][draw(4, 0)]
    assert eights["input_ids"].shape == (2, 8)


def test_pairs_have_types_and_regression_has_a_column_of_values(tokenizer: str, tmp_path: Path) -> None:
    rows = [{"a": "the film", "b": "the plot is bad", "score": 0.5}, {"a": "dull", "b": "good", "score": -2}]
    root = {"train": lines(tmp_path / "x.jsonl", rows), "test": rows}
    data = ready(root, tokenizer, task="regression", text="a", pair="b", label="score")
    batch: Any = data._sets["train"][draw(0, 1)]
    assert data.backend.decode(batch["input_ids"][0]) == "[CLS] the film [SEP] the plot is bad [SEP]"
    assert batch["token_type_ids"][0].tolist() == [0] * 4 + [1] * 5
    assert torch.equal(batch["labels"], torch.tensor([[0.5], [-2.0]]))


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_files_are_read_alike(form: str, tokenizer: str, folder: str, tmp_path: Path) -> None:
    path = tmp_path / f"train.{form}"
    if form == "csv":
        path.write_text("label,text\n" + "".join(f'{label},"{text}"\n' for text, label in SENTENCES))
    else:
        arrow = pytest.importorskip("pyarrow")
        columns = {"text": [text for text, _ in SENTENCES], "label": [label for _, label in SENTENCES]}
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), path)
    data = ready(str(tmp_path), tokenizer, text="text", label="label", validation=3)
    whole = ready(folder, tokenizer)
    assert torch.equal(data._sets["train"].tokens.ids, whole._sets["train"].tokens.ids)  # type: ignore[attr-defined]
    assert data.sizes == {"train": 6, "val": 3, "test": 3}


def test_word_labels_are_at_the_first_token_of_a_word(tokenizer: str) -> None:
    rows = [{"words": ["the", "funnyly", "film"], "tags": ["O", "B", "I"]}]
    root = {"train": rows, "test": rows}
    data = ready(root, tokenizer, task="tokens", text="words", label="tags")
    batch: Any = data._sets["train"][draw(0)]
    tokens = data.backend.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["[CLS]", "the", "funny", "##ly", "film", "[SEP]"]
    assert data.classes == ["B", "I", "O"]
    assert batch["labels"].tolist() == [[-100, 2, 0, -100, 1, -100]]


def test_causal_labels_are_the_next_tokens(folder: str, tokenizer: str) -> None:
    batch: Any = ready(folder, tokenizer, task="causal")._sets["train"][draw(4, 0)]
    ids, labels = batch["input_ids"], batch["labels"]
    assert labels[1].tolist() == [*ids[1, 1:].tolist(), -100]
    assert labels[0].tolist() == [*ids[0, 1:3].tolist(), -100, -100, -100, -100]


def test_masks_are_a_function_of_seed_epoch_and_index(folder: str, tokenizer: str) -> None:
    options: dict[str, Any] = {"task": "masked", "mask_probability": 0.5}
    train: Any = ready(folder, tokenizer, **options)._sets["train"]
    alone, beside = train[draw(5, epoch=3)], train[draw(2, 5, epoch=3)]
    length = alone["input_ids"].shape[1]
    for name in ("input_ids", "labels"):
        assert torch.equal(alone[name][0], beside[name][1, :length])
    assert not torch.equal(alone["labels"], train[draw(5, epoch=4)]["labels"])
    other: Any = ready(folder, tokenizer, seed=1, **options)._sets["train"]
    assert not torch.equal(alone["labels"], other[draw(5, epoch=3)]["labels"])
    val: Any = ready(folder, tokenizer, **options)._sets["val"]
    assert torch.equal(val[draw(5, epoch=3)]["labels"], val[draw(5, epoch=4)]["labels"])


def test_masked_parts_are_those_of_bert(tokenizer: str) -> None:
    rows = [{"text": "the film is not good " * 12}] * 60
    data = ready({"train": rows, "test": rows}, tokenizer, task="masked", text="text")
    batch: Any = data._sets["train"][draw(*range(60))]
    labels, ids = batch["labels"], batch["input_ids"]
    chosen = labels != -100
    words = ids.numel() - 2 * len(ids)
    assert int(chosen.sum()) / words == pytest.approx(0.15, abs=0.02)  # 3,600 draws: sigma 0.006
    shown = ids[chosen]
    assert int((shown == data.backend.mask_token_id).sum()) / len(shown) == pytest.approx(0.8, abs=0.07)
    assert int((shown == labels[chosen]).sum()) / len(shown) == pytest.approx(0.1, abs=0.05)
    assert not chosen[:, 0].any()  # [CLS]
    assert int(shown.max()) < TOKENS


@pytest.mark.parametrize(("kind", "task"), [("Bert", "masked"), ("GPT2", "causal"), ("Llama", "causal")])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_outputs_equal_the_single_ones(
    kind: str, task: Any, attention: str, folder: str, tokenizer: str
) -> None:
    head = "ForMaskedLM" if task == "masked" else "ForCausalLM"
    network = tiny(kind, head)
    network.set_attn_implementation(attention)
    options: dict[str, Any] = {"task": task, "max_length": 24}
    single: Any = ready(folder, tokenizer, **options)._sets["train"]
    data = ready(folder, tokenizer, packing=True, **options)
    batch: Any = data._sets["train"][draw(*range(9))]
    rows = Batch.of(dict(batch))
    assert "index" not in batch
    assert len(batch["input_ids"]) < 9
    inputs = dict(rows.inputs)
    if kind != "Bert":
        inputs.pop("token_type_ids")
    logits = network(**inputs).logits
    assert rows.mask is not None
    assert int(rows.mask.sum()) == int(single.lengths.sum())
    placed = packed_rows(single.lengths.tolist(), 24)
    for row, texts in enumerate(placed):
        start = 0
        for text in texts:
            alone = single[draw(text)]
            ids = alone["input_ids"]
            part = slice(start, start + ids.shape[1])
            start += ids.shape[1]
            assert torch.equal(batch["labels"][row, part], alone["labels"][0])
            expected = network(input_ids=ids, attention_mask=alone["attention_mask"]).logits[0]
            torch.testing.assert_close(logits[row, part], expected, rtol=1e-4, atol=1e-5)
    assert logits.isfinite().all()


def test_groups_have_similar_lengths_and_every_text_once() -> None:
    lengths = torch.randint(3, 60, (130,), generator=torch.Generator().manual_seed(0))
    order = LengthGroups(lengths, 130, 8, 0)
    epochs = []
    for epoch in (0, 1, 0):
        order.set_epoch(epoch)
        epochs.append([batch.positions for batch in order])
    assert sorted(torch.cat(epochs[0]).tolist()) == list(range(130))
    assert [len(batch) for batch in epochs[0]] == [8] * 16 + [2]
    spread = max(int(lengths[batch].max() - lengths[batch].min()) for batch in epochs[0])
    assert spread <= 8  # 57 without groups
    assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[1], strict=True))
    longest = [int(lengths[batch].max()) for batch in epochs[0]]
    assert longest != sorted(longest, reverse=True)
    halves = [LengthGroups(lengths, 130, 8, 0, rank, 2) for rank in (0, 1)]
    both = [torch.cat(parts) for parts in zip(*([b.positions for b in half] for half in halves), strict=True)]
    assert all(sorted(a.tolist()) == sorted(b.tolist()) for a, b in zip(both, epochs[0], strict=True))


def test_tokens_are_cached_by_content(folder: str, tokenizer: str, tmp_path: Path, monkeypatch: Any) -> None:
    cache = str(tmp_path / "cache")
    first = ready(folder, tokenizer, cache=cache)
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 1  # train and dev have the same texts
    monkeypatch.setattr("kdlab.data.text.token_store._tokenize", lambda *_: pytest.fail("tokenized again"))
    again = ready(folder, tokenizer, cache=cache)
    assert again.content() == first.content()
    monkeypatch.undo()
    ready(folder, tokenizer, cache=cache, max_length=5)
    assert len([*(tmp_path / "cache").glob("*.safetensors")]) == 2
    files[0].write_bytes(files[0].read_bytes()[:100])  # torn
    assert ready(folder, tokenizer, cache=cache).content() == first.content()


def test_too_long_texts_are_cut_split_or_an_error(tokenizer: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "the film is good", "label": 1}, {"text": "dull", "label": 0}]
    root = {"train": rows, "test": rows}
    options: dict[str, Any] = {"text": "text", "label": "label", "max_length": 4}
    with caplog.at_level(logging.INFO, "kdlab.data"):
        data = ready(root, tokenizer, **options)
    assert "1 of 2 texts have more than 4 tokens and are truncated" in caplog.text
    batch: Any = data._sets["train"][draw(0)]
    assert data.backend.decode(batch["input_ids"][0]) == "[CLS] the film [SEP]"
    with pytest.raises(InputError, match="row 1: the text has more than max_length=4 tokens"):
        ready(root, tokenizer, too_long="raise", **options)
    split = ready(root, tokenizer, too_long="split", task="causal", **{**options, "label": None})
    pieces = [split.backend.decode(split._sets["train"][draw(place)]["input_ids"][0]) for place in range(3)]  # type: ignore[call-overload]
    assert pieces == ["[CLS] the film [SEP]", "[CLS] is good [SEP]", "[CLS] dull [SEP]"]
    with pytest.raises(InputError, match="too_long: split is for the tasks tokens, causal, masked"):
        ready(root, tokenizer, too_long="split", **options)


def test_an_empty_text_is_a_sample_or_an_error(tokenizer: str, monkeypatch: Any, caplog: Any) -> None:
    rows = [{"text": "", "label": 1}, {"text": "dull", "label": 0}]
    root = {"train": rows, "test": rows}
    data = ready(root, tokenizer, text="text", label="label")
    batch: Any = data._sets["train"][draw(0, 1)]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]  # [CLS] [SEP]
    assert tiny("Bert")(**{k: v for k, v in batch.items() if k not in ("labels", "index")}).logits.isfinite().all()

    from kdlab.data.text import text_data

    def without_special(path: str, local: bool) -> Any:
        backend = text_data_load(path, local)
        backend.backend_tokenizer.post_processor = None
        return backend

    text_data_load = text_data.load_tokenizer
    monkeypatch.setattr(text_data, "load_tokenizer", without_special)
    with pytest.raises(InputError, match="1 texts of 2 give fewer than 1 tokens, the first in row 1"):
        ready(root, tokenizer, text="text", label="label")
    with caplog.at_level(logging.INFO, "kdlab.data"):
        skipped = ready(root, tokenizer, text="text", label="label", empty="skip")
    assert "they are skipped" in caplog.text
    assert skipped.sizes["train"] == 1
    kept: Any = skipped._sets["train"][draw(0)]
    assert kept["labels"].tolist() == [0]


def test_missing_labels_are_ignored_and_strange_ones_named(tokenizer: str, folder: str) -> None:
    rows = [{"text": "dull", "label": "no"}, {"text": "good", "label": "yes"}]
    options: dict[str, Any] = {"text": "text", "label": "label"}
    hidden = [{"text": "bad", "label": -1}]  # as GLUE's test sets have it
    data = ready({"train": rows, "test": hidden}, tokenizer, **options)
    assert data.classes == ["no", "yes"]
    test: Any = data._sets["test"][draw(0)]
    assert test["labels"].tolist() == [-100]
    with pytest.raises(InputError, match="row 1: the label 'perhaps' is none of the classes"):
        ready({"train": rows, "test": [{"text": "bad", "label": "perhaps"}]}, tokenizer, **options)
    signs = [{"text": "dull", "label": -1}, {"text": "good", "label": 1}]
    assert ready({"train": signs, "test": signs}, tokenizer, **options).classes == ["-1", "1"]
    unlabelled = ready(folder, tokenizer, label=None)
    batch: Any = unlabelled._sets["train"][draw(0)]
    assert batch["labels"].tolist() == [-100]
    assert unlabelled.num_classes == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "sentence"}, "has no column 'sentence'"),
        ({"label": 7}, "2 columns, so there is no 7"),
        ({"task": "summary"}, "task is 'classification' or"),
        ({"packing": True}, "packing is for the tasks tokens, causal, masked"),
        ({"task": "regression", "label": None}, "needs a column of labels"),
        ({"task": "regression", "label": 0}, "label 'the film is good' is no finite number"),
        ({"mask_probability": 1.0}, "must be between 0 and 1"),
        ({"max_length": 0}, "max_length must be at least 1"),
        ({"validation": 9}, "leaves no training"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str, folder: str, tokenizer: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(folder, tokenizer, **options)


def test_damaged_files_are_named(tokenizer: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{broken\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 2: no JSON"):
        ready({"train": str(bad), "test": str(bad)}, tokenizer, text="text", label=None)
    with pytest.raises(InputError, match="has no train"):
        ready(str(tmp_path), tokenizer)
    with pytest.raises(InputError, match="There is no folder"):
        ready(str(tmp_path / "none"), tokenizer)
