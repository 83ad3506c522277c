"""generations: each student is taught by the one before, whatever happens in between."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from kdlab.cli import main
from kdlab.data import Digits
from kdlab.models import mlp
from kdlab.modules import Distiller
from kdlab.studies import generations
from tests.losses import slow

pytestmark = pytest.mark.full

SOFT = {"loss": {"class_path": "kdlab.losses.SoftLabels", "init_args": {"temperature": 1.0}}, "weight": 1.0}
NET = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [16], "num_classes": 10}}
TRAINER = {
    "max_epochs": 3,
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


def recipe(model: dict[str, Any] | None = None, callbacks: list[str] | None = None, **data: Any) -> dict[str, Any]:
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}}
    init = {"student": NET, "knowledge": {"soft": SOFT}, "optimizer": adam}
    return {
        "seed_everything": 5,
        "trainer": {**TRAINER, **({"callbacks": callbacks} if callbacks else {})},
        "model": {"class_path": "kdlab.Distiller", "init_args": {**init, **(model or {})}},
        "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 32, "train_size": 320, **data}},
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    path = folder / "ban.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


class Watch(pl.Callback):
    """Keeps every module that begins a training, with its first weights."""

    seen: list[tuple[Distiller, dict[str, Tensor]]] = []  # noqa: RUF012

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.logger:  # the rehearsal
            return
        assert isinstance(pl_module, Distiller)
        first = {name: value.clone() for name, value in pl_module.student.state_dict().items()}
        self.seen.append((pl_module, first))


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[Distiller, dict[str, Tensor]]]]:
    """Three generations of one batch an epoch, and what was trained."""
    folder = tmp_path_factory.mktemp("three")
    config = write(folder, recipe(callbacks=["tests.cli.test_generations.Watch"], batch_size=320))
    Watch.seen.clear()
    main(["generations", "-c", config, "--count", "3", "--out", str(folder / "out")])
    return folder, list(Watch.seen)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(folder: Path, number: int) -> dict[str, Tensor]:
    return dict(load_file(folder / f"generation_{number}/student.safetensors"))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def images(train: bool) -> tuple[Tensor, Tensor]:
    raw, labels = Digits().read(train)
    return (raw.double() / 255 - 0.3050) / 0.3756, labels


def probabilities(state: dict[str, Tensor], inputs: Tensor) -> list[list[float]]:
    network = mlp(64, [16], 10).double()
    network.load_state_dict(state)
    with torch.no_grad():
        return [slow.softmax(row) for row in network(inputs).tolist()]


Three = tuple[Path, list[tuple[Distiller, dict[str, Tensor]]]]


def test_every_generation_is_taught_by_the_one_before(three: Three) -> None:
    folder, seen = three
    assert len(seen) == 3
    for number, (module, _) in enumerate(seen):
        assert same(dict(module.student.state_dict()), weights(folder / "out", number))
        checkpoint = torch.load(folder / f"out/generation_{number}/checkpoints/last.ckpt", weights_only=True)
        trained = {name.removeprefix("student."): value for name, value in checkpoint["state_dict"].items()}
        assert same(trained, weights(folder / "out", number))
        assert checkpoint["global_step"] == 3
        assert checkpoint["kdlab_seed"] == 5 + number
        if number == 0:
            assert module.teacher is None
            assert not module.knowledge
        else:
            assert module.teacher is not None
            (teacher,) = module.teacher.networks
            assert same(dict(teacher.state_dict()), weights(folder / "out", number - 1))
    starts = [first["fc.weight"] for _, first in seen]
    assert not any(torch.equal(starts[a], starts[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    own = yaml.safe_load((folder / "out/generation_2/config.yaml").read_text())
    assert own["model"]["init_args"]["teacher"]["init_args"]["weights"].endswith("generation_1/student.safetensors")


def test_the_first_loss_reads_the_generation_before(three: Three) -> None:
    folder, seen = three
    data = Digits(batch_size=320, train_size=320)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))  # one batch is the whole training set, in whatever order
    inputs, labels = (batch.inputs.double() / 255 - 0.3050) / 0.3756, batch.target.tolist()
    for number in (1, 2):
        ours = probabilities(seen[number][1], inputs)
        theirs = probabilities(weights(folder / "out", number - 1), inputs)
        soft = [-slow.dot(p, [torch.tensor(x).log().item() for x in q]) for p, q in zip(theirs, ours, strict=True)]
        hard = [-torch.tensor(q[y]).log().item() for q, y in zip(ours, labels, strict=True)]
        with (folder / f"out/generation_{number}/metrics.csv").open() as file:
            first = next(csv.DictReader(file))
        assert float(first["loss/soft"]) == pytest.approx(sum(soft) / len(soft), rel=1e-5)
        assert float(first["loss/task"]) == pytest.approx(sum(hard) / len(hard), rel=1e-5)
        assert float(first["loss/total"]) == pytest.approx(sum(soft + hard) / len(soft), rel=1e-5)
    with (folder / "out/generation_0/metrics.csv").open() as file:
        assert "loss/soft" not in next(csv.DictReader(file))


def calibration_error(shares: list[list[float]], labels: list[int]) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(shares, labels, strict=True):
        top = max(row)
        bins.setdefault(min(int(top * 15), 14), []).append((top, row.index(top) == label))
    return sum(abs(sum(c for c, _ in each) - sum(hit for _, hit in each)) for each in bins.values()) / len(labels)


def test_the_table_is_of_the_test_set(three: Three) -> None:
    folder, _ = three
    inputs, found = images(train=False)
    labels = found.tolist()
    each = [probabilities(weights(folder / "out", number), inputs) for number in range(3)]
    answers = [[row.index(max(row)) for row in shares] for shares in each]
    means = [
        [[sum(column) / members for column in zip(*rows, strict=True)] for rows in zip(*each[:members], strict=True)]
        for members in (2, 3)
    ]
    with (folder / "out/generations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows[:3]] == ["generation 0", "generation 1", "generation 2"]
    assert [row["members"] for row in rows] == ["1", "1", "1", "2", "3"]
    for row, shares in zip(rows, [*each, *means], strict=True):
        right = sum(each.index(max(each)) == label for each, label in zip(shares, labels, strict=True)) / 500
        assert float(row["test_accuracy"]) == pytest.approx(right, abs=1e-6)
        assert float(row["ece"]) == pytest.approx(calibration_error(shares, labels), abs=1e-5)
    for number in (1, 2):
        agreed = sum(a == b for a, b in zip(answers[number], answers[number - 1], strict=True)) / 500
        assert float(rows[number]["agreement_with_previous"]) == pytest.approx(agreed, abs=1e-6)
    assert {rows[place]["agreement_with_previous"] for place in (0, 3, 4)} == {""}
    assert len({row["test_accuracy"] for row in rows}) > 2  # else nothing would be compared


def test_what_is_done_is_left_alone_and_more_can_follow(three: Three, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = three
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").rglob("generation_*/**/*")}
    Watch.seen.clear()
    options = ["-c", str(folder / "ban.yaml"), "--out", str(folder / "out"), "--trainer.enable_model_summary=true"]
    main(["generations", *options, "--count=3"])
    assert not Watch.seen
    assert capsys.readouterr().out.count("done before") == 3
    main(["generations", *options, "--count=4"])
    ((module, _),) = Watch.seen
    assert module.teacher is not None
    assert same(dict(module.teacher.networks[0].state_dict()), weights(folder / "out", 2))
    shown = capsys.readouterr().out
    assert "generation 3 is deployed" in shown
    assert shown.strip().endswith("generation_3/student.safetensors")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_of_another_config_is_left_alone(three: Three, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = three
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    other = ["--out", str(folder / "out"), "--model.knowledge.soft.weight=0.5", "--trainer.max_epochs=4"]
    with pytest.raises(SystemExit):
        main(["generations", "-c", str(folder / "ban.yaml"), *other])
    assert "differs in model.init_args.knowledge.soft.weight, trainer.max_epochs:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["generations", "-c", str(folder / "ban.yaml"), "--out", str(folder)])
    assert "holds something else already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_generation_0_has_labels_alone_and_no_loss_parts(here: Path) -> None:
    hint = {"loss": {"class_path": "kdlab.losses.Hint"}, "student_layers": ["hidden.0"]}
    groups = {"losses.hint": {"lr": 0.001}, "student.fc": {"lr": 0.02}}
    schedule = {"class_path": "kdlab.schedules.Constant", "init_args": {"until": 1}}
    model = {"knowledge": {"hint": hint}, "parameter_groups": groups, "task_weight": 0.0, "task_schedule": schedule}
    main(["generations", "-c", write(here, recipe(model)), "--count=2"])
    own = [
        yaml.safe_load((here / f"runs/generations_0/generation_{number}/config.yaml").read_text())["model"]["init_args"]
        for number in (0, 1)
    ]
    assert [each["task_weight"] for each in own] == [1.0, 0.0]
    assert [each["task_schedule"] is None for each in own] == [True, False]
    assert own[0]["knowledge"] in (None, {})
    assert own[0]["parameter_groups"] == {"student.fc": {"lr": 0.02}}
    assert own[1]["parameter_groups"] == groups
    assert own[0]["optimizer"] == own[1]["optimizer"]


def test_one_generation_is_plain_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["generations", "-c", write(here, recipe({"knowledge": None})), "--count=1"])
    main(["fit", "-c", "ban.yaml"])
    plain = torch.load(here / "runs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert same({k.removeprefix("student."): v for k, v in plain.items()}, weights(here / "runs/generations_0", 0))
    assert "together" not in [line.split(" ")[2:3] for line in capsys.readouterr().out.splitlines()]


def test_loggers_know_the_generation(tmp_path: Path) -> None:
    wandb = {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"name": None, "project": "kdlab"}}
    rows = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": "runs", "version": None}}
    config = {**recipe(), "checkpoint": {"dirpath": None, "save_last": False, "save_top_k": 0}}
    config["trainer"] = {**TRAINER, "logger": [wandb, rows]}
    own = generations._recipe(config, 2, tmp_path / "ban/generation_2", tmp_path / "before.safetensors")
    first, second = own["trainer"]["logger"]
    assert first["init_args"] == {"name": "ban-generation_2", "project": "kdlab"}
    assert second["init_args"] == {"save_dir": str(tmp_path / "ban"), "name": "", "version": "generation_2"}
    assert own["seed_everything"] == 7
    assert own["checkpoint"]["save_last"] is True
    assert own["checkpoint"]["dirpath"] == str(tmp_path / "ban/generation_2/checkpoints")
    assert config["trainer"]["logger"] == [wandb, rows]
    assert wandb["init_args"]["name"] is None  # type: ignore[index]
