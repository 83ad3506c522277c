"""A config is parsed once and dumped once, when it is resolved and when it is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytorch_lightning.cli import LightningArgumentParser

from kdlab.config.lightning_cli import resolve
from kdlab.config.located_yaml import Source
from kdlab.studies import worker
from kdlab.studies.grid import runs_of
from kdlab.studies.preflight import Trials
from kdlab.studies.runs import RESULT
from tests.studies.small import STUDY, study
from tests.studies.test_real import MLP, RECIPE

PARSERS = ("parse_args", "parse_object", "parse_string", "parse_path", "parse_env")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls from outside the parser of ``parse``, ``dump``, and of yaml's ``load`` and ``safe_dump``."""
    counts: Counter[str] = Counter()
    depth = 0

    def counted(owner: Any, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            counts[kind] += not depth
            depth += 1
            try:
                return original(*arguments, **options)
            finally:
                depth -= 1

        monkeypatch.setattr(owner, name, call)

    for name in PARSERS:
        counted(LightningArgumentParser, name, "parse")
    counted(LightningArgumentParser, "dump", "dump")
    counted(LightningArgumentParser, "instantiate_classes", "build")  # jsonargparse parses defaults in it
    counted(yaml, "safe_load", "load")
    counted(Source, "__init__", "load")
    counted(yaml, "safe_dump", "text")
    return counts


def taken(calls: Counter[str]) -> dict[str, int]:
    counts = {name: count for name, count in calls.items() if count}
    calls.clear()
    return counts


@pytest.mark.full
def test_one_run_of_a_study(tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder := tmp_path / "study").mkdir()
    text = STUDY.replace(
        "kdlab.models.mlp, init_args: {hidden: [8]}", f"kdlab.models.mlp, init_args: {MLP['init_args']}"
    )
    opened = study(folder, text.replace("  KD: {configs: [kd.yaml]}\n", "").replace("[0, 1]", "[0]"))
    recipe = {**RECIPE, "trainer": {**RECIPE["trainer"], "max_epochs": 1, "log_every_n_steps": 1}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    taken(calls)

    (run,) = runs_of(opened, resolve)
    assert taken(calls) == {"load": 1, "parse": 1, "dump": 1}, "the recipe's knowledge and data are looked at first"
    Trials(tmp_path / "trials.json").estimate(run.config)
    assert taken(calls) == {"parse": 1, "dump": 1, "build": 1}
    ready = run.prepare(tmp_path / "runs", "data")
    assert taken(calls) == {"text": 1}
    assert worker.main([str(ready)]) == 0
    assert (ready / RESULT).exists()
    assert taken(calls) == {"load": 1, "parse": 1, "dump": 1, "build": 1, "text": 1}, (
        "recipe.yaml is read, config.yaml written"
    )
