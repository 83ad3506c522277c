"""``kdlab reproduce``: train what is missing of a study, keep its ledger and print its table."""

from __future__ import annotations

import argparse
import difflib
import signal
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from kdlab.errors import InputError
from kdlab.models import load_weights
from kdlab.studies.grid import runs_of
from kdlab.studies.launchers import Launcher, OneAtATime, OnRay
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.locks import locked
from kdlab.studies.preflight import Estimate, Resolved, Trials, made
from kdlab.studies.progress import StudyBar
from kdlab.studies.render import markdown
from kdlab.studies.runs import Run
from kdlab.studies.scheduler import Work
from kdlab.studies.study import Study, read
from kdlab.studies.tables import table

DESCRIPTION = """\
Train every run of a study that its ledger does not hold yet, teachers first, and print the table. A run that is \
killed goes on from its last epoch when the study is called again; one that fails is reported and does not stop the \
others. Before anything is trained every config is set up and tried on a few samples."""
# Options that say where data is and where runs take place: published values stay comparable.
PLACES = (
    *("--data.root=", "--data.num_workers=", "--data.download="),
    *("--trainer.accelerator=", "--trainer.devices=", "--trainer.num_nodes=", "--trainer.strategy="),
)


class Parser(argparse.ArgumentParser):
    """Raises an :class:`InputError` for what it does not understand."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise InputError(f"{message}.")


def arguments_of(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a study's command, and those of ``kdlab fit`` among them.

    Raises:
        InputError: something is neither.
    """
    parser.add_argument("study", help="folder with a study.yaml, or a study file")
    parser.add_argument("--runs", default="runs", help="folder of all studies' runs (default runs)")
    parser.add_argument("--ledger", help="CSV file (default ledger.csv beside the study file)")
    parser.add_argument(
        "--teacher",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a teacher's weights, instead of training it",
    )
    given, rest = parser.parse_known_args(list(arguments))
    for each in rest:
        if not each.startswith("--") or "=" not in each or each.startswith("--config"):
            own = [f"--{name.replace('_', '-')}" for name in vars(given)]
            close = difflib.get_close_matches(each.split("=")[0], own, n=1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise InputError(f"{each!r} is no option of {parser.prog}{meant}, nor one of kdlab fit as --KEY=VALUE.")
    return given, rest


class Opened:
    """A study with its runs, ledger and trials, as a command line names it.

    Raises:
        InputError: the study cannot be used.
    """

    def __init__(self, given: argparse.Namespace, overrides: Sequence[str]) -> None:
        self.weights: dict[str, Path] = {}
        for each in given.teacher:
            name, _, path = each.partition("=")
            if not Path(path).is_file():
                raise InputError(f"There is no file {path!r} for the teacher {name!r}: write --teacher NAME=FILE.")
            self.weights[name] = Path(path)
        self.study: Study = read(Path(given.study), self.weights)
        self.folder = Path(given.runs) / self.study.name
        resolve = Resolved(self.folder / ".configs.json")
        try:
            self.runs: list[Run] = runs_of(self.study, resolve, overrides)
        finally:
            resolve.keep()
        self.ledger = Ledger(Path(given.ledger) if given.ledger else self.study.folder / "ledger.csv")
        self.as_published = all(each.startswith(PLACES) for each in overrides)
        self.trials = Trials(self.folder / ".trials.json")

    def table(self) -> Any:
        """The table as the ledger stands."""
        return table(self.study, self.runs, self.ledger, self.as_published)


def run(arguments: Sequence[str]) -> None:
    """Carry out a study; exits with status 1 if a run failed."""
    parser = Parser(prog="kdlab reproduce", description=DESCRIPTION, allow_abbrev=False)
    parser.usage = "kdlab reproduce STUDY [--dry-run] [--launcher ray] [--wandb PROJECT] [--KEY=VALUE ...]"
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its time and memory; train nothing")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local", help="where runs happen")
    parser.add_argument("--address", help="of a Ray cluster; without it one is started on this machine")
    parser.add_argument("--workers", type=int, help="processors of the Ray cluster that is started here (default all)")
    parser.add_argument("--cpus-per-run", type=float, default=1.0, help="processors of the cluster for each run")
    parser.add_argument("--gpus-per-run", type=float, default=0.0, help="GPUs of the cluster for each run")
    parser.add_argument("--wandb", metavar="PROJECT", help="log runs and table to Weights & Biases, as one group")
    given, overrides = arguments_of(parser, arguments)
    opened = Opened(given, overrides)
    console = Console(highlight=False)
    data, estimates = examined(opened, console)
    opened.trials.forget()
    work = Work(opened.runs, lambda run: data[run.key], opened.folder, opened.ledger)
    if given.dry_run:
        for each in plan(opened, work, estimates):
            console.print(each)
        return
    complaint = f"another process is at the study {opened.study.name!r}"
    with locked(opened.folder / ".lock", complaint):
        launcher: Launcher = OneAtATime()
        if given.launcher == "ray":
            launcher = OnRay(given.address, given.cpus_per_run, given.gpus_per_run, workers=given.workers)
        loggers = _wandb(opened.study, given.wandb, work) if given.wandb else (lambda run: [])
        before = signal.signal(signal.SIGTERM, _terminated)
        try:
            with StudyBar(work, {key: each.seconds for key, each in estimates.items()}, console) as bar:
                outcome = work.carry_out(launcher, loggers, bar)
        except KeyboardInterrupt:
            console.print("Stopped; the same command goes on from here.")
            raise SystemExit(130) from None
        finally:
            signal.signal(signal.SIGTERM, before)
    console.print(Markdown(markdown(opened.table())))
    if given.wandb:
        from kdlab.studies.wandb_table import log_table

        log_table(opened.table(), given.wandb, opened.folder)
    failed = {run.name: outcome[run.key] for run in opened.runs if outcome[run.key] != FINISHED}
    for name, error in failed.items():
        console.print(f"[red]failed:[/] {name}: {error}", soft_wrap=True)
    if failed:
        raise SystemExit(1)


