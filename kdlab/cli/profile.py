"""``kdlab profile``: what networks and exported files cost, and how well they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from kdlab.cli.layers import network_from
from kdlab.cli.printing import csv_text, titled_table
from kdlab.errors import InputError
from kdlab.export.profiling import COLUMNS, Subject, file_subject, network_subject
from kdlab.export.profiling import profile as measured
from kdlab.export.timing import BUSY, others_load
from kdlab.files import write_text
from kdlab.members.frozen import Frozen
from kdlab.studies.environment import device_name

SHOWN: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("network", lambda row: str(row["name"])),
    ("runtime", lambda row: str(row["runtime"])),
    ("parameters", lambda row: _text(row["parameters"], "{:,}")),
    ("MFLOP", lambda row: _text(row["flops"], "{:.1f}", 1e-6, "not counted")),
    ("MB", lambda row: _text(row["bytes"], "{:.2f}", 1e-6)),
    ("ms, batch 1", lambda row: _pair(row, 1)),
    ("ms, batch 32", lambda row: _pair(row, 32)),
    ("peak MB", lambda row: _text(row["peak_memory"], "{:.0f}", 1e-6)),
    ("accuracy", lambda row: _text(row["accuracy"], "{:.2f}", 100)),
    ("retention", lambda row: _text(row["retention"], "{:.1f}", 100)),
    ("agreement", lambda row: _text(row["agreement"], "{:.2f}", 100)),
    ("KL", lambda row: _text(row["kl_to_teacher"], "{:.3f}")),
    ("ECE", lambda row: _text(row["ece"], "{:.2f}", 100)),
)
"""Headings of a profile's table, and the text of their cells."""


class _Teacher(nn.Module):
    """A frozen teacher's network with its own preprocessing, on images as the student sees them."""

    def __init__(self, member: Frozen) -> None:
        super().__init__()
        self.network, self._member = member.network, (member,)

    def forward(self, inputs: Any) -> Any:
        """Return the network's own output."""
        return self._member[0].applied(self.network, inputs)


def profile(
    subject: str,
    overrides: list[str],
    data: Path | None = None,
    teacher: bool = False,
    input: str | None = None,
    samples: int = 0,
    rounds: int = 7,
    out: Path | None = None,
) -> None:
    """Measure networks and exported files side by side: size, operations, latency, memory, accuracy, calibration.

    kdlab profile SUBJECT [SUBJECT ...] [--KEY=VALUE ...]; a subject is a run's folder, an exported file or the class
    path of a network. The first run (or --data) gives data and teacher; without one there is no accuracy. Latencies are
    medians of alternating rounds after a warm-up, with PyTorch's number of threads (OMP_NUM_THREADS). --KEY=VALUE are
    options of kdlab fit, such as --data.root=DATA.

    Args:
        subject: a run, an exported file, or a class path
        overrides: further subjects, and options of ``kdlab fit``
        data: a run that gives data and teacher
        teacher: also measure the run's teacher
        input: shape of one input, C,H,W (default: the run's or the file's)
        samples: validation samples (0: all)
        rounds: rounds of the latencies
        out: folder to write profile.md, profile.csv and profile.png to
    """
    from kdlab.config.trained_run import TrainedRun, trained_run

    names = [subject, *(text for text in overrides if not text.startswith("-"))]
    options = [text for text in overrides if text.startswith("-")]
    shape = _shape(input)
    runs: dict[str, TrainedRun] = {}
    for name in [*([str(data)] if data else []), *names]:
        if Path(name).is_dir() or name.endswith(".ckpt"):
            runs[name] = trained_run(Path(name), options)
    first = next(iter(runs.values()), None)
    if shape is None and first is not None:
        shape = next(first.samples(False, 1)).inputs.shape[1:]
    subjects = [_subject(name, runs, shape) for name in names]
    _check_normalization(subjects, first and first.normalization)
    if len({subject.name for subject in subjects}) < len(subjects):  # files of several runs
        subjects = [subject._replace(name=name) for name, subject in zip(names, subjects, strict=True)]
    if teacher:
        members = getattr(getattr(first and first.module, "teaching", None), "frozen", [])
        if not members:
            raise InputError("--teacher needs a run with a frozen teacher.")
        named = [(f"teacher {number}" if number else "teacher", _Teacher(one)) for number, one in enumerate(members)]
        subjects = [network_subject(name, one, shape or ()) for name, one in named] + subjects

    load = others_load()
    rows = measured(subjects, first and (lambda raw: first.samples(raw, samples)), rounds)
    note = f"On {device_name(torch.device('cpu'))}; p50 / p95 of a call in ms."
    if load is not None and load > BUSY:
        note += (
            f" Other processes used {100 * load:.0f} % of the processors: the latencies are those of a busy machine."
        )
    columns = tuple(name for name, _ in SHOWN)
    cells = [[text(row) for _, text in SHOWN] for row in rows]
    console = Console()
    console.print(titled_table("Profile", columns, cells, columns[2:]))
    console.print(note, highlight=False)
    if out:
        write(out, rows, columns, cells, note)
        console.print(f"{out}/profile.md, profile.csv, profile.png", highlight=False)


def write(
    folder: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str], cells: Sequence[Sequence[str]], note: str
) -> None:
    """Write the table as Markdown and CSV, and the figure of accuracy against latency and size."""
    from kdlab.figures.tradeoff import tradeoff

    lines = [columns, ["---"] * 2 + ["---:"] * (len(columns) - 2), *cells]
    write_text(folder / "profile.md", "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}\n")
    write_text(folder / "profile.csv", csv_text([COLUMNS, *([row[name] for name in COLUMNS] for row in rows)]))
    tradeoff([*rows]).savefig(folder / "profile.png", dpi=150, metadata={"Software": None})


def _subject(name: str, runs: dict[str, Any], shape: Sequence[int] | None) -> Subject:
    if name in runs:
        subject = network_subject(name, runs[name].network, shape or ())
        return subject._replace(normalization=runs[name].normalization)
    if Path(name).is_file():
        return file_subject(Path(name), shape)
    if not shape:
        shape = (3, 32, 32)
    return network_subject(name, network_from(name, []), shape)


def _check_normalization(subjects: Sequence[Subject], of_data: tuple[list[float], list[float]] | None) -> None:
    for subject in subjects:
        if of_data is not None and subject.normalization not in (None, of_data):
            mean, std = subject.normalization
            raise InputError(
                f"{subject.name!r} takes images normalized with mean {mean} and std {std}, and the data here have "
                f"{of_data[0]} and {of_data[1]}, which would give a wrong accuracy: profile it in another command."
            )


def _shape(text: str | None) -> tuple[int, ...] | None:
    try:
        return None if text is None else tuple(int(size) for size in text.split(","))
    except ValueError:
        raise InputError(f"--input must be numbers with commas between them, such as 3,32,32, not {text!r}.") from None


def _text(value: float | None, form: str, scale: float = 1, absent: str = "–") -> str:
    return absent if value is None else form.format(value if scale == 1 else value * scale)


def _pair(row: dict[str, Any], size: int) -> str:
    return f"{row[f'p50_ms_{size}']:.2f} / {row[f'p95_ms_{size}']:.2f}"
