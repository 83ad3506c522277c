"""Every precision of Lightning's, with tapped layers and adapters, offline and in co-training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, Knowledge
from kdlab.losses import Hint, SoftTargets
from tests.modules.tiny import pairs, same, sgd, trainer, weights

COMPUTED = {
    "64-true": (torch.float64, torch.float32),  # the weights, and the less precise of it and the reference
    "bf16-true": (torch.bfloat16, torch.bfloat16),
    "16-true": (torch.float16, torch.float16),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.bfloat16),  # on a CPU, Lightning warns and takes bfloat16
}


def network(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, 10))


def module(kind: str) -> Any:
    nets = {"a": network(8, 0), "b": network(12, 1)}
    knowledge = {
        "soft": Knowledge(SoftTargets(4.0)),
        "hint": Knowledge(Hint(), student_layers=["1"], teacher_layers=["1"]),
    }
    torch.manual_seed(0)
    if kind == "offline":
        return Distiller(nets["a"], nets["b"], knowledge, optimizer=sgd)
    return CoTrainer(nets, knowledge, optimizer=sgd)


def one_step(kind: str, precision: Any) -> tuple[dict[str, float], Tensor, set[torch.dtype]]:
    """The terms on a batch, the weights after a step, and their dtypes."""
    made, run = module(kind), trainer(max_steps=1, precision=precision)
    run.fit(made, pairs(batch_size=40))
    parameters = [*made.parameters(), *(made.teacher.networks[0].parameters() if kind == "offline" else ())]
    values = {name: float(run.callback_metrics[f"loss/{name}"]) for name in ("total", "task", "soft", "hint")}
    moved = torch.cat([parameter.detach().double().flatten() for parameter in made.parameters()])
    return values, moved, {parameter.dtype for parameter in parameters}


CASES = [
    pytest.param(kind, precision, marks=() if (kind, precision) in quick else pytest.mark.full)
    for quick in [[("offline", "bf16-mixed"), ("online", "bf16-true")]]
    for kind in ("offline", "online")
    for precision in COMPUTED
]


@pytest.mark.filterwarnings("ignore:You passed .*16-mixed")
@pytest.mark.parametrize(("kind", "precision"), CASES)
def test_close_to_float32_and_resumes(kind: str, precision: Any, tmp_path: Path) -> None:
    (expected, weights_32, _), (values, moved, dtypes) = one_step(kind, "32-true"), one_step(kind, precision)
    stored, computed = COMPUTED[precision]
    # Four layers round by eps / 2 each; the terms are means of at least 320 such values.
    allowed = 2 * torch.finfo(computed).eps
    for name, value in values.items():
        assert value == pytest.approx(expected[name], rel=0, abs=allowed * expected["total"])
    assert float((moved - weights_32).norm() / weights_32.norm()) < allowed
    assert dtypes == {stored}

    whole = module(kind)  # the adapters' first weights are drawn at the start of a fit
    trainer(2, precision=precision).fit(whole, pairs())
    first, run = module(kind), trainer(1, precision=precision)
    run.fit(first, pairs())
    run.save_checkpoint(tmp_path / "last.ckpt")
    second = module(kind)
    trainer(2, precision=precision).fit(second, pairs(), ckpt_path=tmp_path / "last.ckpt")
    assert same(weights(second), weights(whole))
    assert not same(weights(first), weights(whole))
