"""The script of the co-training experiment trains a method, writes its row once, and makes a table of it."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.full

FOLDER = Path(__file__).parent.parent / "experiments" / "cotraining"
NEIGHBOURS = ("datasets", "methods", "report")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """``run.py``, by its path; the modules beside it are forgotten afterwards, since their names are common ones."""
    before = {name: sys.modules.pop(name, None) for name in NEIGHBOURS}
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("cotraining_run", FOLDER / "run.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        for name, old in before.items():
            sys.modules.pop(name, None)
            if old is not None:
                sys.modules[name] = old


def small(script: ModuleType) -> Any:
    """Digits, 100 images, one epoch."""
    bench = script.benches(Path("unused"))["digits"]
    return dataclasses.replace(bench, data=lambda **given: bench.data(**{**given, "train_size": 100}), epochs=1)


def rows(folder: Path) -> list[dict[str, str]]:
    """What was written."""
    with (folder / "digits.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_row_is_written_once(script: ModuleType, tmp_path: Path) -> None:
    """It holds what the table needs, and a second run trains nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the script does
        script.run(small(script), "digits", ["DML"], 0, tmp_path)
        first = rows(tmp_path)
        script.run(small(script), "digits", ["DML"], 0, tmp_path)
    assert rows(tmp_path) == first
    (row,) = first
    assert set(row) == set(script.FIELDS)
    assert (row["data"], row["method"], row["seed"]) == ("digits", "DML", "0")
    assert (row["epochs"], row["images"]) == ("1", "100")
    one = sum(p.numel() for p in script.benches(Path("unused"))["digits"].network().parameters())
    assert int(row["parameters"]) == 2 * one
    assert all(0 <= float(row[name]) <= 100 for name in ("accuracy", "ensemble", "ece"))
    assert row["others"].startswith("b=")
    assert float(row["seconds"]) > 0


def test_all_methods_of_a_seed_see_the_same_images(script: ModuleType, tmp_path: Path) -> None:
    """Also those that start from other weights than the network that teaches them."""
    bench, seeds, starts = small(script), [], []

    def network() -> Any:
        net = script.benches(Path("unused"))["digits"].network()
        starts.append(float(net.conv1.weight.sum()))
        return net

    seen = dataclasses.replace(bench, data=lambda **o: seeds.append(o["seed"]) or bench.data(**o), network=network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as the script does
        script.run(seen, "digits", ["plain", "Born-Again"], 5, tmp_path)
    assert seeds == [5, 5]
    assert starts[0] != starts[1]


def test_the_table_is_made_of_the_rows(script: ModuleType, tmp_path: Path) -> None:
    """Mean, deviation of the sample, and the difference from plain of the same seeds; what was not run has no line."""
    own = dict.fromkeys(script.FIELDS, "") | {"data": "digits", "ece": "1", "seconds": "10"}
    found = [("plain", 0, 90.0), ("plain", 1, 92.0), ("plain", 2, 10.0), ("CutMix", 0, 91.0), ("CutMix", 1, 95.0)]
    with (tmp_path / "digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, script.FIELDS)
        writer.writeheader()
        writer.writerows(own | {"method": m, "seed": s, "accuracy": a} for m, s, a in found)
    lines = script.table(tmp_path / "digits.csv", script.METHODS).splitlines()
    (cut,) = [line for line in lines if line.startswith("| CutMix")]
    cells = [cell.strip() for cell in cut.strip("|").split("|")]
    # 91 and 95: mean 93, deviation 2.83; the gains are 1 and 3, not held against the third seed of plain.
    assert cells[2:4] == ["93.0 ± 2.8", "+2.0 ± 1.4"]
    assert cells[-1] == "2"
    assert not any("BYOT" in line for line in lines)
