"""A teacher with another tokenizer: its tokens and labels, and ULD with them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from kdlab import Distiller, Knowledge
from kdlab.data import TextData
from kdlab.errors import InputError
from kdlab.losses import ULD
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.members import Retokenized
from kdlab.outputs import Batch
from tests.modules.tiny import sgd, trainer
from tests.tiny_transformers import lines, tiny, tokenizer_folder

pytest.importorskip("transformers")
ROWS = [("the film is", "not good"), ("a", "very dull plot"), ("funny act", "or not")]


def setting(root: Path, pairs: bool) -> tuple[TextData, str, str]:
    """Texts in words; the teacher's tokenizer knows some words alone, and spells the others."""
    ours, theirs = tokenizer_folder(root / "ours"), tokenizer_folder(root / "theirs", ["the", "film", "not", "dull"])
    options: dict[str, Any] = {"task": "causal", "batch_size": 3, "cache": None}
    if pairs:
        rows = [dict(zip(("prompt", "completion"), row, strict=True)) for row in ROWS]
        options |= {"text": "prompt", "pair": "completion"}
    else:
        rows = [{"text": " ".join(row)} for row in ROWS]
        options |= {"text": "text"}
    for split in ("train", "dev"):
        lines(root / f"{split}.jsonl", rows)
    return TextData(str(root), ours, **options), ours, theirs


@pytest.mark.parametrize("pairs", [False, True])
def test_the_teacher_reads_the_same_texts(tmp_path: Path, pairs: bool) -> None:
    data, ours, theirs = setting(tmp_path, pairs)
    data.setup()
    batch = Batch.of(next(iter(data.train_dataloader())))
    member = Retokenized(tiny("GPT2", "ForCausalLM"), theirs, ours)
    seen = member.retokenized(batch)
    assert batch.index is not None
    for number, row in enumerate(batch.index.tolist()):
        first, second = ROWS[row]
        expected = member.backend(f"{first} {second}")["input_ids"]
        count = int(seen.inputs["attention_mask"][number].sum())
        assert seen.inputs["input_ids"][number, :count].tolist() == expected
        # [CLS] and [SEP] are no labels, nor is what comes before the student's first label.
        before = first if pairs else ""
        skipped = len(member.backend(before)["input_ids"]) - 1 if pairs else 1
        labels = [-100] * (skipped - 1) + expected[skipped:-1] + [-100, -100]
        assert seen.target[number, :count].tolist() == labels


def by_hand(root: Path, rows: list[list[str]], labels: list[list[int]]) -> tuple[Retokenized, Batch]:
    """Rows of the student's tokens, padded on the right; a label's place is that of the token before."""
    ours, theirs = tokenizer_folder(root / "ours"), tokenizer_folder(root / "theirs", ["the", "film", "un"])
    member = Retokenized(tiny("GPT2", "ForCausalLM"), theirs, ours)
    width = max(map(len, rows))
    ids, mask, target = torch.zeros(3, len(rows), width, dtype=torch.int64)
    target.fill_(-100)
    for row, (tokens, places) in enumerate(zip(rows, labels, strict=True)):
        ids[row, : len(tokens)] = torch.tensor(member.student_backend.convert_tokens_to_ids(tokens))
        mask[row, : len(tokens)] = 1
        for place in places:
            target[row, place] = ids[row, place + 1]
    return member, Batch({"input_ids": ids, "attention_mask": mask}, target)


CLS, SEP = "[CLS]", "[SEP]"
TEXTS: dict[str, tuple[list[str], list[int], list[str], list[int]]] = {
    # the student's tokens and labeled places, the teacher's
    "no label": ([CLS, "the", "film", SEP], [], [CLS, "the", "film", SEP], []),
    "one label": ([CLS, "the", "film", SEP], [1], [CLS, "the", "film", SEP], [1]),
    "all labels": ([CLS, "the", "film", SEP], [0, 1, 2], [CLS, "the", "film", SEP], [0, 1]),
    "within a word": ([CLS, "un", "##ly", SEP], [1], [CLS, "un", "##l", "##y", SEP], [1, 2]),
    "spelled by the teacher": (
        [CLS, "the", "plot", SEP],
        [1],
        [CLS, "the", "p", "##l", "##o", "##t", SEP],
        [1, 2, 3, 4],
    ),
}


@pytest.mark.parametrize("is_left", [False, True])
def test_labels_begin_in_the_text_where_the_students_do(tmp_path: Path, is_left: bool) -> None:
    member, batch = by_hand(tmp_path, [case[0] for case in TEXTS.values()], [case[1] for case in TEXTS.values()])
    if is_left:  # padded on the left
        width = batch.target.shape[1]
        for row, length in enumerate(batch.inputs["attention_mask"].sum(1).tolist()):
            for tensor in (*batch.inputs.values(), batch.target):
                tensor[row] = tensor[row].roll(width - length)
    seen = member.retokenized(batch)
    for row, (_, _, tokens, places) in enumerate(TEXTS.values()):
        ids = member.backend.convert_tokens_to_ids(tokens)
        rest = seen.target.shape[1] - len(ids)
        assert seen.inputs["input_ids"][row].tolist() == ids + [0] * rest
        assert seen.inputs["attention_mask"][row].tolist() == [1] * len(ids) + [0] * rest
        labels = [ids[place + 1] if place in places else -100 for place in range(len(ids))]
        assert seen.target[row].tolist() == labels + [-100] * rest


