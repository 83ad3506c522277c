"""``kdlab check``: one dry batch of a config, and what it shows."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextvars import copy_context

from rich.console import Console

from kdlab.cli.printing import titled_table
from kdlab.config.config_merge import named_first
from kdlab.config.first_step import fit_to_first_step
from kdlab.config.lightning_cli import QUIET, build
from kdlab.config.part_summary import parts
from kdlab.errors import InputError
from kdlab.export.layer_shapes import shape_text
from kdlab.modules.base import DistillationModule
from kdlab.modules.cotrainer import CoTrainer
from kdlab.modules.memory_estimate import memory_of
from kdlab.teaching import Alone, FrozenTeacher


def check(overrides: list[str]) -> None:
    """Run one dry batch of a config, or of several laid over each other; nothing is trained or written.

    kdlab check CONFIG [-c CONFIG ...] [--KEY=VALUE ...] takes the options of kdlab fit.

    Args:
        overrides: a config, and options of ``kdlab fit``
    """
    # jsonargparse keeps its last parser, and with it the trainer, in the context; trainer and module form a cycle.
    copy_context().run(_check, named_first(overrides))
    gc.collect()


def _check(arguments: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli = build([*arguments, *QUIET], run=False, save_config=False)
        module = cli.model
        if not isinstance(module, DistillationModule):
            raise InputError(f"kdlab check takes a config of a kdlab module, not of {type(module).__name__}.")
        lines: list[str] = []
        fit_to_first_step(cli, lambda: lines.extend([memory_text(module), *map(_warning, notes(module))]))
    assert module.dry_run is not None
    numbers, values = ("parameters", "trained"), ("raw", "weight", "weighted")
    taps = [(network, layer, shape_text(shape)) for network, layer, shape in module.dry_run.taps]
    rows = [(name, kind, f"{size:,}", f"{trained:,}") for name, kind, size, trained in parts(module)]
    console = Console()
    console.print(titled_table("Parts", ("part", "class", *numbers), rows, numbers))
    console.print(titled_table("What the losses see", ("network", "layer", "shape"), taps))
    console.print(titled_table("Loss terms on the first samples", ("term", "loss", *values), terms(module), values))
    if module.form is not None:
        console.print(f"Targets: {module.form.description}.", highlight=False)
    if isinstance(module, CoTrainer):
        names, teaching = ", ".join(module.names), type(module.teaching).__name__
        console.print(f"Students: {names}. Teaching: {teaching}. Deployed: {module.deploy}.", highlight=False)
    messages = dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning))
    for line in [*lines, *(_warning(text) for text in messages if "teacher" in text.lower())]:
        console.print(line)


def _warning(text: str) -> str:
    return f"[yellow]warning:[/] {text}"


def terms(module: DistillationModule) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield every loss term on the first batch with its loss: raw value, weight, weighted value."""
    assert module.dry_run is not None
    for name, value in module.dry_run.terms.items():
        loss, weight, schedule = module.task, module.task_weight, module.task_schedule
        if knowledge := module.knowledge.get(name):
            loss, weight, schedule = knowledge.loss, knowledge.weight, knowledge.schedule
        shown = f"{weight:g}" + ("" if schedule is None else " x schedule")
        yield name, type(loss).__name__, f"{value:.4g}", shown, f"{value * weight:.4g}"


def memory_text(module: DistillationModule) -> str:
    """Return the estimated memory of training as text, in MB of 2^20 bytes."""
    amounts = memory_of(module)
    listed = ", ".join(f"{name} {amount / 2**20:.1f}" for name, amount in amounts.items())
    return f"Memory, estimated in MB: {listed}; together {sum(amounts.values()) / 2**20:.1f}."


def notes(module: DistillationModule) -> Iterator[str]:
    """Yield what is allowed but probably not meant."""
    assert module.dry_run is not None
    if idle := module.dry_run.idle:
        yield f"{len(idle)} trainable parameters get no gradient from any term: {', '.join(idle[:3])} ..."
    if module.knowledge:
        return
    if isinstance(module.teaching, FrozenTeacher):
        yield "a teacher is given but no knowledge: the student learns from labels alone."
    elif not isinstance(module.teaching, Alone | None):
        yield f"{type(module.teaching).__name__} is given but no knowledge: every student learns from labels alone."
    if module.task_weight == 0:
        yield "the task weighs 0 and there is no knowledge: nothing is learned."
