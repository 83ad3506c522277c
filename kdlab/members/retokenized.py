"""Frozen teachers that read the student's texts with a tokenizer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdlab.data.text.text_tasks import IGNORED
from kdlab.errors import InputError
from kdlab.losses.tokens import next_token_labels
from kdlab.members.frozen import Frozen
from kdlab.members.member import Seen
from kdlab.outputs.containers import Batch, Outputs
from kdlab.tokenization import NO_LIMIT, load_tokenizer


class Retokenized(Frozen):
    """A frozen teacher with another tokenizer than the student, for :class:`~kdlab.losses.ULD`.

    Each text of a batch is decoded with the student's tokenizer and encoded with the teacher's own. Where every token
    has a label, the teacher's labels are its next tokens, from the place in the text on at which the student's begin;
    special tokens that its tokenizer adds have none. The texts are those that the student's tokenizer gives back:
    exact for byte-level tokenizers, in lower case and with other spaces for some WordPiece ones.

    Args:
        network: the teacher's network.
        tokenizer: folder or hub name of its tokenizer.
        student_tokenizer: that of the data.
        max_length: longest text in the teacher's tokens; by default the tokenizer's limit.
        local_files_only: never ask the hub.

    Raises:
        InputError: there is no such tokenizer, or batches have no token ids.
    """

    def __init__(
        self,
        network: nn.Module,
        tokenizer: str,
        student_tokenizer: str,
        max_length: int | None = None,
        local_files_only: bool = False,
    ) -> None:
        super().__init__(network)
        self.backend = load_tokenizer(tokenizer, local_files_only)
        self.student_backend = load_tokenizer(student_tokenizer, local_files_only)
        limit = self.backend.model_max_length
        self.max_length = max_length or (limit if limit < NO_LIMIT else None)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the outputs on the texts, with the teacher's labels and mask."""
        translated = self.retokenized(batch)
        outputs = super().forward(translated, seen)
        target = translated.target if translated.target is not batch.target else None
        return {name: replace(each, target=target) for name, each in outputs.items()}

    def retokenized(self, batch: Batch) -> Batch:
        """Return a batch of the same texts in the teacher's tokens, padded on the right."""
        if not isinstance(batch.inputs, Mapping) or "input_ids" not in batch.inputs or batch.mask is None:
            raise InputError("A teacher with a tokenizer of its own needs batches with input_ids and attention_mask.")
        ids, device = batch.inputs["input_ids"].cpu(), batch.target.device
        rows = [row[mask] for row, mask in zip(ids, batch.mask.bool().cpu().unbind(), strict=True)]
        texts = [self._text(row) for row in rows]
        options: dict[str, Any] = {"truncation": True, "max_length": self.max_length} if self.max_length else {}
        encoded = self.backend(texts, return_offsets_mapping=True, **options)
        tokens = [torch.tensor(each, dtype=torch.int64) for each in encoded["input_ids"]]
        pad = self.backend.pad_token_id or 0
        padded = pad_sequence(tokens, batch_first=True, padding_value=pad)
        mask = (torch.arange(padded.shape[1]) < torch.tensor([len(each) for each in tokens])[:, None]).long()
        target = batch.target
        if target.shape == ids.shape:
            labels = padded.masked_fill(mask == 0, IGNORED)
            for row, own, text in zip(labels, encoded["offset_mapping"], self._prompts(batch, rows), strict=True):
                for place, (start, end) in enumerate(own):
                    if start == end or start < text:  # a special token, or of the prompt
                        row[place] = IGNORED
            target = next_token_labels(labels).to(device)
        inputs = {"input_ids": padded.to(device), "attention_mask": mask.to(device)}
        return batch._replace(inputs=inputs, target=target, views=None)

    def _text(self, ids: Tensor) -> str:
        text: str = self.student_backend.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _prompts(self, batch: Batch, rows: list[Tensor]) -> list[int]:
        """Return how many characters of each text come before the first token that is a label."""
        labeled = (batch.target != IGNORED).cpu()
        lengths = []
        for row, label, mask in zip(rows, labeled.unbind(), (batch.mask.bool().cpu()).unbind(), strict=True):  # type: ignore[union-attr]
            places = label[mask].nonzero()
            lengths.append(len(self._text(row[: int(places[0]) + 1] if len(places) else row)))
        return lengths
