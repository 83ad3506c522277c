"""Commands that train several runs and print one table: ``reproduce`` and ``report`` a study, ``generations``."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich.console import Console
from rich.markdown import Markdown

from kdlab.cli.command import options_of
from kdlab.cli.printing import csv_text, number_table
from kdlab.cli.study_plan import plan
from kdlab.config import recipe_files
from kdlab.errors import InputError
from kdlab.files import locked, write_text
from kdlab.studies import tables
from kdlab.studies.generations import STUDENT, train_generations
from kdlab.studies.grid import runs_of
from kdlab.studies.launchers import Local, OnRay
from kdlab.studies.ledger import FINISHED, Ledger
from kdlab.studies.packed_runs import check_pack, check_room, chosen, measure
from kdlab.studies.preflight import Estimate, Resolved, Trials, check_networks
from kdlab.studies.progress import StudyBar
from kdlab.studies.render import log_table, markdown, write
from kdlab.studies.runs import Run
from kdlab.studies.scheduler import Loggers, Work
from kdlab.studies.study_figures import write_figures
from kdlab.studies.study_file import read

# Options that say where data is and where runs take place: published values stay comparable.
PLACES = (
    *("--data.root=", "--data.num_workers=", "--data.download="),
    *("--trainer.accelerator=", "--trainer.devices=", "--trainer.num_nodes=", "--trainer.strategy="),
)


class OpenStudy:
    """A study with its runs and ledger, as a command line names it; an :class:`InputError` if it cannot be used."""

    def __init__(
        self,
        command: Callable[..., None],
        path: Path,
        overrides: list[str],
        runs: Path,
        ledger: Path | None,
        teachers: list[str],
        pairs: Sequence[str] = (),
        methods: Sequence[str] = (),
    ) -> None:
        for override in overrides:
            if not override.startswith("--") or "=" not in override or override.startswith("--config"):
                close = difflib.get_close_matches(override.split("=")[0], options_of(command), n=1)
                name, hint = f"kdlab {command.__name__}", f" (did you mean {close[0]}?)" if close else ""
                raise InputError(f"{override!r} is no option of {name}{hint}, nor one of kdlab fit as --KEY=VALUE.")
        self.weights = {name: Path(file) for name, _, file in (teacher.partition("=") for teacher in teachers)}
        for name, file in self.weights.items():
            if not file.is_file():
                raise InputError(f"There is no file '{file}' for the teacher {name!r}: write --teacher NAME=FILE.")
        self.study = read(recipe_files.study(str(path)), self.weights).part(pairs, methods)
        find_code(self.study.folder)
        self.folder = runs / self.study.name
        resolve = Resolved(self.folder / ".configs.json")
        self.runs: list[Run] = runs_of(self.study, resolve, overrides)
        resolve.close()
        is_installed = recipe_files.PACKAGE in self.study.folder.resolve().parents  # nothing is written into a package
        self.results = self.folder if is_installed else self.study.folder
        self.ledger = Ledger(ledger or self.results / "ledger.csv")
        self.as_published = all(override.startswith(PLACES) for override in overrides)

    def table(self) -> tables.Table:
        """Return the table of the ledger as it is now."""
        return tables.table(self.study, self.runs, self.ledger, self.as_published)

    def examine(self, console: Console) -> tuple[Work, dict[str, Estimate]]:
        """Try every run that is still to do; return the work and, by key, what each run will take."""
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


def find_code(folder: Path) -> None:
    """Let class paths name files in a study's folder, and in the project around it, from any working directory.

    The project is the nearest folder above with a ``pyproject.toml`` or a repository. Runs in processes of their own
    get the same folders.
    """
    folder = folder.resolve()
    above = (path for path in folder.parents if (path / "pyproject.toml").exists() or (path / ".git").exists())
    for path in map(str, (folder, *itertools.islice(above, 1))):
        if path not in sys.path:
            sys.path.append(path)  # behind the working directory and what is installed
        listed = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if path not in listed:
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*listed, path]))


def reproduce(
    study: Path,
    overrides: list[str],
    runs: Path = Path("runs"),
    ledger: Path | None = None,
    teacher: list[str] = [],  # noqa: B006
    pairs: list[str] = [],  # noqa: B006
    methods: list[str] = [],  # noqa: B006
    dry_run: bool = False,
    pack: int | Literal["auto"] = 1,
    teacher_cache: Path | None = None,
    launcher: Literal["local", "ray"] = "local",
    address: str | None = None,
    workers: int | None = None,
    cpus_per_run: float = 1.0,
    gpus_per_run: float = 0.0,
    wandb: str | None = None,
) -> None:
    """Train every run of a study that its ledger does not hold yet, teachers first, and print the table.

    A run that is killed is resumed from its last epoch when the study is called again; one that fails is reported and
    does not stop the others. Before anything is trained every config is set up and tried on a few samples. The exit
    status is 1 if a run failed.

    Args:
        study: folder with a study.yaml, a study file, or the name of a study of kdlab
        overrides: options of ``kdlab fit``
        runs: folder of all studies' runs
        ledger: CSV file (default: beside the study file; in the runs' folder for a study of an installed kdlab)
        teacher: NAME=FILE, a teacher's weights, instead of training it
        pairs: names of the pairs to train, such as '["resnet56 → resnet20"]' (default: all)
        methods: names of the methods to train, such as '[KD,AT]' (default: all)
        dry_run: print the plan with its time and memory; train nothing
        pack: how many runs happen at once on this machine; auto tries 1, 2, 4, ... and takes the fastest
        teacher_cache: folder for the frozen teachers' outputs (float32), which later epochs, methods and seeds read
        launcher: where runs happen
        address: of a Ray cluster; without it one is started on this machine
        workers: processors of the Ray cluster that is started here (default: all)
        cpus_per_run: processors of the cluster for each run
        gpus_per_run: GPUs of the cluster for each run
        wandb: project of Weights & Biases to log runs and table to, as one group
    """
    check_pack(pack, launcher)  # before anything is written
    opened = OpenStudy(reproduce, study, overrides, runs, ledger, teacher, pairs, methods)
    console = Console(highlight=False)
    check_room(pack, opened.runs, {})
    work, estimates = opened.examine(console)
    work.cache = teacher_cache
    check_room(pack, opened.runs, estimates)
    if pack == "auto":
        pack = _measured_pack(work, console)
    if dry_run:
        for part in plan(work, estimates):
            console.print(part)
        return
    with locked(opened.folder / ".lock", f"another process is at the study {opened.study.name!r}"):
        place = OnRay(address, cpus_per_run, gpus_per_run, workers) if launcher == "ray" else Local(pack)
        loggers: Loggers = partial(_wandb_loggers, opened.study.name, wandb, work) if wandb else (lambda run: [])
        with _stopping(console), StudyBar(work, {key: x.seconds for key, x in estimates.items()}, console) as bar:
            outcome = work.carry_out(place, loggers, bar)
    console.print(Markdown(markdown(opened.table())))
    if wandb:
        log_table(opened.table(), wandb, opened.folder)
    failed = {run.name: outcome[run.key] for run in opened.runs if outcome[run.key] != FINISHED}
    for name, error in failed.items():
        console.print(f"[red]failed:[/] {name}: {error}", soft_wrap=True)
    if failed:
        raise SystemExit(1)


def report(
    study: Path,
    overrides: list[str],
    runs: Path = Path("runs"),
    ledger: Path | None = None,
    teacher: list[str] = [],  # noqa: B006
    out: Path | None = None,
    wandb: str | None = None,
    figures: bool = False,
) -> None:
    """Print a study's table and write report.md, report.csv and report.png; the last lines name what was written.

    A README.md there that has the marks <!-- kdlab report: begin --> and <!-- kdlab report: end --> gets the table
    between them. Cells that were not run are empty, and runs of another recipe are left out.

    Args:
        study: folder with a study.yaml, a study file, or the name of a study of kdlab
        overrides: options of ``kdlab fit``
        runs: folder of all studies' runs
        ledger: CSV file (default: beside the study file; in the runs' folder for a study of an installed kdlab)
        teacher: NAME=FILE, a teacher's weights, instead of training it
        out: folder to write to (default: that of the ledger)
        wandb: project of Weights & Biases to log the table to, in the study's group
        figures: also draw the runs that are on this machine, as kdlab plot does, into OUT/figures
    """
    opened = OpenStudy(report, study, overrides, runs, ledger, teacher)
    table, console = opened.table(), Console(highlight=False)
    if console.is_terminal:
        console.print(Markdown(markdown(table)))
    else:  # a pipe or a file gets the Markdown itself
        print(markdown(table))
    out = out or opened.results
    drawn = write_figures(opened.runs, opened.ledger, opened.folder, out / "figures") if figures else ()
    for path in (*write(table, out), *drawn):
        print(f"written: {path}")
    if wandb:
        log_table(table, wandb, opened.folder)


def generations(overrides: list[str], count: int = 3, out: Path | None = None) -> None:
    """Train the student of a config, then the same recipe taught by the network before, and so on.

    The first generation learns from the labels alone; each later one has the next seed and is taught by the network
    before as model.knowledge and model.task_weight say. At the end every generation, and the mean of the probabilities
    of the first 2, 3, ..., is evaluated on the test set. The last generation is the one to deploy.

    All other options are those of kdlab fit, such as -c CONFIG. seed_everything rises by 1 with each generation;
    data.seed, which may choose the training set, does not. Called again with the same --out, a run continues.

    Args:
        overrides: options of ``kdlab fit``
        count: generations, the first included
        out: folder to create or to continue in (default: runs/generations_N, the first N that is free)
    """
    numbered = (Path(f"runs/generations_{number}") for number in itertools.count())
    out = out or next(path for path in numbered if not path.exists())
    rows = train_generations(overrides, count, out)
    deployed = [row.name for row in rows if row.members == 1][-1]
    caption = f"{deployed} is deployed; together: the mean of their probabilities"
    table = number_table(("", "test\naccuracy %", "agreement with\nthe one before %", "ECE %"), caption)
    for row in rows:
        cells = ["" if value is None else f"{100 * value:.2f}" for value in row[2:]]
        table.add_row(row.name, *cells, style="bold" if row.name == deployed else "")
    Console(highlight=False).print(table)
    header = ("network", "members", "test_accuracy", "agreement_with_previous", "ece")
    write_text(out / "generations.csv", csv_text([header, *rows]))
    last = out / f"generation_{count - 1}" / STUDENT
    print(f"The last generation is deployed, which was decided before the training: {last}")


def _measured_pack(work: Work, console: Console) -> int:
    """Return how many runs at once are fastest, and print what was measured with the first run that has a teacher."""
    waiting = [run for run in work.runs if not work.done(run)]
    if len(waiting) < 2:
        return 1
    run = next((run for run in waiting if run.teachers), waiting[0])
    with console.status(f"timing several runs at once: {run.name}"):
        rates = measure(run)
    listed = ", ".join(f"{count}: {rate:.3g}" for count, rate in rates.items())
    pack = max(1, chosen(rates))
    console.print(f"--pack {pack}, as steps a second of all runs at once say ({listed}; {run.name})", highlight=False)
    return pack


@contextlib.contextmanager
def _stopping(console: Console) -> Iterator[None]:
    """Exit with status 143 on SIGTERM and 130 on Ctrl-C."""

    def terminated(number: int, frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except KeyboardInterrupt:
        console.print("Stopped; the same command goes on from here.")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _wandb_loggers(study: str, project: str, work: Work, run: Run) -> list[dict[str, Any]]:
    """Return the config of a Weights & Biases logger that keeps its files in the run's folder and can resume it."""
    kind = "student" if run.cells else "teacher"
    options = {"project": project, "group": study, "job_type": kind, "name": run.name, "id": work.identity(run)}
    # The path is absolute: a client that runs already, such as a notebook's, has its own working directory.
    options |= {"resume": "allow", "save_dir": str(work.folder(run).resolve())}
    return [{"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": options}]
