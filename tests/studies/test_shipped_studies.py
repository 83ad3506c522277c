"""The studies of ``experiments/`` read, expand and, every night, work; their published numbers are the papers'."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest
import torch
from torchvision.io import write_png

from kdlab.cli import main
from kdlab.studies import published
from kdlab.studies.preflight import Trials
from kdlab.studies.render import BEGIN, END
from tests.studies.shipped import ROOT, STUDIES, named, present, reduced, runs

pytestmark = pytest.mark.full

OF_PAPERS = ["crd2020_cifar100", "dkd2022_cifar100", "dkd2022_imagenet", "dml2018_cifar100", "hinton2015_mnist"]
OF_PAPERS += ["self_kd_cifar100"]
FACTS = Path(os.environ.get("KDLAB_FACTS") or ROOT / "../shared/facts")
needs_facts = pytest.mark.skipif(not FACTS.is_dir(), reason="set KDLAB_FACTS to the folder with the facts")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # class paths of experiments, and the short names of config files


@pytest.mark.parametrize("name", STUDIES)
def test_it_expands_with_every_method_on_one_of_the_pairs(name: str) -> None:
    study = named(name)
    chosen = {}
    for number, method in enumerate(study.methods):
        turned = [*study.pairs[number % len(study.pairs) :], *study.pairs[: number % len(study.pairs)]]
        chosen[method.name] = next(pair.name for pair in turned if present(pair, method.name))
    found = runs(reduced(study, lambda pair, method: chosen[method.name] == pair.name))
    assert {each.method: each.pair for run in found for each in run.cells} == chosen


@pytest.mark.parametrize("name", STUDIES)
def test_published_numbers_belong_to_cells(name: str) -> None:
    study = named(name)
    if study.published is None:
        assert name not in OF_PAPERS
        return
    cells = {
        (other.name, pair.roles["student"].name, method.name)
        for pair in study.pairs
        for method in study.methods
        for other in pair.roles.values()
        if present(pair, method.name)
    }
    cells |= {("", student, method) for _, student, method in cells}
    values = published.read(study.published)
    assert values
    assert set(values) <= cells


def test_crd2020_has_the_pairs_and_methods_of_both_tables() -> None:
    study = named("crd2020_cifar100")
    assert len(study.pairs) == 13
    assert len({pair.roles["teacher"].name for pair in study.pairs}) == 6
    (values,) = [published.read(study.published)] if study.published else []
    # 12 methods on all pairs, FSP on six, and plain
    assert len(values) == 13 * 12 + 6 + 13
    left_out = [pair.name for pair in study.pairs if not present(pair, "FSP")]
    assert left_out == [
        f"{pair.roles['teacher'].name} → {pair.roles['student'].name}"
        for pair in study.pairs
        if (pair.roles["teacher"].name, pair.roles["student"].name, "FSP") not in values
    ]


@needs_facts
@pytest.mark.parametrize("name", ["crd2020_cifar100", "dkd2022_cifar100", "dkd2022_imagenet"])
def test_published_numbers_are_those_of_the_facts(name: str) -> None:
    with (FACTS / "paper_tables.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = {(row["source"], row["teacher"], row["student"], row["method"]): float(row["top1"]) for row in rows}
    known |= {
        (row["source"], row["teacher"], row["student"], "plain"): float(row["student_top1"])
        for row in rows
        if row["student_top1"]
    }
    study = named(name)
    assert study.published is not None
    for (teacher, student, method), value in published.read(study.published).items():
        assert known[value.source, teacher, student, method] == value.top1


@needs_facts
def test_published_numbers_of_other_sources_match_the_facts() -> None:
    values = published.read(ROOT / "experiments/hinton2015_mnist/published.csv")
    errors = {method: round((100 - value.top1) * 100) for (_, _, method), value in values.items()}
    assert errors == {"plain": 146, "soft": 74, "soft, no 3s": 206}
    facts = (FACTS / "methods_online_self_nlp.md").read_text()
    values = published.read(ROOT / "experiments/dml2018_cifar100/published.csv")
    alone, same, larger = (
        values[peer, "resnet20", method].top1
        for peer, method in (
            ("", "independent"),
            ("resnet20", "DML"),
            ("resnet110", "DML"),
        )
    )
    assert f"r20 baseline {alone:.2f}, r110" in facts
    assert f"DML r20+r20 {same:.2f}/" in facts
    assert f"/{larger:.2f}; r110+r110" in facts
    values = published.read(ROOT / "experiments/self_kd_cifar100/published.csv")
    table = next(line for line in facts.splitlines() if line.startswith("SKL table, CIFAR-100 R18"))
    table += facts[facts.index(table) + len(table) :].split("\n", 2)[1]
    for (_, _, method), value in values.items():
        assert f"{'CE' if method == 'plain' else method} {value.top1:.2f}" in table


@pytest.mark.parametrize("name", OF_PAPERS)
def test_readme_says_how_it_is_run_and_takes_the_report(name: str) -> None:
    text = (ROOT / "experiments" / name / "README.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    assert f"$ kdlab reproduce experiments/{name} " in text


def test_hintons_report_compares_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # and the path are as before afterwards
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(ROOT))])
    for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
        monkeypatch.delitem(sys.modules, name)
    main(["report", str(ROOT / "experiments/hinton2015_mnist/study.yaml"), "--out", "out"])
    assert "written: out/report.md" in capsys.readouterr().out
    with (tmp_path / "out/report.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    with (ROOT / "experiments/hinton2015_mnist/results.csv").open(newline="") as file:
        errors: dict[str, list[int]] = {}
        for row in csv.DictReader(file):
            errors.setdefault(row["net"], []).append(int(row["errors"]))
    for method, published_errors in (("plain", 146), ("soft", 74), ("soft, no 3s", 206)):
        assert float(rows[method]["top1"]) == pytest.approx(100 - sum(errors[method]) / 3 / 100)
        assert float(rows[method]["published"]) == pytest.approx(100 - published_errors / 100)
    text = (tmp_path / "out/report.md").read_text()
    assert "Teacher mlp 1200, trained here: 99.40." in text
    assert "Measured here, but not as a run of this study: run.py with the same configs" in text


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-100's form: 100 class folders with ten training images and one test image of random pixels."""
    root = tmp_path_factory.mktemp("cifar100")
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("test", 1)):
        for label in range(100):
            folder = root / split / f"{label:03d}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                write_png(pixels, str(folder / f"{number}.png"))
    return root


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "count"), [("crd2020_cifar100", 184 + 6), ("dml2018_cifar100", 8), ("self_kd_cifar100", 19 + 1)]
)
def test_every_cell_takes_two_steps(name: str, count: int, images: Path, tmp_path: Path) -> None:
    """13 x 15 cells without 7 of FSP, of which four plain students are in two pairs, and six teachers; and so on."""
    light = reduced(named(name), lambda pair, method: "wrn_28_10" not in pair.name)  # minutes and gigabytes a step
    found = runs(light, (f"--data.root={images}",))
    assert len(found) == count
    trials = Trials(tmp_path / "trials.json")
    for run in found:
        assert trials.estimate(run.config).seconds > 0, run.name


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "count"), [("dkd2022_cifar100", 31 + 6), ("dkd2022_imagenet", 10), ("dml2018_cifar100", 11)]
)
def test_every_cell_resolves(name: str, count: int) -> None:
    assert len(runs(reduced(named(name)))) == count
