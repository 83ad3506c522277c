"""``kdlab tune``: the fastest setting of a recipe on this machine, measured, as a config to lay over it."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml
from rich.console import Console

from kdlab.cli.printing import titled_table
from kdlab.config.config_merge import named_first
from kdlab.config.tuning import BATCH, Setting, Tuning
from kdlab.errors import InputError
from kdlab.export.timing import BUSY, others_load
from kdlab.files import write_text
from kdlab.studies.environment import device_name

COLUMNS = ("setting", "samples/s", "of the recipe", "peak MB", "loss", "difference", "note")


def tune(
    overrides: list[str],
    out: Path = Path("tuned.yaml"),
    steps: int = 20,
    rounds: int = 3,
    tolerance: float = 0.05,
    compile: bool = False,
    batch_size: bool = False,
    overwrite: bool = False,
) -> None:
    """Measure in which setting a recipe trains fastest on this machine, and write it as a config to lay over it.

    kdlab tune RECIPE [-c CONFIG ...] [--KEY=VALUE ...] takes the options of kdlab fit. Short fits in lower precision,
    with channels_last and, for streamed data, with other numbers of workers or with the images in memory take turns
    with the fastest setting before. A setting whose loss after these steps differs from the recipe's is not chosen. How
    the teacher runs is teacher_fast.timed's; a teacher cache is off meanwhile. Nothing is written but the config.

    Args:
        overrides: a config, and options of ``kdlab fit``
        out: the config to write
        steps: timed steps of a fit
        rounds: fits of each setting, in alternation
        tolerance: largest relative difference of the loss from the recipe's
        compile: try torch.compile too, which may take minutes
        batch_size: try larger batches too, until one fails or is no faster; this is another training
        overwrite: replace a file that is there
    """
    if out.exists() and not overwrite:
        raise InputError(f"{str(out)!r} exists: choose another file with --out, or give --overwrite.")
    for name, number in (("steps", steps), ("rounds", rounds)):
        if number < 1:
            raise InputError(f"--{name} is at least 1, not {number}.")
    if not tolerance > 0:
        raise InputError(f"--tolerance must be a positive number, not {tolerance}.")
    console, arguments = Console(), named_first(overrides)
    tuning = Tuning(arguments, steps, rounds, tolerance, lambda setting: console.print(_line(setting), highlight=False))
    load = others_load()
    best = tuning.run(compile, batch_size)
    recipe = tuning.settings[0]
    console.print(
        titled_table("Settings", COLUMNS, [_cells(one, recipe, best) for one in tuning.settings], COLUMNS[1:6])
    )
    if load is not None and load > BUSY:
        console.print(f"Other processes used {100 * load:.0f} % of the processors: measure again on an idle machine.")
    faster = f"{best.speed:.0f} samples/s, {recipe.speed:.0f} as the recipe is"
    device = device_name(tuning.device)
    words = shlex.join(arguments)
    text = f"# {_name(best)} of `kdlab tune {shlex.join(overrides)}` on {device}: {faster}.\n"
    text += f"# kdlab fit {words} -c {out}\n"
    if BATCH in best.options:
        text += "# The batch is larger: choose the learning rate for it; results are those of another training.\n"
    write_text(out, text + yaml.safe_dump(tuning.overlay(best), sort_keys=False))
    console.print(f"{out} has the fastest one ({_name(best)}: {faster}):", highlight=False)
    console.print(f"  kdlab fit {words} -c {out}", highlight=False, soft_wrap=True)


def _name(setting: Setting) -> str:
    names = [f"{name.rpartition('.')[2]}={value}" for name, value in setting.options.items()]
    return ", ".join(names).replace("True", "true") or "the recipe as it is"


def _line(setting: Setting) -> str:
    return f"{_name(setting)}: {setting.refused or f'{setting.speed:.0f} samples/s'}"


def _cells(setting: Setting, recipe: Setting, best: Setting) -> list[str]:
    speed, memory, difference = setting.speed, setting.memory, setting.difference
    return [
        _name(setting),
        f"{speed:.0f}" if speed else "–",
        f"{speed / (recipe.speed or speed):.2f}" if speed else "–",
        f"{memory / 1e6:.0f}" if memory is not None else "–",
        f"{setting.fits[-1].loss:.4f}" if setting.fits else "–",
        f"{100 * difference:.2f} %" if difference is not None else "–",
        setting.refused or ("chosen" if setting is best else ""),
    ]
