"""Every config in ``configs/knowledge`` trains resnet8x4 from resnet32x4 on real images, and resumes exactly."""

from __future__ import annotations

import csv
import math
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from kdlab.cli import main
from kdlab.data import ImageFolder
from kdlab.models import resnet32x4, save_weights
from tests.config_files import CONFIGS, KNOWLEDGE
from tests.data.real import DATA, needs_data
from tests.tiers import tiered

STEPS = 4
STAGE = 2  # what lasts epochs in the paper lasts these steps here, and an epoch is one step


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training images of each of the first three classes of CIFAR-100."""
    folder = tmp_path_factory.mktemp("few")
    with zipfile.ZipFile(DATA / "cifar100/train.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        for kind in sorted({name.rsplit("/", 1)[0] for name in names})[:3]:
            for name in [name for name in names if name.startswith(f"{kind}/")][:2]:
                archive.extract(name, folder)
    (folder / "val").symlink_to(folder / "train")
    return folder


@pytest.fixture(scope="session")
def teacher(images: Path) -> Path:
    """A resnet32x4 with the BatchNorm statistics of these images: without any, its layers give numbers in millions."""
    torch.manual_seed(1)
    network = resnet32x4(100)
    data = ImageFolder(root=str(images), batch_size=6)
    data.setup("fit")
    batch = data.prepare(next(iter(data.train_dataloader())))
    with torch.no_grad():
        for _ in range(20):
            network(batch.inputs)
    save_weights(network, images / "teacher.safetensors")
    return images / "teacher.safetensors"


def shortened(value: Any) -> Any:
    """The config with every stage and ramp cut from epochs to a few steps."""
    if isinstance(value, dict):
        cut = {"begin", "until", "length", "epochs"}
        return {k: min(v, STAGE) if k in cut and isinstance(v, int) else shortened(v) for k, v in value.items()}
    return [shortened(each) for each in value] if isinstance(value, list) else value


def fit(folder: Path, name: str, images: Path, teacher: Path, epochs: int, *options: str) -> None:
    """A real ``kdlab fit`` of the config; one batch an epoch, always of the same images."""
    given = shortened(yaml.safe_load((CONFIGS / f"knowledge/{name}.yaml").read_text()))
    path = folder / "knowledge.yaml"
    path.write_text(yaml.safe_dump(given))
    student = "{class_path: kdlab.models.resnet8x4, init_args: {num_classes: 100}}"
    own = f"{{class_path: kdlab.models.resnet32x4, init_args: {{num_classes: 100, weights: {teacher}}}}}"
    named = given["model"]["init_args"].get("teacher")
    ensemble = f"[{', '.join([own] * len(named))}]" if isinstance(named, list) else own
    swapped = [f"--model.teacher={ensemble}"]
    swapped += [f"--model.student={student}"] if "student" not in given["model"]["init_args"] else []
    main(
        [
            *("fit", "-c", str(CONFIGS / "cifar100/distil.yaml"), "-c", str(path), *swapped),
            *("--data=kdlab.data.ImageFolder", f"--data.root={images}", "--data.batch_size=6"),
            *("--model.optimizer.init_args.lr=0.001", "--trainer.accelerator=cpu", f"--trainer.max_epochs={epochs}"),
            *("--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
            *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", *options),
        ]
    )


def terms(run: Path) -> dict[str, list[float]]:
    """Every term of the loss, raw, step by step."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.startswith("loss/") and not name.endswith("_weighted")]
    return {name: [float(row[name]) for row in rows if row[name]] for name in names}


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@needs_data
@pytest.mark.parametrize("name", tiered(KNOWLEDGE, []))
def test_it_learns_and_resumes_bit_for_bit(
    name: str, images: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, name, images, teacher, STEPS)
    for term, values in terms(tmp_path / "runs/version_0").items():
        assert all(map(math.isfinite, values)), (term, values)
        if term not in ("loss/total", "loss/task"):
            assert min(values[1:]) <= values[0] + 0.02 * abs(values[0]), (term, values)
    fit(tmp_path, name, images, teacher, 1)
    fit(tmp_path, name, images, teacher, STEPS, "--ckpt_path=runs/version_1/checkpoints/last.ckpt")
    whole, resumed = (
        torch.load(tmp_path / f"runs/version_{number}/checkpoints/last.ckpt", weights_only=True) for number in (0, 1)
    )
    assert whole["global_step"] == resumed["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(whole[part], resumed[part]), part
