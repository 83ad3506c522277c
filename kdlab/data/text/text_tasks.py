"""Batches of token ids and labels for each task on text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data import counter_rng
from kdlab.data.samplers import Draw
from kdlab.data.text.packing import block_mask, packed_rows
from kdlab.data.text.token_store import Tokens

Task = Literal["classification", "regression", "tokens", "causal", "masked"]
TASKS: tuple[Task, ...] = get_args(Task)
OF_TOKENS: tuple[Task, ...] = ("tokens", "causal", "masked")
"""Tasks with a label at each position."""

IGNORED = -100
"""The label of positions that do not count."""

MASKED, SHOWN, WORD = ((2 << 32) + stream for stream in range(3))  # streams of their own of counter_rng
LONGEST = 1 << 24  # no text has as many tokens


@dataclass(frozen=True)
class Form:
    """What batches are made with.

    Attributes:
        task: the task.
        pad: the id of padding.
        special: ids that are never masked.
        mask: the id of the mask token.
        vocabulary: number of tokens, of which a masked one may become any.
        probability: part of the tokens that are masked.
        multiple: the padded length is a multiple of it.
        room: tokens in a packed row; 0 for one text in each row.
        seed: of the masks.
    """

    task: Task
    pad: int
    special: tuple[int, ...] = ()
    mask: int = 0
    vocabulary: int = 0
    probability: float = 0.15
    multiple: int = 1
    room: int = 0
    seed: int = 0


class Sample(dict[str, Tensor]):
    """The tensors (L,) of one text: ``input_ids``, and ``token_type_ids`` and ``labels`` where there are some."""


class Texts(Dataset[Any]):
    """Tokenized texts and their labels; ``texts[draw]`` is a full batch, a mapping.

    The batch has ``input_ids``, ``token_type_ids`` if the tokenizer gives them, ``attention_mask``, ``labels`` and
    ``index``. Packed, it has ``position_ids`` that begin again with each text, a mask of blocks (R, 1, L, L), see
    :func:`~kdlab.data.text.packing.block_mask`, and no ``index``, since a row is no sample.

    Args:
        tokens: the tokens.
        values: labels of the samples in use or, for the task "tokens", lists of the words' labels; ``None`` for none.
        rows: (n,) int64, the texts in use. A batch's index counts within them.
        form: what batches are made with.
        training: whether masks change from epoch to epoch.
    """

    def __init__(self, tokens: Tokens, values: Sequence[Any] | None, rows: Tensor, form: Form, training: bool) -> None:
        self.tokens, self.rows, self.form, self.training = tokens, rows, form, training
        self.values = None if form.task == "tokens" else values
        self.words = [torch.tensor(each) for each in values or ()] if form.task == "tokens" else []
        if form.task == "classification" and values is not None:
            self.labels = torch.tensor(values)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of each text in use, (n,) int64."""
        return self.tokens.lengths[self.rows]

    def __getitem__(self, draw: Draw) -> Any:
        epoch = draw.epoch if self.training else 0
        samples = [self._sample(position, epoch) for position in draw.positions.tolist()]
        if self.form.room:
            return packed(samples, self.form)
        batch = padded(samples, self.form)
        if "labels" not in batch:
            batch["labels"] = self._labels(draw.positions.tolist())
        return {**batch, "index": draw.positions}

    def _labels(self, positions: Sequence[int]) -> Tensor:
        """Return labels of whole samples: (B,) int64 classes, or (B, 1) float32 values."""
        if self.values is None:
            return torch.full((len(positions),), IGNORED)
        values = [self.values[position] for position in positions]
        is_number = self.form.task == "regression"
        return torch.tensor(values, dtype=torch.float32)[:, None] if is_number else torch.tensor(values)

    def _sample(self, position: int, epoch: int) -> Sample:
        text = int(self.rows[position])
        part = self.tokens.part(text)
        ids = self.tokens.ids[part].long()
        sample = Sample(input_ids=ids)
        if len(self.tokens.types):
            sample["token_type_ids"] = self.tokens.types[part].long()
        match self.form.task:
            case "causal":
                sample["labels"] = torch.cat([ids[1:], ids.new_full((min(1, len(ids)),), IGNORED)])
                sample["labels"][: max(int(self.tokens.seconds[text]) - 1, 0)] = IGNORED  # the prompt
            case "masked":
                sample["input_ids"], sample["labels"] = masked(ids, self.form, epoch, position)
            case "tokens":
                sample["labels"] = self._word_labels(position, self.tokens.words[part].long())
        return sample

    def _word_labels(self, position: int, words: Tensor) -> Tensor:
        """Return each word's label at its first token, else :data:`IGNORED`."""
        if not self.words:
            return torch.full_like(words, IGNORED)
        return torch.where(words >= 0, self.words[position][words.clamp(min=0)], IGNORED)


def masked(ids: Tensor, form: Form, epoch: int, position: int) -> tuple[Tensor, Tensor]:
    """Return the ids (L,) with masked tokens, and as labels the true ids there, by (seed, epoch, index).

    Of the chosen tokens (never special ones) 80 % become the mask token, 10 % any token, 10 % stay (J. Devlin, M.
    Chang, K. Lee, K. Toutanova, "BERT", NAACL 2019). A text in which none is drawn has no label.
    """
    place = position * LONGEST + torch.arange(len(ids))
    draw: Callable[[int], Tensor] = lambda stream: counter_rng.uniform(form.seed, epoch, place, stream)  # noqa: E731
    chosen = (draw(MASKED) < form.probability) & ~torch.isin(ids, torch.tensor(form.special, dtype=torch.int64))
    shown = draw(SHOWN)
    words = counter_rng.integers(form.vocabulary, form.seed, epoch, place, WORD)
    replaced = torch.where(shown < 0.8, form.mask, torch.where(shown < 0.9, words, ids))
    return torch.where(chosen, replaced, ids), torch.where(chosen, ids, IGNORED)


def padded(samples: Sequence[Sample], form: Form) -> dict[str, Tensor]:
    """Return the texts side by side, (B, L) each, padded to the longest, at least to one token."""
    longest = max(1, *(len(sample["input_ids"]) for sample in samples))
    length = -(-longest // form.multiple) * form.multiple
    counts = torch.tensor([len(sample["input_ids"]) for sample in samples])
    batch = {name: torch.stack([_to(sample[name], length, name, form) for sample in samples]) for name in samples[0]}
    return {**batch, "attention_mask": (torch.arange(length) < counts[:, None]).long()}


def packed(samples: Sequence[Sample], form: Form) -> dict[str, Tensor]:
    """Return the texts in as few rows (R, L) as they need, with positions and attention of each its own."""
    rows = packed_rows([len(sample["input_ids"]) for sample in samples], form.room)
    for number, sample in enumerate(samples):
        sample["position_ids"] = torch.arange(len(sample["input_ids"]))
        sample["text"] = torch.full_like(sample["position_ids"], number)
    joined = [Sample({name: torch.cat([samples[text][name] for text in row]) for name in samples[0]}) for row in rows]
    batch = padded(joined, form)
    batch["attention_mask"] = block_mask(batch.pop("text"), form.task == "causal")
    return batch


def _to(values: Tensor, length: int, name: str, form: Form) -> Tensor:
    """Pad a tensor (L,)."""
    value = {"labels": IGNORED, "input_ids": form.pad, "text": -1}.get(name, 0)
    return torch.nn.functional.pad(values, (0, length - len(values)), value=value)
