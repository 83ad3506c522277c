"""All figures of a run's folder, and their files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytorch_lightning as pl

from kdlab.config.lightning_cli import QUIET, KdlabCLI, build
from kdlab.config.messages import quietly
from kdlab.config.run_arguments import last_checkpoint
from kdlab.errors import InputError
from kdlab.figures import drawing
from kdlab.figures.curve_rows import curve_rows, named
from kdlab.figures.evidence import Evidence, Plot
from kdlab.files import atomic_write
from kdlab.modules.base import DistillationModule


def run_plots(runs: Sequence[Path], options: Sequence[str] = (), curves_only: bool = False) -> Iterator[Plot]:
    """Yield the curves of runs, then what the last checkpoint of the first gives on its test set.

    Raises:
        InputError: a run has no metrics; or the first no config, no checkpoint or no kdlab module.
    """
    rows = curve_rows(dict(named([*runs])))
    yield Plot("curves", rows, drawing.curves(rows))
    if not curves_only:
        yield from evaluated(runs[0], options)


def evaluated(run: Path, options: Sequence[str] = ()) -> Iterator[Plot]:
    """Yield the figures of a run's last checkpoint on its test set."""
    config, checkpoint = run / "config.yaml", last_checkpoint(run)
    for path in (config, checkpoint):
        if not path.is_file():
            raise InputError(f"{str(run)!r} has no {path.name}: draw the curves alone with --curves-only.")
    arguments = ["test", f"--config={config}", f"--ckpt_path={checkpoint}", "--verbose=false", *options, *QUIET]
    with quietly():
        cli = build(arguments, save_config=False, kind=_CollectingCLI)
    assert isinstance(cli, _CollectingCLI)
    yield from cli.collected.evidence.plots(getattr(cli.datamodule, "classes", None))


class _Collect(pl.Callback):
    def __init__(self) -> None:
        self.evidence = Evidence()

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object) -> None:
        assert isinstance(pl_module, DistillationModule)
        self.evidence.add(pl_module, args[1])


class _CollectingCLI(KdlabCLI):
    def before_test(self) -> None:
        """Check the checkpoint, and collect what the networks give."""
        super().before_test()
        if not isinstance(self.model, DistillationModule):
            raise InputError(f"kdlab plot takes a run of a kdlab module, not of {type(self.model).__name__}.")
        self.collected = _Collect()
        self.trainer.callbacks.append(self.collected)  # type: ignore[attr-defined]


def write(plot: Plot, folder: Path, suffix: str = "png") -> list[Path]:
    """Write a figure and its numbers as ``NAME.SUFFIX`` and ``NAME.csv``; return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn, numbers = (folder / f"{plot.name}.{end}" for end in (suffix, "csv"))
    metadata = {"Software": None} if suffix == "png" else {"CreationDate": None} if suffix == "pdf" else {"Date": None}
    plot.figure.savefig(drawn, dpi=150, metadata=metadata)
    with atomic_write(numbers, "w") as file:
        writer = csv.DictWriter(file, plot.rows[0] if plot.rows else (), lineterminator="\n")
        writer.writeheader()
        writer.writerows(plot.rows)
    return [drawn, numbers]
