"""Every shipped config builds and survives a dry batch."""

from __future__ import annotations

import gc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kdlab.cli import main
from tests.config_files import CONFIGS, IMAGENET, KNOWLEDGE, RECIPES, layers
from tests.data.real import DATA, needs_data
from tests.tiers import tiered
from tests.tiny_transformers import SENTENCES, TOKENS, lines, tiny, tokenizer_folder

TEXT = [name for name in RECIPES if layers(name)[0].parent == CONFIGS / "text"]
IMAGES = [name for name in RECIPES if name not in (*TEXT, "born_again")]  # kdlab generations trains that one
QUIET = ["accelerator=cpu", "logger=false", "enable_checkpointing=false", "enable_progress_bar=false"]
SHORT = ["max_steps=2", "limit_val_batches=0", "enable_model_summary=false", "log_every_n_steps=1"]
TWO_STEPS = [f"--trainer.{option}" for option in (*QUIET, *SHORT)]


def recipe(name: str) -> list[str]:
    """The options of the command in a recipe's comment."""
    return [word for path in layers(name) for word in ("-c", str(path))]


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two training images and one test image of every class of CIFAR-100, and the options that read them."""
    folder = tmp_path_factory.mktemp("cifar100")
    for split, count in (("train", 2), ("test", 1)):
        with zipfile.ZipFile(DATA / f"cifar100/{split}.zip") as archive:
            taken: dict[str, int] = {}
            for name in sorted(archive.namelist()):
                kind = name.rsplit("/", 1)[0]
                if name.endswith(".png") and taken.get(kind, 0) < count:
                    taken[kind] = taken.get(kind, 0) + 1
                    archive.extract(name, folder)
    return ["--data=kdlab.data.ImageFolder", f"--data.root={folder}"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield
    gc.collect()  # Trainer, module and CLI form a reference cycle


@needs_data
@pytest.mark.parametrize("name", tiered(KNOWLEDGE, ["kd"]))
def test_knowledge(name: str, cifar: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(CONFIGS / "cifar100/distil.yaml"), "-c", str(CONFIGS / f"knowledge/{name}.yaml"), *cifar])
    assert "Loss terms" in capsys.readouterr().out


@needs_data
@pytest.mark.parametrize("name", tiered(IMAGENET, []))
def test_imagenet(name: str, cifar: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in ("imagenet/distil.yaml", f"knowledge/imagenet/{name}.yaml"):
        text = (CONFIGS / path).read_text()
        (tmp_path / Path(path).name).write_text(text.replace("weights: IMAGENET1K_V1", "weights: null"))
    small = ["--data.size=128", "--data.in_memory=false", "--data.num_workers=0"]
    main(["check", "distil.yaml", "-c", f"{name}.yaml", *cifar, *small])
    assert "Loss terms" in capsys.readouterr().out


@pytest.mark.full
@needs_data
@pytest.mark.parametrize("part", ["trainer/gpu", "teacher/cache"])
def test_parts_that_make_it_faster(part: str, cifar: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ["check", str(CONFIGS / "cifar100/distil.yaml")]
    recipe += ["-c", str(CONFIGS / "knowledge/kd.yaml"), "-c", str(CONFIGS / f"{part}.yaml")]
    here = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.compile=false"]
    main([*recipe, *cifar, *here])
    assert "Loss terms" in capsys.readouterr().out


@pytest.mark.full
@needs_data
def test_a_trained_student_becomes_quantization_aware(cifar: list[str]) -> None:
    """Laid over a recipe, the config trains the student that ``kdlab export`` wrote on, with the recipe's teacher."""
    recipe = [word for name in ("cifar100/distil", "knowledge/kd") for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    options = [*cifar, "--data.batch_size=16", *TWO_STEPS]
    options = [option for option in options if "enable_checkpointing" not in option and "logger" not in option]
    main(["fit", *recipe, *options])
    main(["export", "runs/version_0"])
    aware = ["-c", str(CONFIGS / "student/quantization_aware.yaml")]
    main(["fit", *recipe, *aware, "--model.student.network=runs/version_0/student.yaml", *options])
    before, after = (
        torch.load(f"runs/version_{number}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for number in (0, 1)
    )
    ranges = {name for name in after if name.endswith(".input_range")}
    assert ranges == {name.replace(".weight", ".input_range") for name in before if before[name].ndim in (2, 4)}
    assert after.keys() - ranges == before.keys()
    counted = next(name for name in before if name.endswith("num_batches_tracked"))
    assert (before[counted], after[counted]) == (2, 4)  # it went on from the weights of the first run


@pytest.mark.full
@needs_data
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence(cifar: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    recipe = [str(CONFIGS / f"{name}.yaml") for name in ("cifar100/distil", "knowledge/kd", "trainer/gpu")]
    with pytest.raises(SystemExit):
        main(["fit", *(f"--config={path}" for path in recipe), *cifar])
    assert capsys.readouterr().err.strip().splitlines()[-1] == "kdlab fit: No supported gpu backend found!"


@needs_data
@pytest.mark.parametrize("name", tiered(IMAGES, ["one"]))
def test_recipes_take_two_steps(name: str, cifar: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    held_out = ["--data.validation=100"] if name == "kdcl_general" else []
    main(["fit", *recipe(name), *cifar, *held_out, "--data.batch_size=16", *TWO_STEPS])
    assert "error" not in capsys.readouterr().err.lower()


@pytest.mark.full
@pytest.mark.parametrize("name", TEXT)
def test_text_recipes_take_two_steps(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tokenizer_folder(tmp_path / "large")  # the configs call the networks large and small
    for size, depth in (("large", 3), ("small", 1)):
        tiny("GPT2", "ForCausalLM", vocab_size=TOKENS, n_layer=depth).save_pretrained(tmp_path / size)
    for split in ("train", "dev"):
        rows = [{"prompt": text, "completion": "is fine" if label else "is dull"} for text, label in SENTENCES]
        lines(tmp_path / f"{split}.jsonl", rows)
    options = [f"--data.root={tmp_path}", "--data.batch_size=4", "--model.teacher.max_new_tokens=4"]
    main(["fit", *recipe(name), f"--data.tokenizer={folder}", *options, *TWO_STEPS])
    assert "error" not in capsys.readouterr().err.lower()


@needs_data
def test_plain_training(cifar: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(CONFIGS / "cifar100/train.yaml"), "-c", str(CONFIGS / "logger/wandb.yaml"), *cifar])
    assert "Loss terms" in capsys.readouterr().out
