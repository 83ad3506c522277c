"""Text as a LightningDataModule: sentences, pairs, token labels, causal and masked language modeling."""

from __future__ import annotations

import hashlib
import logging
import math
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from kdlab.data.fingerprint import refuse_unknown
from kdlab.data.loader import Loader
from kdlab.data.ordered import OrderedData
from kdlab.data.samplers import Shuffled
from kdlab.data.subsets import check_labels, training_rows
from kdlab.data.text.length_groups import LengthGroups
from kdlab.data.text.text_files import Column, Rows, hub_sources, read_rows, sources
from kdlab.data.text.text_labels import class_names, class_numbers, values_of, word_numbers
from kdlab.data.text.text_tasks import IGNORED, OF_TOKENS, TASKS, Form, Task, Texts
from kdlab.data.text.token_store import Tokens, TokenSettings, tokens_of
from kdlab.errors import InputError, check_word
from kdlab.tokenization import NO_LIMIT, load_tokenizer, vocabulary_of

_log = logging.getLogger("kdlab.data")


class TextData(OrderedData):
    """Texts for transformers: batches are mappings of tensors with ``labels`` and ``index``.

    Texts are tokenized once, in one process and thread, and padded to the longest of a batch. The order, masks and
    groups are functions of (seed, epoch, index), so a resumed run sees the same batches.

    ========================  ===============================================  =========================================
    ``task``                  ``labels``                                       logits of the network
    ========================  ===============================================  =========================================
    ``classification``        (B,) classes; -100 without a label column        (B, K)
    ``regression``            (B, 1) float32                                   (B, 1)
    ``tokens``                (B, L) classes, at the first token of each word  (B, L, K)
    ``causal``                (B, L): the next token, so that logits at t are  (B, L, V)
                              compared with labels at t; the last is -100
    ``masked``                (B, L): the true token where it is masked        (B, L, V)
    ========================  ===============================================  =========================================

    Everywhere else labels are -100. For logits (B, L, K) use a task loss that knows the class axis.

    Args:
        root: a folder with ``train``, ``dev`` (or ``val``, ``validation``) and ``test`` files ``.tsv``, ``.csv``,
            ``.jsonl`` or ``.parquet``; or the file, or the rows (mappings), of each of "train", "val" and "test"; or,
            with ``hub``, the name that ``datasets.load_dataset`` gets. Without ``val``, validation runs on ``test``,
            and the other way round.
        tokenizer: folder or hub name of a tokenizer.
        task: see above.
        text: number or name of the column of texts. TSV and CSV files have a header if a column is given by name.
        pair: column of the second texts, for pairs; in the task "causal" a prompt's completion, which alone is labeled.
        label: column of the labels; ``None`` if there are none.
        header: whether TSV and CSV files have one, if not as above.
        classes: names of the classes in their order; by default numbers, or all labels of the training split in
            alphabetical order.
        max_length: longest text in tokens, special ones included; ``None`` for the tokenizer's limit.
        too_long: what happens to a longer one: ``"truncate"`` (the number is logged), ``"raise"`` an error, or
            ``"split"`` it into several samples (tasks with labels at each position); a rest without labels is left out.
        empty: what happens to texts without any token: ``"raise"`` an error, or ``"skip"`` them. An empty text with
            special tokens is a sample like others.
        group_by_length: put texts of similar length into one training batch.
        packing: put several texts of a batch into one row, see ``kdlab.data.text.packing.block_mask``; for tasks
            with labels at each position and networks that take ``position_ids``.
        multiple_of: the padded length is a multiple of it; 8 suits tensor cores.
        mask_probability: part of the tokens that ``masked`` masks.
        batch_size: texts in a training batch, over all processes together.
        eval_batch_size: the same for validation, test and prediction.
        seed: seed of the order, the masks and the subsets.
        validation: number of training texts held out for validation, stratified by class; 0 for none.
        train_size: number of training texts, stratified by class; ``None`` for all remaining ones.
        drop_last: leave out the last training batch of an epoch if it is smaller.
        cache: folder of the tokenized texts, named by a hash of all that they depend on; ``None`` for none.
        hub: options of ``datasets.load_dataset``; ``{}`` for none.
        local_files_only: never ask the hub for the tokenizer.
        num_workers: processes that make batches.

    Attributes:
        num_classes: number of classes; 0 for tasks without. Like the following known after ``setup``.
        classes: their names.
        backend: the tokenizer.
        vocabulary: the id of every token.
        longest: tokens of the longest text.

    Raises:
        InputError: an unknown word, or options that exclude each other; in ``setup``: no such file, column or
            tokenizer, labels that are no classes or numbers, empty or too long texts.
    """

    samples: ClassVar[str] = "texts"

    def __init__(
        self,
        root: str | dict[str, Any],
        tokenizer: str,
        task: Task = "classification",
        text: Column = 0,
        pair: Column | None = None,
        label: Column | None = 1,
        header: bool | None = None,
        classes: list[str] | None = None,
        max_length: int | None = None,
        too_long: Literal["truncate", "split", "raise"] = "truncate",
        empty: Literal["raise", "skip"] = "raise",
        group_by_length: bool = False,
        packing: bool = False,
        multiple_of: int = 1,
        mask_probability: float = 0.15,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        seed: int = 0,
        validation: int = 0,
        train_size: int | None = None,
        drop_last: bool = False,
        cache: str | None = "runs/tokens",
        hub: dict[str, Any] | None = None,
        local_files_only: bool = False,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, drop_last)
        check_word("task", task, TASKS)
        check_word("too_long", too_long, ("truncate", "split", "raise"))
        check_word("empty", empty, ("raise", "skip"))
        for option, value in (("packing", packing), ("too_long: split", too_long == "split")):
            if value and task not in OF_TOKENS:
                raise InputError(f"data.{option} is for the tasks {', '.join(OF_TOKENS)}, not for {task!r}.")
        if task in ("tokens", "regression") and label is None:
            raise InputError(f"The task {task!r} needs a column of labels.", key="data.label")
        if not 0 < mask_probability < 1:
            raise InputError(f"mask_probability must be between 0 and 1, not {mask_probability}.")
        for option, number in (("max_length", max_length), ("multiple_of", multiple_of)):
            if number is not None and number < 1:
                raise InputError(f"{option} must be at least 1, not {number}.", key=f"data.{option}")
        self.root, self.tokenizer, self.task, self.hub = root, tokenizer, task, hub
        self.columns = (text, pair, None if task in ("causal", "masked") else label)
        self.header, self.names, self.max_length = header, classes, max_length
        self.too_long, self.empty, self.cache = too_long, empty, cache
        self.group_by_length, self.packing, self.multiple_of = group_by_length, packing, multiple_of
        self.mask_probability, self.validation, self.train_size = mask_probability, validation, train_size
        self.local_files_only, self.num_workers = local_files_only, num_workers
        self.num_classes, self.classes, self.longest = 0, list[str](), 0
        self.backend: Any = None
        self.vocabulary: dict[str, int] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenize all splits, once."""
        if self._sets:
            return
        self.backend = load_tokenizer(self.tokenizer, self.local_files_only)
        self.vocabulary = vocabulary_of(self.backend)
        if self.hub is None:
            given = sources(self.root)
        elif isinstance(self.root, str):
            given = hub_sources(self.root, self.hub)
        else:
            raise InputError("With data.hub, data.root is the name of a data set.", key="data.root")
        read = {split: read_rows(source, *self.columns, self.header) for split, source in given.items()}
        self._name_classes(read["train"])
        limit = self._limit()
        settings = TokenSettings(limit, self.too_long, self.task == "tokens")
        tokens = {split: tokens_of(rows, self.backend, settings, self.cache) for split, rows in read.items()}
        values = {split: self._values(rows, tokens[split]) for split, rows in read.items()}
        self.longest = max(int(part.lengths.max()) for part in tokens.values())
        used = {split: self._used(read[split], tokens[split]) for split in read}
        form = self._form(limit)

        def texts(split: str, rows: Tensor, training: bool = False) -> Texts:
            chosen = values[split]
            return Texts(tokens[split], chosen and [chosen[row] for row in rows.tolist()], rows, form, training)

        train = used["train"]
        labels = torch.zeros(len(train), dtype=torch.int64)
        if self.num_classes and self.task == "classification":
            labels = torch.tensor([cast(Any, values["train"])[row] for row in train.tolist()])
        rows, held_out = training_rows(labels, self.validation, self.train_size, [], self.seed)
        self._sets["train"] = texts("train", train[rows], training=True)
        others: dict[str, Texts] = {split: texts(split, used[split]) for split in ("val", "test") if split in read}
        if self.validation:
            others["val"] = texts("train", train[held_out])
        elif not others:
            raise InputError(f"{self.root!r} has neither 'val' nor 'test'; add one, or set data.validation.")
        for split, other in (("val", "test"), ("test", "val")):
            self._sets[split] = others[split if split in others else other]
        self.sizes = {name: len(cast(Texts, part)) for name, part in self._sets.items()}

    def _limit(self) -> int | None:
        """Return the longest allowed text, in tokens."""
        of_tokenizer = self.backend.model_max_length
        return self.max_length or (of_tokenizer if of_tokenizer < NO_LIMIT else None)

    def _name_classes(self, train: Rows) -> None:
        if self.task in ("classification", "tokens") and train.label is not None:
            self.classes = self.names or class_names(train, self.task == "tokens")
            self.num_classes = len(self.classes)

    def _values(self, rows: Rows, tokens: Tokens) -> list[Any] | None:
        """Return the label of each text: a class, a number, or the classes of its words."""
        if rows.label is None or self.task in ("causal", "masked"):
            return None
        places = tokens.rows.tolist()
        if self.task == "regression":
            return [float(value) for value in map(values_of(rows), places)]
        if self.task == "tokens":
            return word_numbers(rows, self.classes, places)
        numbers = class_numbers(rows, self.classes)
        labelled = torch.tensor([number for number in numbers if number != IGNORED] or [0])
        check_labels(labelled, self.num_classes, rows.source)
        return [numbers[place] for place in places]

    def _used(self, rows: Rows, tokens: Tokens) -> Tensor:
        """Return the texts that have tokens; log what is cut and skipped."""
        least = 2 if self.task == "causal" else 1  # a next token
        used = tokens.lengths >= least
        is_rest = tokens.rows.diff(prepend=tokens.rows.new_tensor([-1])) == 0  # of a text that was split
        if bool((short := ~used & ~is_rest).any()):
            count, row = int(short.sum()), int(tokens.rows[short][0]) + 1
            what = f"{rows.source}: {count} texts of {len(used)} give fewer than {least} tokens, the first in row {row}"
            if self.empty == "raise":
                raise InputError(f"{what}: remove them, or set data.empty=skip.", key="data.empty")
            _log.info("%s; they are skipped.", what)
        if tokens.cut:
            what = "split" if self.too_long == "split" else "truncated"
            _log.info(
                "%s: %d of %d texts have more than %d tokens and are %s.",
                *(rows.source, tokens.cut, len(rows.text), self._limit(), what),
            )
        if not bool(used.any()):
            raise InputError(f"{rows.source}: no text has a token.")
        return used.nonzero().flatten()

    def _form(self, limit: int | None) -> Form:
        """Return what batches are made with."""
        backend = self.backend
        if self.task == "masked" and backend.mask_token_id is None:
            raise InputError(f"The tokenizer {self.tokenizer!r} has no mask token, so nothing can be masked.")
        pads = (backend.pad_token_id, backend.eos_token_id, 0)
        return Form(
            self.task,
            next(number for number in pads if number is not None),
            tuple(backend.all_special_ids),
            backend.mask_token_id or 0,
            len(self.vocabulary),
            self.mask_probability,
            self.multiple_of,
            (limit or self.longest) if self.packing else 0,
            self.seed,
        )

    def train_dataloader(self) -> Loader:
        """Return a loader of the training split, shuffled anew each epoch."""
        train = cast(Texts, self._split("train"))
        return self.train_loader(train, partial(LengthGroups, train.lengths) if self.group_by_length else Shuffled)

    def steps(self, epochs: int) -> int:
        """Return the number of training batches in so many epochs, after ``setup``."""
        whole, rest = divmod(self.sizes["train"], self.batch_size)
        return epochs * (whole if self.drop_last else whole + math.ceil(rest / self.batch_size))

    @property
    def augments(self) -> bool:
        """Return whether the inputs of a text change from epoch to epoch."""
        return self.task == "masked"

    @property
    def distinct_epochs(self) -> int | None:
        """Return after how many epochs the inputs repeat; ``None`` for never."""
        return None if self.augments else 1

    def fingerprint(self) -> dict[str, Any]:
        """Return what the inputs of a training batch depend on besides epoch, index and padding, after ``setup``.

        Raises:
            InputError: a subclass with other batches does not define it, or a row is no sample.
        """
        refuse_unknown(self, TextData)
        if self.packing:
            raise InputError("A packed row is no sample, so outputs cannot be kept by sample: set data.packing=false.")
        train = cast(Texts, self._split("train"))
        digest = hashlib.sha256()
        for part in (train.tokens.ids, train.tokens.types, train.tokens.ends, train.rows):
            digest.update(part.numpy().data)
        return {"texts": digest.hexdigest(), "masked": repr(train.form) if self.augments else ""}

    def content(self) -> str:
        """Return a hash of all tokens and labels of all splits, after ``setup``, hexadecimal."""
        digest = hashlib.sha256()
        for name in ("train", "val", "test"):
            part = cast(Texts, self._split(name))
            digest.update(part.tokens.ids.numpy().data)
            digest.update(part.tokens.ends.numpy().data)
            digest.update(part.rows.numpy().data)
            digest.update(repr((part.values, [words.tolist() for words in part.words], part.form)).encode())
        return digest.hexdigest()[:12]
