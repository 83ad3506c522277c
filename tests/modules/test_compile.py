"""Compiled networks with taps train as eager ones, whoever compiled them and when."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.losses import Hint
from tests.modules.tiny import pairs, sgd, trainer, weights

BACKEND = "aot_eager"
WAYS = ["wrapper", "method", "part", "called", "option"]


class Net(nn.Module):
    """A BatchNorm that is overwritten in place, and one ReLU at two depths."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), self.relu, nn.Linear(8, 8))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.relu(self.body(x)))


def compiled(network: nn.Module, way: str) -> nn.Module:
    if way == "part":
        network.body = torch.compile(network.body, backend=BACKEND)  # type: ignore[arg-type,assignment]
    elif way == "method":
        network.compile(backend=BACKEND)
    elif way in ("wrapper", "called"):
        network = torch.compile(network, backend=BACKEND)  # type: ignore[assignment]
    if way == "called":  # with no hooks, in the shapes and modes that a fit uses
        before = {name: value.clone() for name, value in network.state_dict().items()}
        for mode in (True, False):
            with torch.set_grad_enabled(mode):
                network.train(mode)(torch.randn(8, 64))
        network.load_state_dict(before)
        network.train()
    return network


def fitted(kind: str, way: str) -> dict[str, Tensor]:
    torch._dynamo.reset()
    student, teacher = (compiled(Net(seed), way) for seed in (0, 1))
    knowledge = {
        name: Knowledge(Hint(None), student_layers=[layer])
        for name, layer in {"norm": "body.1", "early": "relu@0", "late": "relu@1"}.items()
    }
    options: dict[str, Any] = {"knowledge": knowledge, "optimizer": sgd, "compile": way == "option"}
    nets = {"a": student, "b": teacher}
    module = Distiller(student, teacher, **options) if kind == "offline" else CoTrainer(nets, **options)
    run = trainer(2, limit_val_batches=1.0)
    run.fit(module, pairs(), pairs())
    values = {name: value for name, value in run.callback_metrics.items() if name.startswith(("loss/", "val/"))}
    return {name.replace("_orig_mod.", ""): value for name, value in weights(module).items()} | values


@pytest.mark.full
@pytest.mark.parametrize("kind", ["offline", "online"])
@pytest.mark.parametrize("way", WAYS)
def test_compiled_equals_eager(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fitted(kind, "eager")
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_(self, backend=BACKEND))
    found = fitted(kind, way)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name].float(), value.float(), atol=1e-5), name
