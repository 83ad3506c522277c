"""How frozen teachers run in a training, chosen by timing once for all of its processes and for a resumed run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.seed import isolate_rng

from kdlab.errors import InputError
from kdlab.files import locked, read_json, write_json
from kdlab.members.fast_choice import options_of
from kdlab.members.fast_options import Fast
from kdlab.members.frozen import Frozen
from kdlab.modules.cache_setup import weights_digest
from kdlab.modules.first_batch import first_batch
from kdlab.schedules import Progress

FILE = "teacher_fast.json"
_log = logging.getLogger("kdlab.teaching")


def choose_teachers(module: Any) -> None:
    """Choose how the frozen teachers of a plan run whose ``fast`` is timed; the first process decides for all.

    A choice is read from the run's own file, then from that of the run that it continues, then from the file that runs
    share: the one that ``timed`` names, else one in the folder of the teacher cache, so that its outputs are of one
    kind. What is in none of them is timed; the choice is written to the run's file and to the shared one.

    Raises:
        InputError: a file holds something else than options.
    """
    trainer: pl.Trainer = module.trainer
    timed = list(_timed(module))
    if not timed:
        return
    own_file = choice_file(trainer)  # all processes take part
    for teacher, fast in timed:
        options: dict[str, Any] | None = None
        if trainer.is_global_zero:
            options = _options(module, teacher, fast, own_file)
        options = trainer.strategy.broadcast(options)
        teacher.use(None if options is None else Fast(**options))


def without_timing(module: Any) -> None:
    """Leave frozen teachers as they run where nothing is timed, for a setup that trains nothing."""
    for teacher, fast in _timed(module):
        teacher.fast = dataclasses.replace(fast, timed=False)


def choice_file(trainer: pl.Trainer) -> Path | None:
    """Return the file of choices in a run's folder; ``None`` if the run has no folder. All processes must call it."""
    checkpoint, folder = trainer.checkpoint_callback, trainer.log_dir
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath:
        return Path(checkpoint.dirpath).parent / FILE
    return Path(folder) / FILE if trainer.loggers and folder else None


def _timed(module: Any) -> Iterator[tuple[Frozen, Fast]]:
    plan = getattr(module, "plan", None)
    for member in plan.members.values() if plan else ():
        if isinstance(member, Frozen) and member.fast is not None and member.fast.timed:
            yield member, member.fast


def _options(module: Any, teacher: Frozen, fast: Fast, own_file: Path | None) -> dict[str, Any] | None:
    """Return the options of the choice that is known, or that is made now; ``None`` where nothing can be chosen."""
    trainer: pl.Trainer = module.trainer
    cache = getattr(module.teaching, "cache", None)
    shared = Path(fast.timed) if isinstance(fast.timed, str) else cache.folder / FILE if cache else None
    before = Path(trainer.ckpt_path).parent.parent / FILE if trainer.ckpt_path else None
    key = _key(teacher, fast, trainer)
    with ExitStack() as stack:
        if shared is not None:  # of runs that start together one times, and the others wait and read
            stack.enter_context(locked(shared.with_name(f".{shared.name}.lock"), "", wait=True))
        entry = next(
            (entry_at for path in (own_file, before, shared) if (entry_at := _entry(path, key, teacher, fast))), None
        )
        if entry is None and (entry := _timed_choice(module, teacher)) is None:
            return None
        for path in (own_file, shared):
            content = (read_json(path) or {}) if path else {}
            if path and content.get(key) != entry:
                write_json(path, {**content, key: entry})
    return dataclasses.asdict(options_of(entry, fast))


def _entry(path: Path | None, key: str, teacher: Frozen, fast: Fast) -> dict[str, Any] | None:
    """Return the entry of a file; ``None`` if it has none."""
    if path is None or (entry := (read_json(path) or {}).get(key)) is None:
        return None
    try:
        options_of(entry, fast)
        chosen = ", ".join(f"{name}={value}" for name, value in entry["chosen"].items())
    except (AttributeError, InputError, KeyError, TypeError) as error:
        text = f"'{path}' holds no choice for {teacher.name!r} ({error})"
        raise InputError(f"{text}: delete it, or name the options of teacher_fast yourself.") from error
    _log.info("Fast teacher %s: %s, as chosen in '%s'.", type(teacher.network).__name__, chosen, path)
    return dict(entry)


def _timed_choice(module: Any, teacher: Frozen) -> dict[str, Any] | None:
    """Return the entry of a choice that is made on the first batch; ``None`` where nothing can be chosen."""
    trainer: pl.Trainer = module.trainer
    batch = first_batch(module).batch._replace(progress=Progress(trainer.current_epoch, 0, module.length.steps))
    with isolate_rng(), trainer.precision_plugin.forward_context():
        choice = teacher.choose(batch)
    if choice is None:
        return None
    about = {"teacher": teacher.name, "network": type(teacher.network).__name__, "batch": len(batch.target)}
    about |= {"precision": str(trainer.precision), "device": trainer.strategy.root_device.type}
    return {**about, **choice.record}


def _key(teacher: Frozen, fast: Fast, trainer: pl.Trainer) -> str:
    """Return what a choice is found by: the teacher's weights, the options allowed, precision and kind of device."""
    allowed = {**dataclasses.asdict(fast), "timed": True}
    parts: Sequence[Any] = (
        weights_digest(teacher.network),
        allowed,
        str(trainer.precision),
        trainer.strategy.root_device.type,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
