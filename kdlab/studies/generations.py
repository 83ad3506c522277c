"""Born-again generations: a student trained again and again, each time taught by the one before."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import yaml
from safetensors import safe_open
from torch import Tensor, nn

from kdlab.config.first_step import fit_to_first_step
from kdlab.config.lightning_cli import QUIET_TRAINER, KdlabCLI, build, take_up
from kdlab.config.run_folder import finish_loggers
from kdlab.errors import InputError
from kdlab.files import write_text
from kdlab.metrics import StudentVersusTeacher
from kdlab.models import load_weights, save_weights
from kdlab.modules import Distiller
from kdlab.outputs import Batch, logits_of, run

RECIPE, STUDENT = "recipe.yaml", "student.safetensors"
SHOWN_ONLY = ("logger", "enable_progress_bar", "enable_model_summary")
"""Options of the Trainer that change what is shown of a run and no bit of its result."""


class Row(NamedTuple):
    """Test set metrics of one generation (``members`` is 1), or of the ensemble of the first ``members``.

    Attributes:
        name: of the generation or ensemble.
        members: number of networks.
        accuracy: share of correct predictions.
        agreement: share of samples for which the generation before predicts the same class; ``None`` without one.
        ece: expected calibration error, 15 bins.
    """

    name: str
    members: int
    accuracy: float
    agreement: float | None
    ece: float


def train_generations(arguments: Sequence[str], count: int, out: Path) -> list[Row]:
    r"""Train each generation that ``out`` does not hold yet, and evaluate all of them.

    Generation 0 minimizes the task's loss alone. Generation k = 1, 2, ... starts from new weights, with the seed
    ``seed_everything`` + k, and minimizes

    .. math:: w_0 \, task(z^k, y) + \sum_j w_j \, loss_j(z^k, z^{k-1}, y)

    with the generation before as a frozen teacher: born-again networks have one loss, ``SoftLabels``, of weight 1, and
    :math:`w_0` = 1 (BAN+L) or 0; self-training in Tf-KD has ``SoftTargets`` and two generations. A generation is its
    weights after the last step, whatever validation says.

    Each has a folder, ``out``/generation_k, as ``kdlab fit`` leaves it: its ``config.yaml`` is its whole recipe.
    ``student.safetensors`` is written last and atomically: a generation that has it is finished, any other resumes from
    its last checkpoint.

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
    _check_folder(out, config)
    folders = [out / f"generation_{number}" for number in range(count)]
    finished = [_finished(folder, teacher) for teacher, folder in zip([None, *folders], folders, strict=False)]
    if not all(finished[1:]):  # what cannot work is to be found before generation 0 is trained
        untrained = config["model"]["init_args"]["student"]
        fit_to_first_step(_build(_taught_by(untrained, config), num_sanity_val_steps=0))
    write_text(out / RECIPE, yaml.safe_dump(config, sort_keys=False))
    for number, folder in enumerate(folders):
        print(f"Generation {number} of 0 to {count - 1}, {folder}" + (": done before" if finished[number] else ""))
        if not finished[number]:
            _train(config, number, folder, folders[number - 1] / STUDENT if number else None)
    return _evaluate(config, [folder / STUDENT for folder in folders])


# Before anything is trained


def _resolved(arguments: Sequence[str], count: int) -> dict[str, Any]:
    """Return the whole config, with every default, if generations can be trained from it."""
    if count < 1:
        raise InputError(f"--count is the number of generations, at least 1, not {count}.")
    cli = build(arguments, run=False, save_config=False)
    config = cli.resolved
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


def _check_folder(out: Path, config: dict[str, Any]) -> None:
    """Refuse a folder that holds anything but generations of this config."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file: name a folder with --out.")
    if not (out / RECIPE).exists():
        if out.is_dir() and any(path.suffix != ".tmp" for path in out.iterdir()):
            raise InputError(f"{str(out)!r} holds something else already: name another folder with --out.")
        return
    earlier = yaml.safe_load((out / RECIPE).read_text())
    if keys := sorted(_differing(_relevant(earlier), _relevant(config))):
        raise InputError(
            f"{str(out)!r} holds generations of another config, which differs in {', '.join(keys[:3])}: name another "
            "folder with --out."
        )


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    trainer = {name: value for name, value in config["trainer"].items() if name not in SHOWN_ONLY}
    return {**config, "trainer": trainer}


def _differing(one: Any, other: Any, key: str = "") -> Iterable[str]:
    """Yield the keys at which two configs differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in {**one, **other}:
            yield from _differing(one.get(name), other.get(name), f"{key}.{name}" if key else name)
    elif one != other:
        yield key


