"""Setup checks: term names, required views, DDP unused-parameter handling, logging."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from kdlab.compat import BatchNorm, ddp_options, ignore_in_ddp
from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.modules.dry_run import DryRun
from kdlab.modules.run_length import accumulates
from kdlab.modules.text_checks import check_texts
from kdlab.teaching.plan import Plan


def prepare_data(trainer: pl.Trainer, plan: Plan, knowledge: Mapping[str, Knowledge]) -> None:
    """Request the plan's views; check networks against texts; refuse accumulation where networks take turns."""
    check_texts(trainer, plan, knowledge)
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ImageData):
        data.provide(dict(plan.views))
    if plan.update == "sequential" and accumulates(trainer):
        raise InputError(
            "Networks that are updated one after another cannot accumulate gradients over several batches: drop "
            "trainer.accumulate_grad_batches, or update them simultaneously."
        )


def configure_ddp(module: pl.LightningModule, plan: Plan, dry_run: DryRun) -> None:
    """Let DDP expect parameters without gradient where there are some, else it stops at the second step.

    Buffers that members synchronize themselves are left out of its broadcasts.
    """
    strategy = module.trainer.strategy
    synchronized = {id(getattr(member, name)) for member in plan.members.values() for name in member.synchronized}
    ignore_in_ddp(module, [name for name, buffer in module.named_buffers() if id(buffer) in synchronized])
    if not isinstance(strategy, DDPStrategy):
        return
    unused = dry_run.idle + dry_run.resting
    if plan.update == "sequential" or unused:
        ddp_options(strategy).setdefault("find_unused_parameters", True)
    if unused:
        parts = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in unused))
        rank_zero_info(f"DDP looks for unused parameters at each step: at times there is no gradient for {parts}.")


def report_batch(module: pl.LightningModule, knowledge: Mapping[str, Knowledge], dry_run: DryRun | None) -> None:
    """Report batch size and learning rate, and what several processes compute otherwise than one."""
    trainer, processes = module.trainer, module.trainer.world_size
    size = 0 if dry_run is None else dry_run.batch_size
    factors = [f"{size} in each of {processes} processes"] if processes > 1 else []
    if (batches := trainer.accumulate_grad_batches) > 1:
        factors.append(f"{batches} accumulated batches")
    rates = dict.fromkeys(f"{group['lr']:.6g}" for optimizer in trainer.optimizers for group in optimizer.param_groups)
    detail = f" ({', '.join(factors)})" if factors else ""
    rank_zero_info(f"A step takes {size * processes * batches} samples{detail}; learning rate {', '.join(rates)}.")
    if processes == 1:
        return
    part = f"the {size} samples of one process, not all {size * processes}"
    gathered = tuple(f"losses.{name}." for name, own in knowledge.items() if own.gather)
    norms = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, BatchNorm) and not isinstance(layer, nn.SyncBatchNorm) and layer.training
        if not name.startswith(gathered)
    ]
    if norms:
        synchronized = (
            "trainer.sync_batchnorm=true normalizes with all of them."
            if module.device.type == "cuda"
            else "Its statistics stay those of each process: torch synchronizes BatchNorm on GPUs only "
            "(trainer.sync_batchnorm=true)."
        )
        rank_zero_warn(
            f"BatchNorm normalizes with {part}, so this run differs from that of one process: {', '.join(norms[:3])}"
            f"{f' and {len(norms) - 3} more' if norms[3:] else ''}. {synchronized}"
        )
    for name, own in knowledge.items():
        if not own.gather and any(getattr(loss, "couples_samples", False) for loss in own.loss.modules()):
            loss = type(own.loss).__name__
            rank_zero_info(f"Knowledge {name!r} ({loss}) compares {part}: gather=true compares all.")


def setup_logging(rank: int) -> None:
    """Show what the losses log, once, unless the user has configured logging."""
    warnings.filterwarnings("ignore", "Using `DistributedSampler`")  # RepeatedSamples does what Lightning asks for
    warnings.filterwarnings("ignore", "You're using the WeightAveraging callback")  # sharding is for FSDP2 alone
    log = logging.getLogger("kdlab")
    if not log.handlers and not logging.root.handlers:
        log.addHandler(logging.StreamHandler())
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def check_key(what: str, name: str, reserved: Sequence[str]) -> None:
    """Refuse a name that cannot be a log key and a checkpoint key; of the reserved words ``..._end`` is an ending."""
    if not isinstance(name, str):  # YAML reads 3 and yes as no text
        raise InputError(f"{what} name must be a plain word, not {name!r}.")
    taken = any(name == word or (word[:3] == "..." and name.endswith(word[3:])) for word in reserved)
    if taken or not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise InputError(
            f"{what} name must be a plain word other than {', '.join(map(repr, reserved))} and the methods of a dict, "
            f"not {name!r}."
        )


def check_names(knowledge: Mapping[str, Knowledge]) -> None:
    """Refuse names that cannot be log keys and checkpoint keys, and parts that two knowledges share.

    A loss is set up, advanced and copied for the edges of one knowledge, so no other can own parts of it.
    """
    owners: dict[int, str] = {}
    for name, own in knowledge.items():
        check_key("A knowledge's", name, ("task", "total", "..._weighted"))
        for part in (own, *own.loss.modules(), *own.loss.parameters(), *own.loss.buffers()):
            if (other := owners.setdefault(id(part), name)) != name:
                what = f"one object, a {type(part).__name__}"
                raise InputError(f"Knowledge {other!r} and {name!r} share {what}: make one for each name.")
