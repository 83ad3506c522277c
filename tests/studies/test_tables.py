"""The table of a study: which rows of the ledger count for which cell, and what is said of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies import published
from kdlab.studies.ledger import FAILED, Ledger
from kdlab.studies.runs import Run
from kdlab.studies.statistics import Difference, Spread
from kdlab.studies.tables import Entry, Table, table
from tests.studies.small import PAIR, STUDY, enter, named, runs, study

PLAIN, KD = [[f"{name}, seed {seed}" for seed in (0, 1)] for name in ("tiny, plain", f"{PAIR}, KD")]
SOURCES = ",".join(published.FIELDS) + "\nd,big,tiny,KD,71.5,,,,Table 1\nd,,tiny,plain,69.25,,,,Table 2\n"


def reported(folder: Path, ledger: Ledger, text: str = STUDY, with_published: bool = True) -> Table:
    return table(study(folder, text), runs(folder, text), ledger, with_published)


def entry(found: Table, method: str, pair: str = PAIR) -> Entry:
    one = found.entry(pair, method)
    assert one is not None
    return one


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.csv")


@pytest.fixture
def found(tmp_path: Path) -> dict[str, Run]:
    return named(runs(tmp_path))


def fill(ledger: Ledger, found: dict[str, Run], names: Sequence[str], values: Sequence[float]) -> None:
    for name, value in zip(names, values, strict=True):
        enter(ledger, found[name], value, best_accuracy=value + 0.01, agreement=0.8, ece=0.05, seconds=90.0)


def test_a_whole_table(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    fill(ledger, found, PLAIN, [0.625, 0.6875])
    fill(ledger, found, KD, [0.75, 0.8125])
    enter(ledger, found["teacher big"], 0.875)
    shown = reported(tmp_path, ledger)
    assert [(each.pair, each.method, each.complete) for each in shown.entries] == [
        (PAIR, "plain", True),
        (PAIR, "KD", True),
    ]
    plain, kd = shown.entries
    assert (plain.values, kd.values, plain.wanted) == ((62.5, 68.75), (75.0, 81.25), 2)
    assert plain.last == Spread(65.625, math.sqrt(2 * 3.125**2), 2)
    assert plain.gain is None, "it is what the others are measured against"
    # Means 78.125 and 65.625, both variances 19.53: freedom 2, t 4.302653, half width 4.302653 * sqrt(19.53)
    assert kd.gain == pytest.approx((12.5, 12.5 - 19.01522, 12.5 + 19.01522), abs=1e-5)
    assert kd.spreads["best"] == pytest.approx((79.125, math.sqrt(2 * 3.125**2), 2))
    assert (kd.spreads["agreement"], kd.spreads["ece"], kd.spreads["minutes"]) == (
        Spread(80.0, 0.0, 2),
        Spread(5.0, 0.0, 2),
        Spread(1.5, 0.0, 2),
    )
    assert (kd.published, kd.beyond, shown.teachers, shown.improvements, shown.notes) == (
        None,
        None,
        {"big": 87.5},
        {},
        (),
    )


def test_cells_without_rows_are_empty(tmp_path: Path, ledger: Ledger) -> None:
    shown = reported(tmp_path, ledger)
    for each in shown.entries:
        assert (each.values, each.last, each.gain) == ((), None, None)
        assert not any(each.spreads.values())
        assert not each.complete
    assert (shown.teachers, shown.notes) == ({}, ())


def test_seeds_that_are_missing_are_said(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    fill(ledger, found, PLAIN, [0.5, 0.625])
    fill(ledger, found, KD[1:], [0.75])
    plain, kd = reported(tmp_path, ledger).entries
    assert (plain.complete, kd.complete, len(kd.values), kd.wanted) == (True, False, 1, 2)
    assert (kd.last, kd.gain) == (Spread(75.0, None, 1), Difference(18.75, None, None))


def test_a_value_that_was_not_measured_is_empty(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    enter(ledger, found[PLAIN[0]], 0.5)
    enter(ledger, found[PLAIN[1]], 0.25, agreement=0.75)
    plain = entry(reported(tmp_path, ledger), "plain")
    assert {name: value for name, value in plain.spreads.items() if value} == {
        "top1": plain.last,
        "agreement": Spread(75.0, None, 1),
    }


def test_rows_of_another_recipe_are_left_out_and_said(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    fill(ledger, found, PLAIN, [0.5, 0.625])
    other = named(runs(tmp_path, overrides=["--trainer.max_epochs=99"]))
    fill(ledger, other, [*PLAIN, *KD], [0.9, 0.9, 0.9, 0.9])
    shown = reported(tmp_path, ledger)
    assert (entry(shown, "plain").values, entry(shown, "KD").values) == ((50.0, 62.5), ())
    names = "; ".join(f"{PAIR}, {method}, seed {seed}" for method in ("plain", "KD") for seed in (0, 1))
    (said,) = [note for note in shown.notes if note.startswith("Left out")]
    assert said == f"Left out, of another recipe or code: {names}."
    for more, ending in ((4, "seed 0."), (2, "; and 2 more.")):
        for _ in range(more):
            enter(ledger, other[KD[0]], 0.9)
        (said,) = [note for note in reported(tmp_path, ledger).notes if note.startswith("Left out")]
        assert said.endswith(ending)
        assert said.count(" → ") == 8
    enter(ledger, other[KD[1]], 0.9, kdlab="0.0.1")
    recipe, version = [note for note in reported(tmp_path, ledger).notes if note.startswith("Left out")][::-1]
    assert recipe.endswith("; and 2 more.")
    assert version == f"Left out, of kdlab 0.0.1: {PAIR}, KD, seed 1."


def test_rows_on_other_data_than_most_are_left_out_and_said(
    tmp_path: Path, ledger: Ledger, found: dict[str, Run]
) -> None:
    fill(ledger, found, PLAIN, [0.5, 0.625])
    for name in KD:
        enter(ledger, found[name], 0.75, data="data")
    enter(ledger, found[PLAIN[0]], 0.99, data="other data")
    shown = reported(tmp_path, ledger)
    assert entry(shown, "plain").values == (50.0, 62.5)
    assert [note for note in shown.notes if "other data" in note] == [
        f"Left out, on other data: {PAIR}, plain, seed 0."
    ]


def test_later_row_counts_and_failure_is_noted_until_repaired(
    tmp_path: Path, ledger: Ledger, found: dict[str, Run]
) -> None:
    run = found[KD[0]]
    failure = {"run": run.identity("data"), "config": run.key, "data": "data", "pair": PAIR, "method": "KD", "seed": 0}
    ledger.append({**failure, "status": FAILED, "error": "no memory"})
    ledger.append({**failure, "status": FAILED, "error": "no memory again"})
    assert reported(tmp_path, ledger).notes == (f"{PAIR}, KD, seed 0 failed: no memory again",)
    assert entry(reported(tmp_path, ledger), "KD").values == ()
    enter(ledger, run, 0.5)
    enter(ledger, run, 0.75)
    assert reported(tmp_path, ledger).notes == ()
    assert entry(reported(tmp_path, ledger), "KD").values == (75.0,)


def test_a_failed_teacher_is_said(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    run = found["teacher big"]
    row = {"run": run.identity("data"), "config": run.key, "data": "data", "network": "big", "seed": 1000}
    ledger.append({**row, "status": FAILED, "error": "no memory"})
    assert reported(tmp_path, ledger).notes == ("big, seed 1000 failed: no memory",)
    other = named(runs(tmp_path, overrides=["--trainer.precision=x"]))["teacher big"]
    ledger.append(
        {**row, "run": other.identity("data"), "config": other.key, "status": FAILED, "error": "another recipe"}
    )
    assert reported(tmp_path, ledger).notes == ("big, seed 1000 failed: no memory",)


def test_machines_and_versions_behind_the_rows_are_said(tmp_path: Path, ledger: Ledger, found: dict[str, Run]) -> None:
    enter(ledger, found[PLAIN[0]], 0.5, device="A100", torch="2.9", commit="abc")
    enter(ledger, found[PLAIN[1]], 0.5, device="H100", torch="2.9", commit="")
    assert reported(tmp_path, ledger).notes == ("On A100, H100.", "torch 2.9.", "kdlab at commit abc.")


def test_published_values_stand_beside_the_cells_that_have_them(
    tmp_path: Path, ledger: Ledger, found: dict[str, Run]
) -> None:
    (tmp_path / "published.csv").write_text(SOURCES)
    text = STUDY + "published: published.csv\n"
    fill(ledger, found, KD, [0.75, 0.8125])
    shown = reported(tmp_path, ledger, text)
    plain, kd = entry(shown, "plain"), entry(shown, "KD")
    assert (plain.published, plain.beyond) == (published.Published(69.25, "Table 2"), None)
    assert kd.published == published.Published(71.5, "Table 1")
    assert kd.beyond == 78.125 - 71.5
    # With options of the command line it is no longer the paper's recipe.
    for each in reported(tmp_path, ledger, text, with_published=False).entries:
        assert (each.published, each.beyond) == (None, None)
    (tmp_path / "published.csv").write_text("method,top1\n")
    with pytest.raises(InputError, match="has to have the columns"):
        reported(tmp_path, ledger, text)


def test_a_published_value_is_of_its_own_teacher_and_student(tmp_path: Path, ledger: Ledger) -> None:
    rows = "d,other,tiny,KD,1.5,,,,x\nd,big,other,KD,2.5,,,,x\nd,big,tiny,CRD,3.5,,,,x\n"
    (tmp_path / "published.csv").write_text(",".join(published.FIELDS) + "\n" + rows)
    shown = reported(tmp_path, ledger, STUDY + "published: published.csv\n")
    assert [each.published for each in shown.entries] == [None, None]


TWO = STUDY.replace("student: tiny}", "student: tiny}\n  - {teacher: tiny, student: big}").replace(
    "seeds:", "  CRD: {configs: [kd.yaml], options: {x: 1}}\nreference: CRD\nseeds:"
)


def test_reference_improvement_is_over_each_other_method(tmp_path: Path, ledger: Ledger) -> None:
    found = named(runs(tmp_path, TWO))
    values = {"tiny, plain": 0.70, "big, plain": 0.72, f"{PAIR}, KD": 0.72, "tiny → big, KD": 0.74}
    values |= {f"{PAIR}, CRD": 0.73, "tiny → big, CRD": 0.78}
    for name, value in values.items():
        for seed in (0, 1):
            enter(ledger, found[f"{name}, seed {seed}"], value + 0.01 * (seed - 0.5))
    shown = reported(tmp_path, ledger, TWO)
    # (73 - 72) / (72 - 70) = 1 / 2 and (78 - 74) / (74 - 72) = 2
    assert shown.improvements == {"KD": pytest.approx(125.0)}
    assert shown.entry("big → tiny", "no such") is None


def test_a_cell_that_the_study_leaves_out_is_no_entry(tmp_path: Path, ledger: Ledger) -> None:
    shown = reported(tmp_path, ledger, TWO.replace("{teacher: tiny,", "{methods: {KD: null}, teacher: tiny,"))
    assert shown.entry("tiny → big", "KD") is None
    assert len(shown.entries) == 5


def test_plain_training_shared_by_two_pairs_counts_for_both(tmp_path: Path, ledger: Ledger) -> None:
    text = STUDY.replace("teachers:", "  mid: kdlab.models.mlp\nteachers:")
    text = text.replace("student: tiny}", "student: tiny}\n  - {teacher: mid, student: tiny}")
    found = named(runs(tmp_path, text))
    fill(ledger, found, PLAIN, [0.5, 0.625])
    enter(ledger, found["mid → tiny, KD, seed 0"], 0.75)
    shown = reported(tmp_path, ledger, text)
    assert entry(shown, "plain").values == entry(shown, "plain", "mid → tiny").values == (50.0, 62.5)
    assert entry(shown, "KD", "mid → tiny").gain == Difference(18.75, None, None)


MID = "  mid: {class_path: kdlab.models.mlp, init_args: {hidden: [32]}}\nteachers:"


def test_an_ensembles_accuracy_is_its_students_and_its_cost_a_sum(tmp_path: Path, ledger: Ledger) -> None:
    text = STUDY.replace("teachers:", MID).replace("{teacher: big,", "{name: two, teacher: [big, mid],")
    found = named(runs(tmp_path, text))
    enter(ledger, found["teacher big"], 0.75, parameters=3_000_000, megabytes=12.0, latency=0.003)
    enter(ledger, found["teacher mid"], 0.5, parameters=1_000_000, megabytes=4.0)
    for seed in (0, 1):
        enter(ledger, found[f"two, KD, seed {seed}"], 0.6, teacher_accuracy=0.8)
    shown = reported(tmp_path, ledger, text)
    assert shown.teachers == {"big": 75.0, "mid": 50.0, "big + mid": 80.0}
    assert shown.costs["big"] == pytest.approx({"parameters": 3.0, "megabytes": 12.0, "latency": 3.0})
    assert shown.costs["big + mid"] == {"parameters": 4.0, "megabytes": 16.0}, "a part without a latency has no sum"
    assert shown.retention(entry(shown, "KD", "two")) == pytest.approx(75.0)  # 60 of 80
    assert shown.retention(entry(shown, "plain", "two")) is None


def test_pairs_with_other_data_options_are_other_data(tmp_path: Path, ledger: Ledger) -> None:
    text = STUDY.replace("student: tiny}", "student: tiny}\n  - {teacher: big, student: other}")
    own = "init_args: {hidden: [9]}, options: {data.root_of: other}}"
    text = text.replace("teachers:", f"  other: {{class_path: kdlab.models.mlp, {own}\nteachers:")
    found = named(runs(tmp_path, text))
    fill(ledger, found, PLAIN, [0.5, 0.625])
    for seed, data in ((0, "cut"), (1, "cut")):
        enter(ledger, found[f"other, plain, seed {seed}"], 0.75, data=data)
    shown = reported(tmp_path, ledger, text)
    assert entry(shown, "plain").values == (50.0, 62.5)
    assert entry(shown, "plain", "big → other").values == (75.0, 75.0)
    assert not [note for note in shown.notes if "other data" in note]


def test_plain_training_that_teaches_is_a_teacher_too(tmp_path: Path, ledger: Ledger) -> None:
    text = STUDY.replace("trainer.max_epochs: 6", "seed_everything: 1")
    text = text.replace("student: tiny}", "student: tiny}\n  - {teacher: big, student: big}")
    for run in runs(tmp_path, text):
        if run.network == "big" and not run.teachers:
            enter(ledger, run, 0.5 if run.seed else 0.25)
    shown = reported(tmp_path, ledger, text)
    assert shown.teachers == {"big": 50.0}
    assert sorted(entry(shown, "plain", "big → big").values) == [25.0, 50.0]
