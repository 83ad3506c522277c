"""Published numbers are taken with their sources, and never those that nobody has checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies.published import FIELDS, MEASURED, Published, read, read_measured

ROWS = """\
cifar100,resnet56,resnet20,KD,70.66,,72.34,69.06,RepDistiller README
cifar100,resnet56,resnet20,CRD,71.16,0.2,72.34,69.06,"Table 1, last epoch"
cifar100,,resnet20,plain,69.06,,,,RepDistiller README
"""


def written(tmp_path: Path, rows: str, header: str = ",".join(FIELDS)) -> Path:
    path = tmp_path / "published.csv"
    path.write_text(f"{header}\n{rows}")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        read(path)
    return str(refused.value)


def test_numbers_and_their_sources_by_teacher_student_and_method(tmp_path: Path) -> None:
    assert read(written(tmp_path, ROWS)) == {
        ("resnet56", "resnet20", "KD"): Published(70.66, "RepDistiller README"),
        ("resnet56", "resnet20", "CRD"): Published(71.16, "Table 1, last epoch"),
        ("", "resnet20", "plain"): Published(69.06, "RepDistiller README"),
    }
    assert read(written(tmp_path, "")) == {}


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("70.66", "", 2, "'' is no number"),
        ("71.16", "71,16", 3, ""),
        ("71.16", "n/a", 3, "'n/a' is no number"),
        ('"Table 1, last epoch"', "", 3, "a published number needs a source that was checked, not ''"),
        ('"Table 1, last epoch"', "UNVERIFIED: recalled", 3, "not 'UNVERIFIED: recalled'"),
        ('"Table 1, last epoch"', "paper (unverified)", 3, "not 'paper (unverified)'"),
        ("resnet20,CRD", "resnet20,KD", 3, "there is a value for resnet56, resnet20, KD already: keep one source"),
        ('"Table 1, last epoch"', "Table 1, last epoch", 3, ""),  # the source would be cut at its comma
        (',"Table 1, last epoch"', "", 3, "a source"),
    ],
)
def test_a_mistake_is_refused_with_its_line(old: str, new: str, line: int, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, ROWS.replace(old, new))
    text = refusal(path)
    assert text.startswith(f"{path}, line {line}: ")
    assert said in text


@pytest.mark.parametrize("header", ["", ",".join(FIELDS[:-1]), ",".join((*FIELDS, "note")), ",".join(reversed(FIELDS))])
def test_other_columns_are_refused(header: str, tmp_path: Path) -> None:
    path = written(tmp_path, ROWS, header)
    assert refusal(path) == f"{path} has to have the columns {','.join(FIELDS)}."


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("big,tiny,KD,0,91.5,script\n", "from 0 to 1"),
        ("big,tiny,KD,0,0.9,\n", "has a source"),
        ("big,tiny,KD,0,0.9,script\nbig,tiny,KD,0,0.8,script\n", "seed 0 of big, tiny, KD is there twice"),
        ("big,tiny,KD,x,0.9,script\n", "are numbers"),
    ],
)
def test_measured_values_need_number_and_source(lines: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "measured.csv"
    path.write_text(f"{','.join(MEASURED)}\n{lines}")
    with pytest.raises(InputError, match=said):
        read_measured(path)