def examined(opened: Opened, console: Console) -> tuple[dict[str, str], dict[str, Estimate]]:
    """The fingerprint of each run's data, and what each run that is still to do will take.

    Raises:
        InputError: the data cannot be read, a pair's networks have different classes, or a config cannot work; with
            the line of the study.
    """
    study, trials = opened.study, opened.trials
    prints: dict[str, str] = {}
    with console.status("reading the data"):
        for run in opened.runs:
            try:
                prints[run.key] = trials.fingerprint(run.config)
            except InputError as error:
                raise study.source.error(study.recipe.place, str(error)) from error
    _same_classes(opened)
    _weights_fit(opened)
    estimates: dict[str, Estimate] = {}
    with console.status("trying the configs") as status:
        for number, run in enumerate(opened.runs, 1):
            if opened.ledger.finished(run.identity(prints[run.key])):
                continue
            status.update(f"trying config {number} of {len(opened.runs)}: {run.name}")
            try:
                estimates[run.key] = trials.estimate(run.config)
            except InputError as error:
                raise study.source.error(run.place, f"{run.name}: {error}") from error
    return prints, estimates


def _same_classes(opened: Opened) -> None:
    study, config = opened.study, opened.runs[0].config
    counts: dict[str, int | None] = {}
    for pair in study.pairs:
        for network in pair.roles.values():
            if network.name not in counts:
                try:
                    counts[network.name] = opened.trials.classes(config, network.build)
                except (RuntimeError, TypeError, ValueError, InputError) as error:
                    raise study.source.error(
                        ("networks", network.name), f"{network.name} cannot be used: {str(error).splitlines()[0]}"
                    ) from error
        found = {network.name: counts[network.name] for network in pair.roles.values()}
        if len(set(found.values()) - {None}) > 1:
            said = ", ".join(f"{name} has {count}" for name, count in found.items())
            raise study.source.error(pair.part.place, f"the networks of {pair.name} have different classes: {said}.")


def _weights_fit(opened: Opened) -> None:
    """Load every file of a teacher that is not trained here, before the runs would, one after the other."""
    teachers = [pair.roles["teacher"] for pair in opened.study.pairs if "teacher" in pair.roles]
    for network in {each.name: each for each in teachers if each.name in opened.study.weights}.values():
        try:
            load_weights(made(network.build), opened.study.weights[network.name])
        except InputError as error:
            if network.name in opened.weights:
                raise InputError(f"--teacher {network.name}: {error}") from error
            raise opened.study.source.error(("teachers", "weights", network.name), str(error)) from error


def plan(opened: Opened, work: Work, estimates: Mapping[str, Estimate]) -> tuple[Table, str]:
    """Every run with its state, and how long and how large those to come will be on this machine."""
    shown = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("run", "state", "epochs", "time", "memory MB"):
        shown.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    total, largest = 0.0, 0.0
    for run in opened.runs:
        estimate, state = estimates.get(run.key), work.state(run)
        cells = ["", ""]
        if estimate is not None and state != FINISHED:
            seconds = estimate.seconds * run.epochs
            total, largest = total + seconds, max(largest, estimate.memory)
            cells = [_time(seconds), _megabytes(estimate.memory)]
        shown.add_row(run.name, state, str(run.epochs), *cells)
    count = sum(work.state(run) != FINISHED for run in opened.runs)
    said = (
        f"{len(opened.runs)} runs, {count} to do, about {_time(total)} one after the other on this machine, "
        f"{_megabytes(largest)} MB at most.\nEstimated from a step on few samples, without "
        f"the start of a run and data in memory. Ledger: {opened.ledger.path}"
    )
    return shown, said


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"


def _megabytes(memory: float) -> str:
    return f"{memory / 2**20:.{0 if memory >= 10 * 2**20 else 1}f}"


def _wandb(study: Study, project: str, work: Work) -> Any:
    def loggers(run: Run) -> list[dict[str, Any]]:
        kind = "student" if run.cells else "teacher"
        options = {"project": project, "group": study.name, "job_type": kind, "name": run.name}
        # A client that is running already, of a notebook say, would put a relative path into its own directory.
        options |= {"id": work.identity(run), "resume": "allow", "save_dir": str(work.folder(run).resolve())}
        return [{"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": options}]

    return loggers


def _terminated(signal: int, frame: FrameType | None) -> None:
    raise SystemExit(143)
