"""Whether what a frozen teacher gives in a training can be kept on disk, and under what it is found again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from kdlab.data.fingerprint import METHODS, refuse_unknown
from kdlab.errors import InputError
from kdlab.members.teacher_cache import TeacherCache, describe
from kdlab.modules.first_batch import training_data
from kdlab.outputs.batch import inputs_of

if TYPE_CHECKING:
    from kdlab.modules.distiller import Distiller


OWN = ("observe", "lessons", "training_step", "on_train_batch_start")
"""Methods of the module itself that a batch passes through."""


def use_cache(module: Distiller) -> Callable[[], None]:
    """Find out what the teacher's outputs in the coming training depend on, and open its cache; nothing is written.

    Returns:
        What to call when the training is over: it takes back what cache and data agreed on.

    Raises:
        InputError: a loss reads the teacher's layers, the teacher depends on the batch, the data says nothing that the
            inputs could be known by, or the disk is too small.
    """
    teaching = module.teacher
    assert teaching is not None
    assert teaching.cache is not None
    cache: TeacherCache = teaching.cache
    data: Any = getattr(module.trainer, "datamodule", None)
    for name, each in module.knowledge.items():
        if each.teacher_layers:
            raise InputError(
                f"The teacher cache keeps logits and embeddings, but knowledge {name!r} ({type(each.loss).__name__}) "
                f"reads the teacher's layers {', '.join(each.teacher_layers)}: drop teacher_cache, or that knowledge."
            )
    if teaching.batchnorm == "batch":
        raise InputError("With teacher_batchnorm='batch' a sample's outputs depend on its batch: drop teacher_cache.")
    if not callable(getattr(data, "fingerprint", None)):
        given = f"{type(data).__name__} has no fingerprint()" if data is not None else "plain loaders say nothing of it"
        raise InputError(
            "The teacher cache needs data whose augmentation is a function of (seed, epoch, index), as that of "
            f"kdlab.data; {given}: use a data module of kdlab, define fingerprint(), or drop teacher_cache."
        )
    refuse_unknown(module, pl.LightningModule, (*METHODS[3:], *OWN))
    undo = _agree(cache, data)
    first = training_data(module)
    if first.samples is None or first.batch.index is None:
        raise InputError("The teacher cache needs batches with the sample index, of a data set of known size.")
    if not isinstance(first.batch.inputs, Tensor):
        raise InputError("The teacher cache needs batches whose inputs are one tensor: drop teacher_cache.")
    fast = None if teaching.fast is None else dataclasses.asdict(teaching.fast)
    trainer = module.trainer
    how = {"fast": fast, "precision": str(trainer.precision), "device": trainer.strategy.root_device.type}
    described = [{**describe(network), **how} for network in teaching.networks]
    embedding = any(each.reads_embedding for each in module.knowledge.values())
    cache.open(described, _readable(data.fingerprint()), first.samples, embedding)
    few, rows = first.few, {"": first.samples}
    for name in dict.fromkeys(view for each in module.knowledge.values() for view in each.views):
        rows[name] = first.samples * (len(inputs_of((few.views or {})[name])) // len(few.target))
    with teaching.rehearsing():
        seen = teaching.observe(few.inputs)
    width = None if seen.embedding is None else seen.embedding.shape[-1]
    epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
    classes = (seen.members[0][0] if seen.members else seen).logits.shape[-1]
    cache.plan(classes, width, epochs, rows)
    return undo


def _agree(cache: TeacherCache, data: Any) -> Callable[[], None]:
    """Let the data's augmentation repeat as often as the cache has views, until what is returned is called."""
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
