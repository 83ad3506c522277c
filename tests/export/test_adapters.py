"""Low-rank adapters are merged into the weights of the student that is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kdlab.cli import main
from kdlab.config.class_paths import instantiate
from kdlab.data import Digits
from kdlab.errors import InputError
from kdlab.export.student import export
from kdlab.outputs import observe
from tests.config.test_lightning_cli import MLP, work  # noqa: F401
from tests.tiny_transformers import texts, tiny, tokenizer_folder

pytest.importorskip("peft")


def run_with(network: dict[str, Any], folder: Path) -> Any:
    """A run's folder with the checkpoint of a student whose adapters and classifier were trained; the student."""
    torch.manual_seed(1)
    student = instantiate(network).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    folder.mkdir()
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    config = {"model": {"class_path": "kdlab.Distiller", "init_args": {"student": network}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return student


def adapted(kind: str, folder: Path) -> dict[str, Any]:
    tiny(kind).save_pretrained(folder)
    tokenizer_folder(folder)
    inner = {"class_path": "kdlab.models.hugging_face", "init_args": {"path": str(folder), "num_labels": 2}}
    inner["init_args"] |= {"pretrained": True, "weights": None}  # type: ignore[operator]
    targets = ["c_attn", "c_proj"] if kind == "GPT2" else ["query", "value"]
    return {"class_path": "kdlab.models.lora", "init_args": {"network": inner, "rank": 2, "targets": targets}}


@pytest.mark.parametrize("kind", ["Bert", "GPT2"])
def test_exported_student_is_merged_and_gives_the_same(kind: str, tmp_path: Path) -> None:
    network = adapted(kind, tmp_path / "encoder")
    student = run_with(network, tmp_path / "run")
    before = observe(student, texts()).logits
    _, path = export(tmp_path / "run", build=instantiate)
    assert path is not None
    config = yaml.safe_load(path.read_text())
    assert config["class_path"] == "kdlab.models.hugging_face"
    assert config["init_args"]["pretrained"] is False
    shipped = instantiate(config).eval()
    assert set(load_file(tmp_path / "run/student.safetensors")) <= set(shipped.state_dict())
    assert not any("lora" in name for name in shipped.state_dict())
    torch.testing.assert_close(observe(shipped, texts()).logits, before, rtol=1e-5, atol=1e-5)
    assert (observe(tiny(kind), texts()).logits - before).abs().max() > 0.01, "the adapters do something"


def test_adapters_inside_of_another_network_are_merged(tmp_path: Path) -> None:
    inner = adapted("Bert", tmp_path / "encoder")
    network = {"class_path": "tests.export.test_adapters.Scaled", "init_args": {"network": inner}}
    student = run_with(network, tmp_path / "run")
    before = observe(student, texts()).logits
    _, path = export(tmp_path / "run", build=instantiate)
    assert path is not None
    shipped = instantiate(yaml.safe_load(path.read_text())).eval()
    torch.testing.assert_close(observe(shipped, texts()).logits, before, rtol=1e-5, atol=1e-5)


class Scaled(torch.nn.Module):
    """A network of a user, around another one."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(input_ids=input_ids, attention_mask=attention_mask).logits
        return 2 * logits


def test_adapters_are_not_left_out_without_a_builder(tmp_path: Path) -> None:
    run_with(adapted("Bert", tmp_path / "encoder"), tmp_path / "run")
    with pytest.raises(InputError, match="low-rank adapters"):
        export(tmp_path / "run")
    assert not list((tmp_path / "run").glob("student.*"))


@pytest.mark.full
def test_every_way_of_kdlab_export_merges_the_adapters(work: Path) -> None:  # noqa: F811
    """Weights, program and hub folder of a run that trained adapters."""
    network = {"class_path": "kdlab.models.lora", "init_args": {"network": MLP, "targets": ["linear"]}}
    network["init_args"]["trained"] = ["fc"]  # type: ignore[index]
    Path("lora.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"student": network}}}))
    main(["fit", "-c", "kd.yaml", "-c", "lora.yaml", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.5"])
    adapted = instantiate(network).eval()
    trained = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    adapted.load_state_dict({name.removeprefix("student."): value for name, value in trained.items()})
    data = Digits(batch_size=64)
    data.setup()
    images = data.prepare(next(iter(data.val_dataloader()))).inputs
    with torch.no_grad():
        expected = adapted(images)
        with adapted.disable_adapter():
            assert (adapted(images) - expected).abs().max() > 0.01, "the adapters do something"
    for options in ([], ["--format", "torch"], ["--push", "hub"]):
        main(["export", "runs/version_0", *options])
    shipped = instantiate(yaml.safe_load(Path("runs/version_0/student.yaml").read_text())).eval()
    program = torch.export.load("runs/version_0/student.pt2")
    pushed = instantiate(MLP).eval()
    pushed.load_state_dict(load_file("hub/model.safetensors"))
    with torch.no_grad():
        for exported in (shipped, program.module(), pushed):
            assert float((exported(images) - expected).abs().max()) < 1e-6
    names = [*load_file("runs/version_0/student.safetensors"), *program.state_dict, *load_file("hub/model.safetensors")]
    assert len(names) == 3 * 4  # weight and bias of two layers
    assert not any("lora" in name for name in names)
    assert json.loads(Path("hub/config.json").read_text())["class_path"] == "kdlab.models.mlp"
    assert "lora" not in Path("hub/README.md").read_text()
