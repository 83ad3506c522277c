"""``kdlab generations``: a student, and again the same one taught by the one before (Furlanello et al. 2018)."""

from __future__ import annotations

import argparse
import contextlib
import copy
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import yaml
from rich.console import Console
from safetensors import safe_open

from kdlab.cli.generations_report import Row, Together, table, write
from kdlab.config.lightning_cli import QUIET, KdlabCLI, build, take_up
from kdlab.config.run_folder import finish_loggers
from kdlab.errors import InputError
from kdlab.files import write_text
from kdlab.models import load_weights, save_weights
from kdlab.modules import Distiller

RECIPE, STUDENT = "recipe.yaml", "student.safetensors"
SHOWN_ONLY = ("logger", "enable_progress_bar", "enable_model_summary")
"""Options of the Trainer that change what is seen of a run and no bit of its result."""
DESCRIPTION = """\
Train the student of a config, on the labels alone; then the same recipe with the next seed, taught by the network \
before as model.knowledge and model.task_weight say; and so on. At the end every generation, and the mean of the \
probabilities of the first 2, 3, ..., is evaluated on the test set. The last generation is the one to deploy. \
All other options are those of kdlab fit. seed_everything rises by 1 with each generation; data.seed, which may \
choose the training set, does not. Called again with the same --out, a run goes on where it was."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}.")


def run(arguments: Sequence[str]) -> None:
    """Train and evaluate the generations, print the table and write ``generations.csv``."""
    parser = _Parser(prog="kdlab generations", description=DESCRIPTION, allow_abbrev=False)
    parser.usage = "kdlab generations -c CONFIG [-c CONFIG ...] [--count N] [--out FOLDER] [--KEY=VALUE ...]"
    parser.add_argument("--count", type=int, default=3, help="generations, the first included (default 3)")
    parser.add_argument("--out", help="folder to make or to go on in (default runs/generations_N, the first N free)")
    given, rest = parser.parse_known_args(list(arguments))
    numbered = (Path(f"runs/generations_{number}") for number in itertools.count())
    out = Path(given.out) if given.out else next(path for path in numbered if not path.exists())
    rows = generations(rest, given.count, out)
    console = Console(highlight=False)
    console.print(table(rows))
    write(rows, out / "generations.csv")
    last = out / f"generation_{given.count - 1}" / STUDENT
    print(f"Deployed is the last generation, which was decided before the training: {last}")


def generations(arguments: Sequence[str], count: int, out: Path) -> list[Row]:
    r"""Train each generation that ``out`` does not hold yet, and evaluate all of them.

    Generation 0 minimises the task's loss alone. Generation k = 1, 2, ... starts from new weights, with the seed
    ``seed_everything`` + k, and minimises

    .. math:: w_0 \, task(z^k, y) + \sum_j w_j \, loss_j(z^k, z^{k-1}, y)

    with the generation before as a frozen teacher: born-again networks have one loss, ``SoftLabels``, of weight 1, and
    :math:`w_0` = 1 (BAN+L) or 0; self-training in Tf-KD has ``SoftTargets`` and two generations. A generation is its
    weights after the last step, whatever validation says.

    Each has a folder, ``out``/generation_k, as ``kdlab fit`` leaves it: its ``config.yaml`` is its whole recipe.
    ``student.safetensors`` is written last and whole: a generation that has it is done, any other goes on from its last
    checkpoint.

    Args:
        arguments: as for ``kdlab fit``, such as ``["-c", "born_again.yaml", "--trainer.max_epochs=90"]``: a whole
            config of :class:`~kdlab.Distiller` without a teacher.
        count: how many generations, at least 1.
        out: the folder; it may hold earlier generations of the same config.

    Returns:
        One row for each generation, then one for the ensemble of the first 2, 3, ..., ``count``.

    Raises:
        InputError: before anything is trained or written: a config that cannot be used, or an ``out`` with other
            content.

    Paper: T. Furlanello, Z. C. Lipton, M. Tschannen, L. Itti, A. Anandkumar, "Born-Again Neural Networks", ICML 2018,
    arXiv 1805.04770; L. Yuan, F. E. H. Tay, G. Li, T. Wang, J. Feng, "Revisiting Knowledge Distillation via Label
    Smoothing Regularization" (Tf-KD), CVPR 2020, arXiv 1909.11723.
    """
    config = _resolved(arguments, count)
    _claimable(out, config)
    folders = [out / f"generation_{number}" for number in range(count)]
    done = [_done(folder, earlier) for earlier, folder in zip([None, *folders], folders, strict=False)]
    if not all(done[1:]):
        _rehearse(config)
    write_text(out / RECIPE, yaml.safe_dump(config, sort_keys=False))
    for number, folder in enumerate(folders):
        print(f"Generation {number} of 0 to {count - 1}, {folder}" + (": done before" if done[number] else ""))
        if not done[number]:
            _train(config, number, folder, folders[number - 1] / STUDENT if number else None)
    return _evaluate(config, [folder / STUDENT for folder in folders])


# Before anything runs


def _resolved(arguments: Sequence[str], count: int) -> dict[str, Any]:
    """The whole config, with every default."""
    if count < 1:
        raise InputError(f"--count is the number of generations, at least 1, not {count}.")
    cli = build(arguments, run=False, save_config=False)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    if not isinstance(cli.model, Distiller):
        raise InputError(
            f"Generations are of the student of a kdlab.Distiller, not of a {type(cli.model).__name__}: its networks "
            "have no teacher from before."
        )
    options = config["model"]["init_args"]
    if options.get("teacher") is not None:
        raise InputError("The teacher of a generation is the one before: drop model.teacher from the config.")
    if count > 1 and not options.get("knowledge"):
        raise InputError(
            "There is nothing that a generation would learn from the one before: give model.knowledge, such as "
            "{soft: {loss: kdlab.losses.SoftLabels}}."
        )
    if type(config.get("seed_everything")) is not int:
        raise InputError("Every generation has its own seed: set seed_everything to the first, a whole number.")
    if cli.trainer.world_size > 1:
        raise InputError(
            f"Generations are trained in one process, not in {cli.trainer.world_size}: set trainer.devices to 1."
        )
    return config


def _claimable(out: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but generations of this config."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: name a folder with --out.")
    if not (out / RECIPE).exists():
        if out.is_dir() and any(not each.name.endswith(".tmp") for each in out.iterdir()):
            raise InputError(f"{str(out)!r} holds something else already: name another folder with --out.")
        return
    earlier = yaml.safe_load((out / RECIPE).read_text())
    if differing := sorted(_differing(_relevant(earlier), _relevant(config))):
        raise InputError(
            f"{str(out)!r} holds generations of another config, which differs in {', '.join(differing[:3])}: name "
            "another folder with --out."
        )


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    trainer = {name: value for name, value in config["trainer"].items() if name not in SHOWN_ONLY}
    return {**config, "trainer": trainer}


def _differing(one: Any, other: Any, place: str = "") -> Iterable[str]:
    """The keys at which two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            yield from _differing(one.get(name), other.get(name), f"{place}.{name}" if place else name)
    elif one != other:
        yield place


