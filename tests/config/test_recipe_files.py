"""Recipes and studies by name, in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab import InputError
from kdlab.cli import main
from kdlab.config import recipe_files
from kdlab.config.recipe_files import recipe, recipes, resolved, study, with_recipes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("kd_digits", "kd_digits.yaml"),
        ("configs/kd_digits.yaml", "kd_digits.yaml"),
        ("cifar100/distil", "cifar100/distil.yaml"),
        ("kd", "knowledge/kd.yaml"),  # not knowledge/imagenet/kd.yaml
        ("imagenet/kd", "knowledge/imagenet/kd.yaml"),
        ("base/self", "recipes/base/self.yaml"),
    ],
)
def test_a_recipe_goes_by_the_end_of_its_path(name: str, path: str) -> None:
    assert recipe(name).path == ROOT / "configs" / path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kd_digit", r"no file 'kd_digit', nor a recipe .*; the nearest are 'kd_digits'"),
        ("cifar100/distill", r"the nearest are 'cifar100/distil'"),
        ("distil", r"several recipes: 'cifar100/distil' or 'imagenet/distil'"),
        ("knowledge_weight", "no file 'knowledge_weight'"),  # of a sweep, for another program
    ],
)
def test_an_unknown_recipe_names_the_nearest(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recipe(name)


def test_a_users_file_comes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/kd_digits.yaml").write_text("a: 1\n")
    assert resolved("configs/kd_digits.yaml") == "configs/kd_digits.yaml"
    whole, part = str(ROOT / "configs/kd_digits.yaml"), str(ROOT / "configs/knowledge/dkd.yaml")
    assert with_recipes(["fit", "-c", "kd_digits", "--config=dkd"]) == ["fit", "-c", whole, f"--config={part}"]
    assert with_recipes(["fit", "--config", "dkd", "--x=dkd"]) == ["fit", "--config", part, "--x=dkd"]
    assert with_recipes(["--config=a: 1\nb: 2"]) == ["--config=a: 1\nb: 2"]


def test_every_recipe_has_a_line_and_a_command_that_names_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    for item in recipes():
        assert 10 < len(item.summary) < 120, item.name
        assert any(line.startswith(f"{item.name} ") and line.endswith(item.summary) for line in lines)
        command = item.command()
        named = [recipe(word) for word, before in zip(command[1:], command, strict=False) if before == "-c"]
        assert named[0].is_whole, item.name
    assert not any(line.startswith("sweeps/") for line in lines)


def test_init_copies_a_recipe_and_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "dml_sequential", f"--out={tmp_path}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dml.yaml", "dml_sequential.yaml", "online.yaml"]
    command = capsys.readouterr().out.splitlines()[-1].split()
    files = [f"{tmp_path}/{name}.yaml" for name in ("online", "dml", "dml_sequential")]
    assert command == ["kdlab", "fit", "-c", files[0], "-c", files[1], "-c", files[2]]
    main(["init", "dml", f"--out={tmp_path}"])  # the same files
    (tmp_path / "dml.yaml").write_text("changed: 1\n")
    with pytest.raises(SystemExit):
        main(["init", "dml", f"--out={tmp_path}"])
    assert "exists and is not this recipe" in capsys.readouterr().err
    assert (tmp_path / "dml.yaml").read_text() == "changed: 1\n"


def test_init_copies_one_file_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init", "kd_digits", f"--out={tmp_path}/x.yaml"])
    assert (tmp_path / "x.yaml").read_text() == (ROOT / "configs/kd_digits.yaml").read_text()
    assert capsys.readouterr().out.splitlines()[-1] == f"  kdlab fit -c {tmp_path}/x.yaml"
    with pytest.raises(SystemExit):
        main(["init", "dml", f"--out={tmp_path}/y.yaml"])
    assert "'dml' is 2 files, laid over each other: give a folder as --out." in capsys.readouterr().err


def test_studies_go_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert study("smoke") == study("experiments/smoke") == ROOT / "experiments/smoke"
    (tmp_path / "smoke").mkdir()
    assert study("smoke") == Path("smoke")
    with pytest.raises(InputError, match="no study 'smok', file or folder; those of kdlab are cifar100_short, "):
        study("smok")


def test_an_installed_package_has_its_own_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdlab/configs").mkdir(parents=True)
    (tmp_path / "kdlab/configs/mine.yaml").write_text("# Mine: it is here.\n")
    monkeypatch.setattr(recipe_files, "HOMES", (tmp_path / "kdlab", tmp_path))
    assert [(item.name, item.summary) for item in recipes()] == [("mine", "Mine")]
    with pytest.raises(InputError, match="no folder 'experiments': install it again"):
        study("smoke")
