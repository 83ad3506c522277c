"""Setup of a teacher cache: whether outputs can be kept on disk in a training, and what they depend on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from kdlab.data import ImageData
from kdlab.data.fingerprint import METHODS, refuse_unknown
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.members.cached import Cached
from kdlab.members.frozen import Frozen
from kdlab.members.member import Member
from kdlab.members.teacher_cache import TeacherCache, describe
from kdlab.modules.first_batch import FirstBatch
from kdlab.outputs import Batch, inputs_of
from kdlab.teaching.plan import Plan

OWN = ("observe", "training_step", "on_train_batch_start")
"""Methods of the module itself that a batch passes through."""


def use_cache(
    module: pl.LightningModule,
    plan: Plan,
    knowledge: Mapping[str, Knowledge],
    teachers: Sequence[Frozen],
    cache: TeacherCache,
    first: FirstBatch,
) -> tuple[Plan, Callable[[], None]]:
    """Open a cache for the coming training; nothing is written.

    Args:
        module: what is trained.
        plan: its plan.
        knowledge: its knowledge, by name.
        teachers: the frozen teachers of the plan.
        cache: the cache.
        first: the first batch.

    Returns:
        The plan with the teachers behind the cache, and a function to call when the training is over, which restores
        the data and the cache.

    Raises:
        InputError: a loss reads the teacher's layers, the teacher depends on the batch, the data gives nothing that
            identifies the inputs, or the disk is too small.
    """
    data: Any = getattr(module.trainer, "datamodule", None)
    for name, own in knowledge.items():
        if own.teacher_layers:
            raise InputError(
                f"The teacher cache keeps logits and embeddings, but knowledge {name!r} ({type(own.loss).__name__}) "
                f"reads the teacher's layers {', '.join(own.teacher_layers)}: drop teacher_cache, or that knowledge."
            )
    if any(teacher.batchnorm == "batch" for teacher in teachers):
        raise InputError("With teacher_batchnorm='batch' a sample's outputs depend on its batch: drop teacher_cache.")
    if not callable(getattr(data, "fingerprint", None)):
        source = "a plain loader" if data is None else type(data).__name__
        raise InputError(
            "The teacher cache needs data whose augmentation is a function of (seed, epoch, index), as that of "
            f"kdlab.data; {source} has no fingerprint(): use a data module of kdlab, define fingerprint(), or drop "
            "teacher_cache."
        )
    refuse_unknown(module, pl.LightningModule, (*METHODS[3:], *OWN))
    undo = _agree(cache, data)
    if first.samples is None or first.batch.index is None:
        raise InputError("The teacher cache needs batches with the sample index, of a data set of known size.")
    if not isinstance(first.batch.inputs, Tensor):
        raise InputError("The teacher cache needs batches whose inputs are one tensor: drop teacher_cache.")
    trainer = module.trainer
    how = {"precision": str(trainer.precision), "device": trainer.strategy.root_device.type}
    described = [
        {**describe(teacher.network), "fast": teacher.fast and dataclasses.asdict(teacher.fast), **how}
        for teacher in teachers
    ]
    embedding = any(own.reads_embedding for own in knowledge.values())
    cache.open(described, _readable(data.fingerprint()), first.samples, embedding)
    few, rows = first.few, {"": first.samples}
    views = list(dict.fromkeys(view for own in knowledge.values() for view in own.views))
    for name in views:
        rows[name] = first.samples * (len(inputs_of(few.view(name))) // len(few.target))
    seen = teachers[0].dry(few)
    width = None if seen.embedding is None or len(teachers) > 1 else seen.embedding.shape[-1]
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
    cache.plan(seen.logits.shape[-1], width, epochs, rows)
    # A user's own hook may change which samples a batch has after its transfer.
    kept = getattr(type(data), "on_after_batch_transfer", None) is ImageData.on_after_batch_transfer

    def index_of(batch: Batch) -> Tensor:
        index: Tensor | None = data.host_index if kept and data.host_index is not None else batch.index
        assert index is not None
        return index

    return _behind(plan, teachers, Cached(teachers, cache, index_of, views)), undo


def _behind(plan: Plan, teachers: Sequence[Frozen], cached: Cached) -> Plan:
    """Return the plan with one member in the place of the teachers."""
    members: dict[str, Member] = {}
    for name, member in plan.members.items():
        if member is teachers[0]:
            members[cached.name] = cached
        elif not any(member is teacher for teacher in teachers):
            members[name] = member
    return dataclasses.replace(plan, members=members)


def _agree(cache: TeacherCache, data: Any) -> Callable[[], None]:
    """Let the data's augmentation repeat as often as the cache has views, until the returned function is called."""
    views, distinct = cache.views, getattr(data, "distinct_epochs", None)

    def undo() -> None:
        cache.views = views
        if hasattr(data, "distinct_epochs"):
            data.distinct_epochs = distinct

    if cache.views is None:
        cache.views = getattr(data, "distinct_epochs", None)
    elif getattr(data, "distinct_epochs", None) is None:
        data.distinct_epochs = cache.views
        rank_zero_info(
            f"Augmentation repeats after {cache.views} epochs, for the teacher cache: report it as {cache.views} fixed "
            "views."
        )
    elif data.distinct_epochs != cache.views:
        raise InputError(
            f"The data repeats its augmentation after {data.distinct_epochs} epochs, but teacher_cache.views is "
            f"{cache.views}: give one of them alone."
        )
    return undo


def _readable(said: Any) -> dict[str, Any]:
    if not isinstance(said, dict):
        raise InputError(f"fingerprint() must give a dict, not a {type(said).__name__}.")
    try:
        json.dumps(said, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"fingerprint() must give plain numbers, strings, lists and dicts ({error}).") from error
    return said
