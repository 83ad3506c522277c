"""``kdlab reproduce``: train what is missing of a study, keep its ledger and print its table."""

from __future__ import annotations

import argparse
import contextlib
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

from kdlab.config.run_folder import wandb_logger
from kdlab.errors import InputError
from kdlab.files import locked
from kdlab.studies import tables
from kdlab.studies.grid import runs_of
from kdlab.studies.launchers import Launcher, OneAtATime, OnRay
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.preflight import Estimate, Resolved, Trials, check_networks
from kdlab.studies.progress import StudyBar
from kdlab.studies.render import log_table, markdown
from kdlab.studies.runs import Run
from kdlab.studies.scheduler import Loggers, Work
from kdlab.studies.study import read

DESCRIPTION = """\
Train every run of a study that its ledger does not hold yet, teachers first, and print the table. A run that is \
killed is resumed from its last epoch when the study is called again; one that fails is reported and does not stop the \
others. Before anything is trained every config is set up and tried on a few samples."""
# Options that say where data is and where runs take place: published values stay comparable.
PLACES = (
    *("--data.root=", "--data.num_workers=", "--data.download="),
    *("--trainer.accelerator=", "--trainer.devices=", "--trainer.num_nodes=", "--trainer.strategy="),
)


class Parser(argparse.ArgumentParser):
    """Parser of a study's command that raises an :class:`InputError` for what it does not understand."""

    def __init__(self, name: str, description: str, usage: str) -> None:
        prog = f"kdlab {name}"
        super().__init__(prog=prog, description=description, usage=f"{prog} {usage}", allow_abbrev=False)
        self.add_argument("study", help="folder with a study.yaml, or a study file")
        self.add_argument("--runs", default="runs", help="folder of all studies' runs (default runs)")
        self.add_argument("--ledger", help="CSV file (default ledger.csv beside the study file)")
        weights = "a teacher's weights, instead of training it"
        self.add_argument("--teacher", action="append", default=[], metavar="NAME=FILE", help=weights)

    def error(self, message: str) -> NoReturn:
        """Raise an :class:`InputError`."""
        raise InputError(f"{message}.")

    def open(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, OpenStudy]:
        """Return the command's own options, and the study with the options of ``kdlab fit`` among the arguments."""
        options, overrides = self.parse_known_args(list(arguments))
        for override in overrides:
            if not override.startswith("--") or "=" not in override or override.startswith("--config"):
                names = [f"--{name.replace('_', '-')}" for name in vars(options)]
                close = difflib.get_close_matches(override.split("=")[0], names, n=1)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise InputError(
                    f"{override!r} is no option of {self.prog}{hint}, nor one of kdlab fit as --KEY=VALUE."
                )
        return options, OpenStudy(options, overrides)


class OpenStudy:
    """A study with its runs and ledger, as a command line names it; an :class:`InputError` if it cannot be used."""

    def __init__(self, options: argparse.Namespace, overrides: Sequence[str]) -> None:
        self.weights = {name: Path(path) for name, _, path in (option.partition("=") for option in options.teacher)}
        for name, path in self.weights.items():
            if not path.is_file():
                raise InputError(f"There is no file '{path}' for the teacher {name!r}: write --teacher NAME=FILE.")
        self.study = read(Path(options.study), self.weights)
        self.folder = Path(options.runs) / self.study.name
        with contextlib.closing(Resolved(self.folder / ".configs.json")) as resolve:
            self.runs: list[Run] = runs_of(self.study, resolve, overrides)
        self.ledger = Ledger(Path(options.ledger) if options.ledger else self.study.folder / "ledger.csv")
        self.as_published = all(override.startswith(PLACES) for override in overrides)

    def table(self) -> tables.Table:
        """Return the table of the ledger as it is now."""
        return tables.table(self.study, self.runs, self.ledger, self.as_published)

    def examine(self, console: Console) -> tuple[Work, dict[str, Estimate]]:
        """Try every run that is still to do; return the work and, by key, what each run will take.

        Raises:
            InputError: the data cannot be read, networks do not fit, or a config cannot work; with the study's line.
        """
        trials, fingerprints = Trials(self.folder / ".trials.json"), dict[str, str]()
        with console.status("reading the data"):
            for run in self.runs:
                with self.study.source.errors_at(self.study.recipe.place):
                    fingerprints[run.key] = trials.fingerprint(run.config)
        check_networks(self.study, trials, self.runs[0].config, self.weights)
        work = Work(self.runs, lambda run: fingerprints[run.key], self.folder, self.ledger)
        estimates: dict[str, Estimate] = {}
        with console.status("trying the configs") as status:
            for number, run in enumerate(self.runs, 1):
                if self.ledger.finished(work.identity(run)):
                    continue
                status.update(f"trying config {number} of {len(self.runs)}: {run.name}")
                with self.study.source.errors_at(run.place, f"{run.name}: "):
                    estimates[run.key] = trials.estimate(run.config)
        return work, estimates


