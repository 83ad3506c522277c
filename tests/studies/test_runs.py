"""A run's folder, and the recipe in it that says everything."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdlab.studies.grid import runs_of
from kdlab.studies.runs import RECIPE, STUDENT
from tests.studies.small import PAIR, STUDY, named, resolve, runs, study

TIMER = "pytorch_lightning.callbacks.Timer"
WANDB = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"project": "x"}}
KD = f"{PAIR}, KD, seed 0"


@pytest.mark.parametrize(("epochs", "expected"), [("4", 4), ("null", 1), ("-1", 1)])
def test_epochs_are_one_where_steps_alone_are_counted(epochs: str, expected: int, tmp_path: Path) -> None:
    assert runs(tmp_path, STUDY, overrides=[f"--trainer.max_epochs={epochs}"])[0].epochs == expected


def test_a_folder_is_named_for_people_and_by_the_identity(tmp_path: Path) -> None:
    run = named(runs(tmp_path))[KD]
    assert run.folder(tmp_path, "data") == tmp_path / f"big-to-tiny_KD_seed-0-{run.identity('data')}"
    long = STUDY.replace("student: tiny}", f"student: tiny, name: 'a/b: {'é' * 200} *'}}")
    folder = runs(tmp_path, long)[2].folder(tmp_path, "data")
    assert (folder.parent, len(folder.name)) == (tmp_path, 80 + 1 + 12)
    assert folder.name.startswith("a-b-é")


def test_the_recipe_of_a_run_is_whole_and_in_its_folder(tmp_path: Path) -> None:
    found = named(runs(tmp_path))
    run, root = found[KD], tmp_path / "runs"
    folder = run.prepare(root, "data", [WANDB])
    assert folder == run.folder(root, "data")
    recipe = yaml.safe_load((folder / RECIPE).read_text())
    teacher = found["teacher big"].folder(root, "data") / STUDENT
    assert recipe["model"]["init_args"]["teacher"]["init_args"]["weights"] == str(teacher.resolve())
    assert recipe["checkpoint"]["dirpath"] == str(folder / "checkpoints")
    assert (recipe["checkpoint"]["save_last"], recipe["checkpoint"]["monitor"]) == (True, None)
    trainer = recipe["trainer"]
    record = {"class_path": "kdlab.studies.run_callback.Record", "init_args": {"folder": str(folder)}}
    assert trainer["callbacks"] == [record]
    csv, other = trainer["logger"]
    assert Path(csv["init_args"]["save_dir"], csv["init_args"]["name"], csv["init_args"]["version"]) == folder
    assert other == WANDB
    assert (trainer["max_epochs"], trainer["enable_progress_bar"], recipe["seed_everything"]) == (3, False, 0)
    assert run.config["trainer"]["callbacks"] is None, "the run itself stays as it was"
    run.prepare(root, "data")
    assert len(yaml.safe_load((folder / RECIPE).read_text())["trainer"]["logger"]) == 1


@pytest.mark.parametrize("given", [f"[{{class_path: {TIMER}}}]", f"{{class_path: {TIMER}}}"])
def test_callbacks_of_the_recipe_stay(given: str, tmp_path: Path) -> None:
    run = runs(tmp_path, STUDY, overrides=[f"--trainer.callbacks={given}"])[0]
    recipe = yaml.safe_load((run.prepare(tmp_path / "runs", "data") / RECIPE).read_text())
    assert [each["class_path"] for each in recipe["trainer"]["callbacks"]] == [
        "pytorch_lightning.callbacks.Timer",
        "kdlab.studies.run_callback.Record",
    ]


def test_weights_from_a_file_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big.pt").write_text("weights")
    found = runs_of(study(Path("."), STUDY, {"big": Path("big.pt")}), resolve)
    recipe = yaml.safe_load((found[1].prepare(Path("runs"), "data") / RECIPE).read_text())
    assert recipe["model"]["init_args"]["teacher"]["init_args"]["weights"] == str(tmp_path / "big.pt")


def test_a_study_keeps_outputs_where_a_recipe_has_a_teacher_and_no_cache(tmp_path: Path) -> None:
    mine = {"class_path": "kdlab.teaching.TeacherCache", "init_args": {"folder": "mine", "top_k": 3}}
    text = STUDY.replace("seeds:", f"  own: {{configs: [kd.yaml], options: {{model.teacher_cache: {mine}}}}}\nseeds:")
    result = named(runs(tmp_path, text))

    def cache_of(name: str) -> object:
        folder = result[name].prepare(tmp_path / "runs", "data", cache=tmp_path / "outputs")
        return yaml.safe_load((folder / RECIPE).read_text())["model"]["init_args"]["teacher_cache"]

    options = {"folder": str((tmp_path / "outputs").resolve()), "dtype": "float32", "shared": True}
    assert cache_of(KD) == {"class_path": "kdlab.teaching.TeacherCache", "init_args": options}
    assert cache_of("tiny, plain, seed 0") is None
    assert cache_of("teacher big") is None
    assert cache_of(f"{PAIR}, own, seed 0") == mine
    assert result[KD].config["model"]["init_args"]["teacher_cache"] is None, "the identity is that without a cache"
