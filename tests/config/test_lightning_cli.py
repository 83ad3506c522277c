"""fit, validate, test and predict from YAML and from the command line, with a user's own loss."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml

from kdlab import InputError
from kdlab.cli import main
from kdlab.config.lightning_cli import QUIET, KdlabCLI, build
from kdlab.data import Digits
from kdlab.export.student import student_in
from kdlab.files import locked
from tests.tiers import tiered

USER_LOSS = '''\
"""My own loss: one minus the cosine between the class scores."""

import torch.nn.functional as F
from torch import nn


class CosineLogits(nn.Module):
    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = scale

    def forward(self, student, teacher, target):
        return self.scale * (1 - F.cosine_similarity(student.logits, teacher.logits)).mean()
'''
FAILING = """\
from torch import nn


class Failing(nn.Module):
    calls = 0

    def forward(self, student, teacher, target):
        self.calls += 1
        return student.logits.sum() / 1 if self.calls < 2 else 1 / 0
"""
MLP = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [16], "num_classes": 10}}
RECIPE = {
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
    },
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": MLP,
            "teacher": MLP,
            "knowledge": {
                "soft": {"loss": {"class_path": "kdlab.losses.SoftTargets", "init_args": {"temperature": 4.0}}},
                "mine": {"loss": "my_loss.CosineLogits", "weight": 0.5},
            },
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 128, "train_size": 256}},
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder outside the package with a recipe and the user's own loss, as a user would have it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kd.yaml").write_text(yaml.safe_dump(RECIPE))
    (tmp_path / "my_loss.py").write_text(USER_LOSS)
    return tmp_path


def rows(work: Path, version: int = 0) -> list[dict[str, str]]:
    with (work / f"runs/version_{version}/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def logged(work: Path, key: str, version: int = 0) -> list[float]:
    return [float(row[key]) for row in rows(work, version) if row.get(key)]


def test_a_users_loss_has_at_most_15_lines_and_no_kdlab() -> None:
    assert len(USER_LOSS.splitlines()) <= 15
    assert "kdlab" not in USER_LOSS


def test_fit_with_a_users_loss_from_yaml(work: Path) -> None:
    main(["fit", "-c", "kd.yaml"])
    assert logged(work, "loss/mine")[0] > 0
    assert logged(work, "loss/mine_weighted") == pytest.approx([0.5 * value for value in logged(work, "loss/mine")])
    saved = yaml.safe_load((work / "runs/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["knowledge"]["mine"]["weight"] == 0.5
    assert (work / "runs/version_0/checkpoints/last.ckpt").exists()
    assert {"val/student_accuracy", "val/teacher_accuracy", "val/agreement", "val/student_ece"} <= set(rows(work)[0])


@pytest.mark.full
def test_a_users_loss_and_every_key_from_the_command_line(work: Path) -> None:
    main(
        [
            *("fit", "-c", "kd.yaml", "--model.knowledge.mine.weight=2.0", "--model.knowledge.mine.loss.scale=3.0"),
            *("--model.knowledge.more.loss=my_loss.CosineLogits", "--model.knowledge.soft.weight=0"),
        ]
    )
    assert logged(work, "weight/mine")[0] == 2.0
    assert logged(work, "loss/mine")[0] == pytest.approx(3 * logged(work, "loss/more")[0], rel=1e-5)
    assert "loss/soft" not in rows(work)[0]


@pytest.mark.full
def test_a_second_run_leaves_the_first_alone_and_repeats_it(work: Path) -> None:
    main(["fit", "-c", "kd.yaml"])
    before = (work / "runs/version_0/metrics.csv").read_bytes()
    main(["fit", "-c", "kd.yaml"])
    assert (work / "runs/version_0/metrics.csv").read_bytes() == before
    first = torch.load(work / "runs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    second = torch.load(work / "runs/version_1/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_folder_of_another_run_is_refused_unless_resumed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["fit", "-c", "kd.yaml", "--trainer.logger.init_args.version=mine"]
    main(there)
    folder = work / "runs/mine"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit):
        main([*there, "--trainer.max_epochs=2"])
    assert "holds a run already: resume it with --ckpt_path=runs/mine, or give" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    main([*there, "--trainer.max_epochs=2", "--ckpt_path=runs/mine/checkpoints/last.ckpt"])
    with (folder / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"0", "1"}


@pytest.mark.full
def test_saved_config_validates_tests_and_predicts(work: Path) -> None:
    main(["fit", "-c", "kd.yaml"])
    config, checkpoint = "runs/version_0/config.yaml", "runs/version_0/checkpoints/last.ckpt"
    main(["validate", "-c", config, f"--ckpt_path={checkpoint}"])
    main(["test", "-c", config, f"--ckpt_path={checkpoint}"])
    main(["predict", "-c", config, f"--ckpt_path={checkpoint}", "--model.teacher=null"])
    with next(work.glob("runs/*/predictions.csv")).open() as file:
        predicted = [int(row["class"]) for row in csv.DictReader(file)]
    labels = [int(label) for label in Digits().read(train=False)[1]]
    right = sum(p == y for p, y in zip(predicted, labels, strict=True)) / len(labels)
    assert right == pytest.approx(logged(work, "val/student_accuracy")[-1], abs=1e-6)


@pytest.mark.full
def test_evaluations_write_into_the_run_and_print_where(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "-c", "kd.yaml"])
    for command, prefix in (("test", "test/"), ("validate", "val/")):
        main([command, "--ckpt_path=runs/version_0"])
        assert capsys.readouterr().out.splitlines()[-1] == f"runs/version_0/{command}.csv"
        with (work / f"runs/version_0/{command}.csv").open() as file:
            (row,) = csv.DictReader(file)
        assert row["checkpoint"] == "last.ckpt"
        last = float(row[f"{prefix}student_accuracy"])  # of Digits both sets are the test images
        assert last == pytest.approx(logged(work, "val/student_accuracy")[-1], abs=1e-6)
    assert [path.name for path in (work / "runs").iterdir()] == ["version_0"]
    main(["test", "-c", "runs/version_0/config.yaml"])  # no checkpoint, so no run that it is of
    path = Path(capsys.readouterr().out.splitlines()[-1])
    assert path == Path("runs/version_1/metrics.csv")
    assert path.is_file()


def test_predictions_of_two_processes_are_refused() -> None:
    two = SimpleNamespace(trainer=SimpleNamespace(world_size=2))
    with pytest.raises(InputError, match=r"set trainer\.devices to 1"):  # else rows are numbered in each process
        KdlabCLI.predict(cast(Any, two))


@pytest.mark.full
@pytest.mark.parametrize("every", [2, 5])
def test_the_last_epoch_is_kept_though_it_was_not_validated(work: Path, every: int) -> None:
    main(["fit", "-c", "kd.yaml", "--trainer.max_epochs=3", f"--trainer.check_val_every_n_epoch={every}"])
    kept = torch.load(work / "runs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert kept["global_step"] == 3 * kept["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]


ONE_CYCLE = ["--model.lr_scheduler=torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr=0.1"]


BAD_INPUT: list[tuple[list[str], str]] = [
    (["fti"], "no command 'fti'; the nearest are 'fit'"),
    (["fit"], "there is no model to train"),
    (["fit", "-c", "nope.yaml"], "nope.yaml"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.wieght=1"], "'wieght' (did you mean 'weight'?)"),
    (["fit", "-c", "kd.yaml", "--model.knowlege.soft.weight=1"], "(did you mean 'knowledge'?)"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.sotf.wieght=1"], "(did you mean 'weight'?)"),
    (["fit", "-c", "kd.yaml", "--trainer.epochs=1"], "unknown key 'trainer.epochs' (did you mean"),
    (["fit", "-c", "kd.yaml", "--model=kdlab.Distillr"], "kdlab has no 'Distillr' (did you mean 'Distiller'?)"),
    (["fit", "-c", "kd.yaml", "--model.studnt=1"], "'studnt' (did you mean 'student'"),
    (["fit", "-c", "kd.yaml", "--trainer.max_epoch=1"], "(did you mean 'max_epochs'"),
    (["fit", "-c", "kd.yaml", "--trainer.max_epochs=many"], "max_epochs: expected a whole number, not many."),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.weight=much"], "soft.weight: expected a number, not much."),
    (["fit", "-c", "kd.yaml", "--model.student.hidden=64"], "model.student.hidden: expected a list, not 64."),
    (["fit", "-c", "kd.yaml", "--model.knowledge.mine.loss=my_los.A"], "mine.loss: there is no module 'my_los'."),
    (["fit", "-c", "kd.yaml", "--model.knowledge.mine.loss=torch.optim.SGD"], "torch.optim.SGD is no Module."),
    (["fit", "-c", "kd.yaml", "--trainer.max_epochs=0", *ONE_CYCLE], "trainer.max_epochs is 0: nothing"),
    (["fit", "-c", "kd.yaml", "--ckpt_path=gone.ckpt"], "There is no checkpoint 'gone.ckpt'"),
    (["test", "-c", "kd.yaml", "--ckpt_path=gone.ckpt"], "There is no checkpoint 'gone.ckpt'"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.mine.loss=my_loss.CosineLogit"], "did you mean 'CosineLogits'"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.weight=-1"], "finite number of at least 0, not -1"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.loss.temperature=-1"], "-1"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.temperature=2"], "'model.knowledge.soft.loss.temperature'"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.soft.loss.weight=2"], "'model.knowledge.soft.weight'"),
    (["fit", "-c", "kd.yaml", "--model.lr=2"], "(did you mean 'model.optimizer.lr'?)"),
    (["fit", "-c", "kd.yaml", "--model.batch_size=2"], "(did you mean 'data.batch_size'?)"),
    (["fit", "-c", "kd.yaml", "--model.num_classes=2"], "(did you mean 'model.student.num_classes'?)"),
    (["fit", "-c", "kd.yaml", "--model.teaching=kdlab.teaching.Peers"], "(an argument of kdlab.CoTrainer)"),
    (["fit", "-c", "kd.yaml", "--model.knowledge.x=my_loss.CosineLogits"], "knowledge.NAME.loss=my_loss.CosineL"),
    (
        ["fit", "-c", "kd.yaml", "--model.teacher=torchvision.models.resnet18", "--model.teacher.weights=a.pth"],
        "--model.teacher=kdlab.models.with_weights --model.teacher.network=torchvision.models.resnet18 --",
    ),
    (["fit", "-c", "kd.yaml", "--model.teacher.weights=gone.safetensors"], "no weights file 'gone.safetensors'"),
    (["fit", "-c", "kd.yaml", '--model.knowledge.soft.student_layers=["hiden.0"]'], "'hidden.0'"),
    (["fit", "-c", "kd.yaml", "--model.teacher.num_classes=7"], "10 classes and the teacher 7"),
]


@pytest.mark.parametrize(("arguments", "said"), tiered(BAD_INPUT, BAD_INPUT[::3]))
def test_bad_input_is_one_sentence_and_writes_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"kdlab {arguments[0]}: ")
    assert said in message
    assert not (work / "runs/version_0/checkpoints").exists()


def built(*options: str) -> Any:
    return build(["-c", "kd.yaml", *QUIET, *options], run=False, save_config=False)


@pytest.mark.full
def test_class_weights_and_groups_from_the_command_line(work: Path) -> None:
    weights = "[" + ", ".join(["1"] * 9) + ", 5]"
    group = "--model.parameter_groups.student.fc"
    cli = built("--model.task=torch.nn.CrossEntropyLoss", f"--model.task.weight={weights}", f"{group}.lr=0.1",
                "--model.parameter_groups.losses.lr=1e-3", f"{group}.momentum=0.5")  # fmt: skip
    assert torch.equal(cli.model.task.weight, torch.tensor([1.0] * 9 + [5.0]))
    assert cli.model.parameter_groups == {"student.fc": {"lr": 0.1, "momentum": 0.5}, "losses": {"lr": 1e-3}}
    assert cli.resolved["model"]["init_args"]["task"]["init_args"]["weight"] == [1.0] * 9 + [5.0]
    again = build(cli.resolved, run=False, save_config=False)
    assert torch.equal(again.model.task.weight, cli.model.task.weight)


def test_null_takes_out_networks_and_knowledge(work: Path) -> None:
    model: dict[str, Any] = {"class_path": "kdlab.CoTrainer", "init_args": {"networks": dict.fromkeys("abc", MLP)}}
    model["init_args"]["knowledge"] = {
        "soft": {"loss": "kdlab.losses.SoftTargets"},
        "more": {"loss": "kdlab.losses.DKD"},
    }
    (work / "co.yaml").write_text(yaml.safe_dump({"model": model}))
    (work / "less.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"knowledge": {"more": None}}}}))
    options = ["-c", "co.yaml", "-c", "less.yaml", "--model.networks.a=null"]
    built = build([*options, *QUIET], run=False, save_config=False)
    assert ([*built.model.networks], [*built.model.knowledge], built.model.deploy) == (["b", "c"], ["soft"], "b")
    found = student_in(built.resolved)  # what kdlab export takes
    assert found is not None
    assert found["init_args"]["hidden"] == [16]
    assert student_in(built.resolved, "a") is None


def test_a_loss_where_a_knowledge_belongs_is_its_loss(work: Path) -> None:
    module = built("--model.knowledge.dkd=kdlab.losses.DKD").model
    assert type(module.knowledge["dkd"].loss).__name__ == "DKD"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--model.help", "kdlab.Distiller"], "the network to train. (required"),
        (["--model.knowledge.help"], "--model.knowledge.NAME.weight"),
        (["-c", "kd.yaml", "--model.knowledge.help", "kdlab.Knowledge"], "--model.knowledge.NAME.weight"),
        (["--model.student.help=kdlab.models.resnet20"], "--model.student.num_classes"),
    ],
)
def test_help_of_a_part_is_short(
    arguments: list[str], shown: str, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        main(["fit", *arguments])
    out = capsys.readouterr().out
    assert shown in " ".join(out.split())
    assert len(out.splitlines()) < 160
    assert "torchmetrics" not in out


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_barebones_trains_and_writes_nothing(work: Path) -> None:
    before = {*work.rglob("*")}
    main(["fit", "-c", "kd.yaml", "--trainer.barebones=true", "--trainer.log_every_n_steps=null"])
    assert {path for path in work.rglob("*") if "__pycache__" not in path.parts} == before


def test_a_run_that_fails_in_a_step_keeps_its_folder(work: Path) -> None:
    (work / "failing.py").write_text(FAILING)
    with pytest.raises(ZeroDivisionError):
        main(["fit", "-c", "kd.yaml", "--model.knowledge.mine.loss=failing.Failing"])
    assert (work / "runs/version_0/config.yaml").exists()


def test_two_runs_in_one_folder_at_once_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = ["fit", "-c", "kd.yaml", "--trainer.logger.init_args.version=mine"]
    with locked(work / "runs/mine/.training.lock", "this test trains"):
        with pytest.raises(SystemExit) as stop:
            main(there)
        assert (work / "runs/mine").is_dir()
    assert stop.value.code == 2
    assert "Another process is training in 'runs/mine': wait until it is done" in capsys.readouterr().err
    main(there)
