"""Setup checks of text: tokenizers, lengths, packing, and teachers with parts that nobody trained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdlab.compat import uncompiled
from kdlab.data.text import TextData
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.members.member import NetworkMember
from kdlab.members.retokenized import Retokenized
from kdlab.models.hugging_face import new_parameters
from kdlab.modules.term_checks import called
from kdlab.teaching.on_policy import positions_of
from kdlab.teaching.plan import Plan
from kdlab.tokenization import difference, load_tokenizer, vocabulary_of


def check_texts(trainer: pl.Trainer, plan: Plan, knowledge: Mapping[str, Knowledge]) -> None:
    """Check every network of a plan against the data's tokenizer and lengths, where the data is text.

    Raises:
        InputError: a network has another tokenizer, fewer embeddings than tokens or positions than the longest text,
            takes no positions for packed texts, or is a teacher whose logits are read and whose classifier is new.
    """
    for member in plan.members.values():
        if isinstance(member, NetworkMember) and not isinstance(member, Retokenized):
            network, name = uncompiled(member.network), called(member.name)
            if member.is_frozen and (new := new_parameters(network)):
                _check_new(name, new, knowledge)
            data = getattr(trainer, "datamodule", None)
            if isinstance(data, TextData):
                _check_network(name, network, data)


def _check_new(name: str, new: tuple[str, ...], knowledge: Mapping[str, Knowledge]) -> None:
    reading = [key for key, own in knowledge.items() if own.reads_logits]
    if reading:
        raise InputError(
            f"{name}'s logits are read by knowledge {reading[0]!r}, but its files have no {', '.join(new[:3])}: "
            "fine-tune it first, and give the result as weights."
        )


def _check_network(name: str, network: Any, data: TextData) -> None:
    config = getattr(network, "config", None)
    size, tokens = getattr(config, "vocab_size", None), max(data.vocabulary.values()) + 1
    if size is not None and size < tokens:
        raise InputError(
            f"{name} has {size} embeddings, but the tokenizer {data.tokenizer!r} has ids up to {tokens - 1}: use the "
            "network's tokenizer, or cut both (kdlab.tokenization.cut_tokenizer, vocabulary=FOLDER)."
        )
    folder = getattr(config, "_name_or_path", "")
    if folder and (Path(folder) / "tokenizer.json").is_file() and folder != data.tokenizer:
        other = difference(vocabulary_of(load_tokenizer(folder, local_files_only=True)), data.vocabulary)
        if other:
            raise InputError(
                f"{name}'s tokenizer ({folder!r}) is not that of the data ({data.tokenizer!r}): {other}. Ids would "
                "mean other tokens: give all networks one tokenizer (vocabulary=FOLDER cuts a network's)."
            )
    limit = positions_of(network)
    if limit is not None and data.longest > limit:
        raise InputError(
            f"{name} has {limit} positions, but the longest text has {data.longest} tokens: set "
            f"data.max_length={limit} (too_long says what happens to longer texts).",
            key="data.max_length",
        )
    base = getattr(network, "base_model", network)
    if data.packing and "position_ids" not in inspect.signature(base.forward).parameters:
        raise InputError(
            f"{name} ({type(network).__name__}) takes no position_ids, so packed texts would be read as one: set "
            "data.packing=false.",
            key="data.packing",
        )