def _finished(folder: Path, teacher: Path | None) -> bool:
    """Return whether a generation is finished; its teacher must be the network that is in ``teacher`` now."""
    path = folder / STUDENT
    if not path.exists():
        return False
    with safe_open(path, "pt") as file:
        taught_by = (file.metadata() or {}).get("teacher", "")
    if taught_by != (_digest(teacher / STUDENT) if teacher else ""):
        raise InputError(f"{str(folder)!r} was taught by another network than is in {str(teacher)!r} now: delete it.")
    return True


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"


def _build(config: dict[str, Any], **options: Any) -> KdlabCLI:
    """Build what a config names, with nothing logged or saved."""
    trainer = {**config["trainer"], **QUIET_TRAINER, **options}
    return build({**config, "trainer": trainer}, run=False, save_config=False)


# The recipes


def _from_labels(config: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of generation 0: labels alone, without parameter groups of the losses."""
    config = copy.deepcopy(config)
    options = config["model"]["init_args"]
    groups = options["parameter_groups"] or {}
    groups = {name: group for name, group in groups.items() if name.partition(".")[0] != "losses"}
    options.update(knowledge={}, task_weight=1.0, task_schedule=None, parameter_groups=groups or None)
    return config


def _taught_by(teacher: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a later generation."""
    config = copy.deepcopy(config)
    config["model"]["init_args"]["teacher"] = teacher
    return config


def _recipe(config: dict[str, Any], number: int, folder: Path, teacher: Path | None) -> dict[str, Any]:
    """Return the whole config of one generation, for ``kdlab fit``."""
    if teacher is None:
        config = _from_labels(config)
    else:
        trained = {"network": config["model"]["init_args"]["student"], "weights": str(teacher)}
        config = _taught_by({"class_path": "kdlab.models.with_weights", "init_args": trained}, config)
    config["seed_everything"] += number
    config["checkpoint"] |= {"dirpath": str(folder / "checkpoints"), "save_last": True, "save_weights_only": False}
    config["checkpoint"]["enable_version_counter"] = False  # last.ckpt is the last one
    # With 0, Lightning 2.6 writes no last.ckpt before the end: it needs another checkpoint of the same step first.
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
    metadata = {"seed": str(recipe["seed_everything"]), "teacher": _digest(teacher) if teacher else ""}
    assert isinstance(cli.model, Distiller)
    save_weights(cli.model.student, folder / STUDENT, metadata)


def _evaluate(config: dict[str, Any], weights: Sequence[Path]) -> list[Row]:
    """Run the test set once for all generations."""
    cli = _build(_from_labels(config))
    assert isinstance(cli.model, Distiller)
    evaluation = _Evaluation([load_weights(copy.deepcopy(cli.model.student), path) for path in weights])
    cli.trainer.test(evaluation, datamodule=cli.datamodule, verbose=False)
    return evaluation.rows()


class _Evaluation(pl.LightningModule):
    """All generations on the test set, each against the one before, and the ensembles of the first 2, 3, ..."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        names = {f"generation {number}": 1 for number in range(len(networks))}
        self.members = names | {f"first {count} together": count for count in range(2, len(networks) + 1)}
        self.metrics = nn.ModuleList(StudentVersusTeacher() for _ in self.members)

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch."""
        batch = Batch.of(raw)
        logits: list[Tensor] = [logits_of(run(network, batch.inputs)).float() for network in self.networks]
        teachers: list[Tensor | None] = [None, *logits[:-1]]
        for count in range(2, len(logits) + 1):
            logits.append(torch.stack([x.softmax(-1) for x in logits[:count]]).mean(0).log())
            teachers.append(None)
        for metrics, student, teacher in zip(self.metrics, logits, teachers, strict=True):
            metrics.update(student, teacher, batch.target)  # type: ignore[operator]

    def rows(self) -> list[Row]:
        """Return the metrics."""
        rows = []
        for (name, members), metrics in zip(self.members.items(), self.metrics, strict=True):
            values = {key: float(value) for key, value in metrics.compute().items()}  # type: ignore[operator]
            rows.append(Row(name, members, values["student_accuracy"], values.get("agreement"), values["student_ece"]))
        return rows
