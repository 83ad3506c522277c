"""Setup of a teacher cache: whether outputs can be kept on disk in a training, and what they depend on."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from kdlab.data.fingerprint import METHODS, refuse_unknown
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.members.fast_options import PLAIN
from kdlab.members.frozen import Frozen
from kdlab.members.teacher_cache import Cached, Store, TeacherCache, plan_disk
from kdlab.modules.first_batch import FirstBatch
from kdlab.modules.source_checks import host_index
from kdlab.outputs import inputs_of
from kdlab.teaching.plan import Plan

_OF_ANY = frozenset(vars(nn.Module()))  # attributes that say how a module is used: mode, hooks


def use_cache(
    module: Any,
    plan: Plan,
    knowledge: Mapping[str, Knowledge],
    teachers: Sequence[Frozen],
    cache: TeacherCache,
    first: FirstBatch,
) -> tuple[Plan, Callable[[], None]]:
    """Open a cache for the coming training; nothing is written.

    Returns:
        The plan with the teachers behind the cache, and a function to call when the training is over, which restores
        the data.

    Raises:
        InputError: a loss reads the teacher's layers, the teacher depends on the batch, the data gives nothing that
            identifies the inputs, or the disk is too small.
    """
    trainer = module.trainer
    data: Any = getattr(trainer, "datamodule", None)
    _check(data, knowledge, teachers)
    methods = (*METHODS[3:], "observe", "training_step", "on_train_batch_start")
    refuse_unknown(module, pl.LightningModule, methods)  # all that a batch passes through
    if first.samples is None or first.batch.index is None:
        raise InputError("The teacher cache needs batches with the sample index, of a data set of known size.")
    few, rows = first.few, {"": first.samples}
    for view in dict.fromkeys(view for each in knowledge.values() for view in each.views):
        rows[view] = first.samples * (len(inputs_of(few.view(view))) // len(few.target))
    how = {"precision": str(trainer.precision), "device": trainer.strategy.root_device.type}
    fingerprint = _plain(data.fingerprint())
    reads_embedding = any(part.reads_embedding for part in knowledge.values())
    cache, undo = _with_views_of(cache, data)
    cached = {}
    for teacher in teachers:
        batch = (first.batch if teacher.fast else few)._replace(progress=None)  # on which a copy is checked
        with trainer.precision_plugin.forward_context():
            outputs = teacher.observe(batch.inputs, batch)
        about = {**describe(teacher.network), "fast": None if teacher.used == PLAIN else teacher.used.changes, **how}
        if teacher.preprocessing is not None:
            about["preprocessing"] = dataclasses.asdict(teacher.preprocessing)
        forms = cache.forms(outputs, reads_embedding)
        store = Store(cache, {"teacher": about, "data": fingerprint}, rows, forms)
        cached[teacher.name] = Cached(teacher, store, host_index(data))
    plan_disk([member.store for member in cached.values()], module.length.epochs_of_data(trainer))
    return dataclasses.replace(plan, members={**plan.members, **cached}), undo


def _check(data: Any, knowledge: Mapping[str, Knowledge], teachers: Sequence[Frozen]) -> None:
    """Check that the teachers' outputs depend on the sample alone, and that the data can identify it."""
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


def _with_views_of(cache: TeacherCache, data: Any) -> tuple[TeacherCache, Callable[[], None]]:
    """Let data and a copy of the cache repeat after as many epochs, the data until the returned function is called."""
    views, distinct = cache.views, getattr(data, "distinct_epochs", None)
    if views is None:
        cache = copy.copy(cache)
        cache.views = distinct
        return cache, lambda: None
    if distinct not in (None, views):
        raise InputError(
            f"The data repeats its augmentation after {distinct} epochs, but teacher_cache.views is {views}: give one "
            "of them alone."
        )
    if distinct is None:
        data.distinct_epochs = views
        rank_zero_info(
            f"Augmentation repeats after {views} epochs, for the teacher cache: report it as {views} fixed views."
        )
    return cache, lambda: setattr(data, "distinct_epochs", distinct)


def _plain(fingerprint: Any) -> dict[str, Any]:
    if not isinstance(fingerprint, dict):
        raise InputError(f"fingerprint() must give a dict, not a {type(fingerprint).__name__}.")
    try:
        json.dumps(fingerprint, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"fingerprint() must give plain numbers, strings, lists and dicts ({error}).") from error
    return fingerprint


def describe(network: nn.Module) -> dict[str, str]:
    """Describe what a network's outputs depend on besides device and memory format: weights, classes and settings.

    Not seen is code: a ``forward`` or a lambda that was changed while classes, weights and attributes stayed.

    Returns:
        ``weights``: SHA-256 of names, dtypes, shapes and bytes of parameters and buffers; ``network``: class and repr;
        ``settings``: SHA-256 of each layer's class and the repr of its attributes, without memory addresses: what its
        own repr may not show (the activation of a ``TransformerEncoderLayer``).

    Raises:
        InputError: the repr shows a memory address, which says nothing in another process.
    """
    text = f"{type(network).__qualname__}: {network!r}"
    text += "".join(f"\n{name}: {value!r}" for name, value in _state(network) if not isinstance(value, Tensor))
    if " at 0x" in text:
        raise InputError(
            f"The teacher's description has a memory address ('...{text.split(' at 0x')[0][-40:]} at 0x...'), so its "
            "outputs cannot be found again: give that object a repr of its own, or drop the teacher cache."
        )
    layers = []
    for name, module in network.named_modules():
        own = [(key, repr(value)) for key, value in vars(module).items() if key not in _OF_ANY]
        said = sorted((key, re.sub(r" at 0x[0-9a-f]+", "", value)) for key, value in own)
        layers.append((name, type(module).__qualname__, said))
    settings = hashlib.sha256(repr(layers).encode()).hexdigest()
    return {"weights": weights_digest(network), "network": text, "settings": settings}


def weights_digest(network: nn.Module) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of parameters and buffers, and of layers' extra state."""
    digest = hashlib.sha256()
    for name, value in _state(network):
        if not isinstance(value, Tensor):
            digest.update(f"{name} {value!r}\n".encode())
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _state(network: nn.Module) -> list[tuple[str, Any]]:
    """Return parameters, buffers and extra state by name, in order."""
    return sorted({**dict(network.named_buffers(remove_duplicate=False)), **network.state_dict()}.items())
