"""Runs with the parser of ``kdlab fit``: every default stands in a config, and what it refuses has its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies import preflight as trial
from kdlab.studies.grid import runs_of
from kdlab.studies.runs import Run
from tests.studies.small import STUDY, runs, study

RECIPE = """\
model:
  class_path: kdlab.Distiller
  init_args:
    student: {class_path: kdlab.models.mlp, init_args: {in_features: 64, dropout: 0.5, num_classes: 7}}
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
"""


def real(folder: Path, text: str, kd: str | None = None) -> list[Run]:
    """With the parser of ``kdlab fit``."""
    text = text.replace("{hidden: [64]}", "{in_features: 64, hidden: [64], num_classes: 10}")
    found = study(folder, text.replace("{hidden: [8]}", "{in_features: 64, hidden: [8], num_classes: 10}"))
    (folder / "recipe.yaml").write_text(RECIPE)
    if kd is not None:
        (folder / "kd.yaml").write_text(kd)
    return runs_of(found, trial.resolve)


def test_the_parser_of_fit_resolves_every_default(tmp_path: Path) -> None:
    found = real(tmp_path, STUDY)
    assert [run.name for run in found] == [run.name for run in runs(tmp_path)]
    assert len({run.key for run in found}) == 5
    model = found[2].config["model"]["init_args"]
    for run in found:  # nothing is left of the recipe's own network
        assert run.config["model"]["init_args"]["student"]["init_args"]["dropout"] == 0.0
    assert model["optimizer"]["init_args"]["momentum"] == 0.0
    assert model["teacher"]["init_args"]["weights"] == f"run:{found[0].key}"
    assert model["teacher"]["init_args"]["network"]["init_args"]["dropout"] == 0.0
    assert [run.epochs for run in found[:2]] == [6, 1]


@pytest.mark.parametrize(
    ("options", "kd", "said"),
    [
        ("model.task_wieght: 1", None, ["line 13: ", "'task_wieght'", "'task_weight'"]),
        ("model.task: kdlab.losses.SoftTarget", None, ["line 13: ", "kdlab.losses", "'SoftTarget'"]),
        ("data.seed: 1", "model: {init_args: {task_wait: 1}}", ["kd.yaml, line 1: ", "'task_wait'"]),
    ],
)
def test_what_the_parser_refuses_has_the_line_of_the_method(
    options: str, kd: str | None, said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        real(tmp_path, STUDY.replace("[kd.yaml]", f"[kd.yaml], options: {{{options}}}"), kd)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / ('kd.yaml' if kd else 'study.yaml')}, ")
    assert [each for each in said if each not in text] == []
    assert "\n" not in text
