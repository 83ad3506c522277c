"""``kdlab check``: one dry batch of a config, and what it shows."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence

import pytorch_lightning as pl
from rich.console import Console
from rich.table import Table
from torch import nn

from kdlab.cli.layers import shape_text
from kdlab.config.lightning_cli import QUIET, build
from kdlab.errors import InputError
from kdlab.modules.base import DistillationModule
from kdlab.modules.cotrainer import CoTrainer
from kdlab.modules.memory_estimate import memory_of
from kdlab.teaching import Alone, Teaching


def run(arguments: Sequence[str]) -> None:
    """Rehearse a config as ``kdlab fit`` would, print what was found, and write nothing."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(
            "usage: kdlab check CONFIG [-c CONFIG ...] [--KEY=VALUE ...]\n\n"
            "Run one dry batch of a config, or of several laid over each other; nothing is trained or written."
        )
        return
    given = list(arguments) if arguments[0].startswith("-") else ["-c", *arguments]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        cli = build([*given, *QUIET], run=False, save_config=False)
        module = cli.model
        if not isinstance(module, DistillationModule):
            raise InputError(f"kdlab check takes a config of a kdlab module, not of {type(module).__name__}.")
        look = _Look()
        cli.trainer.callbacks.append(look)  # type: ignore[attr-defined]
        with contextlib.suppress(_Seen):
            cli.trainer.fit(module, datamodule=cli.datamodule)
    console = Console()
    console.print(parts_table(module))
    console.print(taps_table(module))
    console.print(terms_table(module))
    if isinstance(module, CoTrainer):
        console.print(f"Learners: {', '.join(module.names)}. Deployed: {module.deploy}.", highlight=False)
    console.print(look.memory)
    said = dict.fromkeys(str(each.message) for each in heard if issubclass(each.category, UserWarning))
    for text in [*look.notes, *(text for text in said if "teacher" in text.lower())]:
        console.print(f"[yellow]warning:[/] {text}")


class _Seen(Exception):  # noqa: N818
    """Ends the trainer's fit before the first step."""


class _Look(pl.Callback):
    """Takes notes when everything is set up, then stops."""

    memory = ""
    notes: tuple[str, ...] = ()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.memory = memory(pl_module)
        self.notes = tuple(notes(pl_module))
        raise _Seen


def parts_table(module: DistillationModule) -> Table:
    """Every part with its parameters and how many of them are trained."""
    table = Table("part", "class", title="Parts", title_justify="left")
    table.add_column("parameters", justify="right")
    table.add_column("trained", justify="right")
    trained = {id(parameter) for parameter in module.trainable().values()}
    parts: list[tuple[str, nn.Module]] = [*module.learners.items()]
    parts += [(f"losses.{name}", module.losses[name]) for name in module.knowledge]
    if module.teaching is not None:
        parts.append(("teacher" if module.teaching.fixed else "teaching", module.teaching))
    for name, part in parts:
        own = list(part.parameters())
        loss = module.knowledge.get(name.removeprefix("losses."))
        shown = teaching_text(part) if isinstance(part, Teaching) else type(loss.loss if loss else part).__name__
        count = sum(each.numel() for each in own if id(each) in trained)
        table.add_row(name, shown, f"{sum(each.numel() for each in own):,}", f"{count:,}")
    return table


def teaching_text(teaching: Teaching) -> str:
    """A frozen teacher's networks; of another teaching its name, and the networks that it keeps."""
    kept = ", ".join(type(each.network).__name__ for each in teaching.observers)
    if teaching.fixed:
        return f"{kept} (frozen)"
    return type(teaching).__name__ + (f", keeps {kept}" if kept else "")


def taps_table(module: DistillationModule) -> Table:
    """What is read of every network, with its shape."""
    assert module.rehearsal is not None
    table = Table("network", "layer", "shape", title="What the losses see", title_justify="left")
    for network, layer, shape in module.rehearsal.taps:
        table.add_row(network, layer, shape_text(shape))
    return table


def terms_table(module: DistillationModule) -> Table:
    """Every loss term on the first batch, raw and weighted."""
    assert module.rehearsal is not None
    table = Table("term", "loss", title="Loss terms on the first samples", title_justify="left")
    for column in ("raw", "weight", "weighted"):
        table.add_column(column, justify="right")
    for name, value in module.rehearsal.terms.items():
        loss = module.task if name == "task" else module.knowledge[name].loss
        weight = module.task_weight if name == "task" else module.knowledge[name].weight
        scheduled = (module.task_schedule if name == "task" else module.knowledge[name].schedule) is not None
        shown = f"{weight:g}" + (" x schedule" if scheduled else "")
        table.add_row(name, type(loss).__name__, f"{value:.4g}", shown, f"{value * weight:.4g}")
    return table


def memory(module: DistillationModule) -> str:
    """An estimate of the memory of training, as text, in MB of 2^20 bytes."""
    amounts = memory_of(module)
    parts = ", ".join(f"{name} {amount / 2**20:.1f}" for name, amount in amounts.items())
    return f"Memory, estimated in MB: {parts}; together {sum(amounts.values()) / 2**20:.1f}."


def notes(module: DistillationModule) -> list[str]:
    """What is allowed but probably not meant."""
    assert module.rehearsal is not None
    found = []
    if module.rehearsal.idle:
        shown = ", ".join(module.rehearsal.idle[:3])
        found.append(f"{len(module.rehearsal.idle)} trainable parameters get no gradient from any term: {shown} ...")
    teaching = module.teaching
    if teaching is not None and not module.knowledge and not isinstance(teaching, Alone):
        given, learner = ("a teacher", "the student") if teaching.fixed else (type(teaching).__name__, "every learner")
        found.append(f"{given} is given but no knowledge: {learner} learns from labels alone.")
    if module.task_weight == 0 and not module.knowledge:
        found.append("the task weighs 0 and there is no knowledge: nothing is learned.")
    return found