def run(arguments: Sequence[str]) -> None:
    """Carry out a study; exit with status 1 if a run failed."""
    usage = "STUDY [--dry-run] [--launcher ray] [--wandb PROJECT] [--KEY=VALUE ...]"
    parser = Parser("reproduce", DESCRIPTION, usage)
    parser.add_argument("--dry-run", action="store_true", help="print the plan with its time and memory; train nothing")
    parser.add_argument("--launcher", choices=("local", "ray"), default="local", help="where runs happen")
    parser.add_argument("--address", help="of a Ray cluster; without it one is started on this machine")
    parser.add_argument("--workers", type=int, help="processors of the Ray cluster that is started here (default all)")
    parser.add_argument("--cpus-per-run", type=float, default=1.0, help="processors of the cluster for each run")
    parser.add_argument("--gpus-per-run", type=float, default=0.0, help="GPUs of the cluster for each run")
    parser.add_argument("--wandb", metavar="PROJECT", help="log runs and table to Weights & Biases, as one group")
    options, opened = parser.open(arguments)
    console = Console(highlight=False)
    work, estimates = opened.examine(console)
    if options.dry_run:
        for part in plan(work, estimates):
            console.print(part)
        return
    with locked(opened.folder / ".lock", f"another process is at the study {opened.study.name!r}"):
        outcome = _carry_out(options, opened, work, estimates, console)
    console.print(Markdown(markdown(opened.table())))
    if options.wandb:
        log_table(opened.table(), options.wandb, opened.folder)
    failed = {run.name: outcome[run.key] for run in opened.runs if outcome[run.key] != FINISHED}
    for name, error in failed.items():
        console.print(f"[red]failed:[/] {name}: {error}", soft_wrap=True)
    if failed:
        raise SystemExit(1)


def _carry_out(
    options: argparse.Namespace, opened: OpenStudy, work: Work, estimates: Mapping[str, Estimate], console: Console
) -> dict[str, str]:
    launcher: Launcher = OneAtATime()
    if options.launcher == "ray":
        launcher = OnRay(options.address, options.cpus_per_run, options.gpus_per_run, options.workers)
    loggers = _wandb_loggers(opened.study.name, options.wandb, work) if options.wandb else (lambda run: [])
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        with StudyBar(work, {key: estimate.seconds for key, estimate in estimates.items()}, console) as bar:
            return work.carry_out(launcher, loggers, bar)
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _wandb_loggers(study: str, project: str, work: Work) -> Loggers:
    def loggers(run: Run) -> list[dict[str, Any]]:
        kind = "student" if run.cells else "teacher"
        options = {"project": project, "group": study, "job_type": kind, "name": run.name, "id": work.identity(run)}
        return [wandb_logger(work.folder(run), **options)]

    return loggers


def _terminated(signal: int, frame: FrameType | None) -> None:
    raise SystemExit(143)


def plan(work: Work, estimates: Mapping[str, Estimate]) -> tuple[Table, str]:
    """Return every run with its state, and the time and memory of those to come on this machine."""
    shown = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("run", "state", "epochs", "time", "memory MB"):
        shown.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    states = {run.key: work.state(run) for run in work.runs}
    total, largest = 0.0, 0.0
    for run in work.runs:
        cells = ["", ""]
        if (estimate := estimates.get(run.key)) is not None and states[run.key] != FINISHED:
            seconds = estimate.seconds * run.epochs
            total, largest = total + seconds, max(largest, estimate.memory)
            cells = [_time(seconds), _megabytes(estimate.memory)]
        shown.add_row(run.name, states[run.key], str(run.epochs), *cells)
    count = sum(state != FINISHED for state in states.values())
    summary = (
        f"{len(work.runs)} runs, {count} to do, about {_time(total)} one after the other on this machine, "
        f"{_megabytes(largest)} MB at most.\nEstimated from a step on few samples, without "
        f"the start of a run and data in memory. Ledger: {work.ledger.path}"
    )
    return shown, summary


def _time(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds))) if seconds >= 1 else f"{seconds:.1f} s"


def _megabytes(memory: float) -> str:
    return f"{memory / 2**20:.{0 if memory >= 10 * 2**20 else 1}f}"