def _done(folder: Path, earlier: Path | None) -> bool:
    """Whether a generation is there, taught by the one that is there now."""
    path = folder / STUDENT
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        teacher = (file.metadata() or {}).get("teacher", "")
    if teacher != (_digest(earlier / STUDENT) if earlier else ""):
        raise InputError(f"{str(folder)!r} was taught by another network than is in {str(earlier)!r} now: delete it.")
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"


class _Seen(Exception):  # noqa: N818
    """Ends a rehearsal before the first step."""


class _Stop(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise _Seen


def _rehearse(config: dict[str, Any]) -> None:
    """Set generation 1 up with an untrained teacher: what cannot work is not to be found out after generation 0."""
    cli = _build(_later(config, config["model"]["init_args"]["student"]), "--trainer.num_sanity_val_steps=0")
    cli.trainer.callbacks.append(_Stop())  # type: ignore[attr-defined]
    with contextlib.suppress(_Seen):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)


def _build(config: dict[str, Any], *options: str) -> KdlabCLI:
    """What a config names, with nothing logged or saved."""
    return build([f"--config={yaml.safe_dump(config)}", *QUIET, *options], run=False, save_config=False)


# The recipes


def _first(config: dict[str, Any]) -> dict[str, Any]:
    """The recipe of generation 0: labels alone."""
    config = copy.deepcopy(config)
    options = config["model"]["init_args"]
    groups = {name: each for name, each in (options["parameter_groups"] or {}).items() if _of_student(name)}
    options.update(knowledge={}, task_weight=1.0, task_schedule=None, parameter_groups=groups or None)
    return config


def _of_student(group: str) -> bool:
    return group.partition(".")[0] != "losses"  # of the losses' own parts there are none


def _later(config: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """The recipe of the generations from 1 on."""
    config = copy.deepcopy(config)
    config["model"]["init_args"]["teacher"] = teacher
    return config


def _recipe(config: dict[str, Any], number: int, folder: Path, teacher: Path | None) -> dict[str, Any]:
    """The whole config of one generation, for ``kdlab fit``."""
    if teacher is None:
        config = _first(config)
    else:
        known = {"network": config["model"]["init_args"]["student"], "weights": str(teacher)}
        config = _later(config, {"class_path": "kdlab.models.with_weights", "init_args": known})
    config["seed_everything"] += number
    config["checkpoint"] |= {"dirpath": str(folder / "checkpoints"), "save_last": True, "save_weights_only": False}
    config["checkpoint"]["enable_version_counter"] = False  # last.ckpt is the last one
    # With 0, Lightning 2.6 writes no last.ckpt before the end: it wants another checkpoint of the same step first.
    config["checkpoint"]["save_top_k"] = config["checkpoint"]["save_top_k"] or 1
    trainer = config["trainer"]
    trainer["enable_checkpointing"] = True
    for logger in trainer["logger"] if isinstance(trainer["logger"], list) else [trainer["logger"]]:
        options = logger.get("init_args") if isinstance(logger, dict) else None
        if options and logger["class_path"].endswith("CSVLogger"):
            options |= {"save_dir": str(folder.parent), "name": "", "version": folder.name}
        elif options and "name" in options:
            options["name"] = f"{options['name'] or folder.parent.name}-{folder.name}"
    return config


# Training and evaluation


def _train(config: dict[str, Any], number: int, folder: Path, teacher: Path | None) -> None:
    """Train one generation to its end, from its last checkpoint if it has one."""
    recipe = _recipe(config, number, folder, teacher)
    cli = take_up(recipe, folder)
    finish_loggers(cli.trainer)  # else W&B would log the next generation into the same run
    said = {"seed": str(recipe["seed_everything"]), "teacher": _digest(teacher) if teacher else ""}
    assert isinstance(cli.model, Distiller)
    save_weights(cli.model.student, folder / STUDENT, said)


def _evaluate(config: dict[str, Any], weights: Sequence[Path]) -> list[Row]:
    """The test set, once for all."""
    cli = _build(_first(config))
    assert isinstance(cli.model, Distiller)
    together = Together([load_weights(copy.deepcopy(cli.model.student), path) for path in weights])
    cli.trainer.test(together, datamodule=cli.datamodule, verbose=False)
    return together.rows()
