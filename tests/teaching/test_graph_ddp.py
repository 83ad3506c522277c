"""A written graph in two processes (gloo, CPU) equals one process on the same global batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from kdlab import CoTrainer, Knowledge
from kdlab.losses import Hint, SoftTargets
from kdlab.teaching import Stale, Teaching
from tests.modules.test_ddp import Told, train
from tests.modules.tiny import digits, network, same, sgd, weights
from tests.teaching.graphs import graph_module, parsed
from tests.tiers import tiered

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def knowledge() -> dict[str, Knowledge]:
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"], teachers=["a"])
    return {"soft": Knowledge(SoftTargets(2.0), 0.7), "hint": hint}


@pytest.mark.parametrize("update", tiered(["simultaneous", "sequential"], ["sequential"]))
def test_two_processes_equal_one(update: str, tmp_path: Path) -> None:
    ends, metrics = [], []
    for devices in (1, 2):
        graph = parsed(update=update)
        before = weights(graph.teachers["big"].network)
        checkpoint = ModelCheckpoint(tmp_path / str(devices), save_last=True, save_top_k=0, every_n_epochs=1)
        run = train(
            graph_module(graph, knowledge()),
            digits(train_size=150),  # the last batch is smaller
            devices,
            callbacks=[checkpoint],
            enable_checkpointing=True,
        )
        assert same(weights(graph.teachers["big"].network), before)
        ends.append(torch.load(tmp_path / str(devices) / "last.ckpt", weights_only=True)["state_dict"])
        metrics.append({key: float(value) for key, value in run.callback_metrics.items()})
    assert {key.split(".")[0] for key in ends[0]} == {"networks", "losses", "deployed"}
    assert ends[0].keys() == ends[1].keys()
    for key, value in ends[0].items():
        assert float((value.double() - ends[1][key].double()).abs().max()) < 1e-6, key
    assert metrics[0] == pytest.approx(metrics[1], abs=2e-6)


@pytest.mark.full
@pytest.mark.parametrize("make", [parsed, lambda: Stale(2)])
def test_trained_losses_of_edges_that_count_later(make: Callable[[], Teaching]) -> None:
    """In a first step that has no gradient for the loss: the linear gate is 0, or no snapshot is there yet."""
    hint = Knowledge(Hint("1x1"), 0.5, student_layers=["hidden.0"], teachers=["b"] if make is parsed else [])
    nets = {"a": network(0), "b": network(1)}
    module = CoTrainer(nets, {"hint": hint}, make(), optimizer=sgd)
    train(module, digits(), devices=2, callbacks=[Told()])
