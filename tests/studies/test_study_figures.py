"""Figures of a study: of each pair the curves of its methods' first finished seeds."""

from __future__ import annotations

import csv
from pathlib import Path

from kdlab.studies.ledger import Ledger
from kdlab.studies.study_figures import write_figures
from tests.studies.small import PAIR, enter, named, runs


def test_a_studys_curves_are_those_of_first_seeds(tmp_path: Path) -> None:
    planned, ledger = runs(tmp_path), Ledger(tmp_path / "ledger.csv")
    by_name = named(planned)
    for seed, value in enumerate((2.0, 3.0)):
        run = by_name[f"{PAIR}, KD, seed {seed}"]
        enter(ledger, run, 0.5)
        (data,) = {row["data"] for row in ledger.rows}
        folder = run.folder(tmp_path / "runs", data)
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,epoch,loss/task\n1,0,{value}\n")
    drawn, numbers = write_figures(planned, ledger, tmp_path / "runs", tmp_path / "out")
    assert drawn == tmp_path / "out/big-to-tiny/curves.png"
    with numbers.open() as file:
        assert [(row["run"], float(row["value"])) for row in csv.DictReader(file)] == [("KD", 2.0)]