@pytest.mark.parametrize(("token", "padding"), [("[MASK]", 4), (None, 0)])
def test_padding_is_the_teachers(tmp_path: Path, token: str | None, padding: int) -> None:
    member, batch = by_hand(tmp_path, [[CLS, "the", SEP], [CLS, "the", "film", SEP]], [[0], [0]])
    member.backend.pad_token = token
    assert member.retokenized(batch).inputs["input_ids"][0, 3:].tolist() == [padding]


def test_labels_of_whole_texts_stay_those_of_the_batch(tmp_path: Path) -> None:
    member, batch = by_hand(tmp_path, [[CLS, "the", SEP], [CLS, "the", "film", SEP]], [[0], [0]])
    assert member(batch, {})["teacher"].target.shape == (2, 4)
    assert member(batch._replace(target=torch.tensor([1, 0])), {})["teacher"].target is None


@pytest.mark.parametrize(
    ("longest", "limit", "expected"),
    [(None, 64, 64), (5, 64, 5), (70, 64, 70), (None, 1 << 24, None), (None, (1 << 24) - 1, (1 << 24) - 1)],
)
def test_the_longest_text_is_given_or_the_tokenizers(
    monkeypatch: pytest.MonkeyPatch, longest: int | None, limit: int, expected: int | None
) -> None:
    monkeypatch.setattr("kdlab.members.retokenized.load_tokenizer", lambda *_: SimpleNamespace(model_max_length=limit))
    assert Retokenized(tiny("GPT2", "ForCausalLM"), "a", "b", longest).max_length == expected


def test_texts_beyond_the_longest_are_cut(tmp_path: Path) -> None:
    member, batch = by_hand(tmp_path, [[CLS, "the", "film", "the", SEP]], [[0]])
    member.max_length = 4
    expected = member.backend.convert_tokens_to_ids([CLS, "the", "film", SEP])
    assert member.retokenized(batch).inputs["input_ids"].tolist() == [expected]


def test_batches_without_token_ids_are_refused(tmp_path: Path) -> None:
    member, batch = by_hand(tmp_path, [[CLS, "the", SEP]], [[0]])
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    for inputs in (ids, {"attention_mask": mask}, {"input_ids": ids}):
        with pytest.raises(InputError, match="needs batches with input_ids and attention_mask"):
            member.retokenized(batch._replace(inputs=inputs))


def test_spaces_of_a_byte_level_student_stay(tmp_path: Path) -> None:
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    text = "do n't act ."
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator([text], vocab_size=256, special_tokens=[], show_progress=False)
    folder = str(tmp_path / "bytes")
    transformers.PreTrainedTokenizerFast(tokenizer_object=model._tokenizer).save_pretrained(folder)
    member = Retokenized(tiny("GPT2", "ForCausalLM"), tokenizer_folder(tmp_path / "theirs"), folder)
    ids = torch.tensor([member.student_backend(text)["input_ids"]])
    seen = member.retokenized(Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.zeros(1)))
    assert seen.inputs["input_ids"].tolist() == [member.backend(text)["input_ids"]]
    assert member.backend(text)["input_ids"] != member.backend("don't act.")["input_ids"]


@pytest.mark.full
def test_uld_compares_the_labeled_tokens_of_both(tmp_path: Path) -> None:
    data, ours, theirs = setting(tmp_path, pairs=True)
    torch.manual_seed(0)
    networks = [tiny("GPT2", "ForCausalLM", vocab_size=size).double() for size in (83, 70)]
    member = Retokenized(networks[1], theirs, ours)
    module = Distiller(networks[0].train(), member, {"uld": Knowledge(ULD())}, task=TokenCrossEntropy(), optimizer=sgd)
    data.setup()
    batch = Batch.of(next(iter(data.train_dataloader())))
    own = member.retokenized(batch)
    sides = []
    for network, seen in zip(networks, (batch, own), strict=True):
        logits = network(**seen.inputs).logits
        sides.append([row[label != -100].softmax(-1) for row, label in zip(logits, seen.target, strict=True)])
    values = []
    for q, p in zip(*sides, strict=True):
        both = [x.sort(-1, descending=True).values for x in (q, p)]
        count = min(map(len, both))
        values.append((both[0][:count] - F.pad(both[1], (0, 13))[:count]).abs().sum(-1).mean())
    trainer(1, precision="64-true", limit_val_batches=1).fit(module, datamodule=data)
    assert module.dry_run is not None
    assert module.dry_run.terms["uld"] == pytest.approx(torch.stack(values).mean().item(), rel=1e-6)
