"""A study that names a format has the accuracy, size and time of each student's file in its ledger and report."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from kdlab.cli import main
from tests.studies.test_real import start, write


@pytest.mark.full
def test_the_files_of_a_study_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"plain": {"networks": {"model.student": "student"}}}
    study = write(tmp_path / "exported", epochs=2, methods=plain, export={"format": "torch"})
    assert start(study).wait() == 0, (study / "said.txt").read_text()
    with (study / "ledger.csv").open() as file:
        (row,) = csv.DictReader(file)
    (path,) = study.glob("runs/exported/*/student.pt2")
    assert float(row["file_megabytes"]) == path.stat().st_size / 1e6
    assert float(row["file_accuracy"]) == float(row["accuracy"])  # the digits are validated on the test set
    assert 0 < float(row["file_latency"]) < 1
    monkeypatch.chdir(study)
    main(["report", str(study)])
    assert "top-1 of the file | its MB | its ms a sample" in (study / "report.md").read_text()
