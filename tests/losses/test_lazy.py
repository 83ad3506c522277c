"""Parts that get their sizes from the first batch or from a checkpoint."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class Projected(Lazy):
    """Its parts: one that is drawn, one with buffers, and one that stays as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def build(self, student: int, teacher: int) -> None:
        self.projector = nn.Sequential(nn.Linear(student, teacher), nn.BatchNorm1d(teacher))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.materialize(student.logits, student.logits.shape[1], teacher.logits.shape[1])
        value: Tensor = self.scale * (self.projector(student.logits) - teacher.logits).square().mean()
        return value.squeeze()


def call(loss: Projected, student: int = 4, teacher: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(5, width, generator=generator).to(dtype) for width in (student, teacher)]
    value: Tensor = loss(Outputs(sides[0]), Outputs(sides[1]), torch.zeros(5))
    return value


def test_materialize_once_in_dtype_and_mode_of_the_call() -> None:
    loss = Projected().eval()
    assert len(list(loss.parameters())) == 1
    call(loss, dtype=torch.float64)
    first = loss.projector[0].weight
    assert first.dtype == torch.float64
    assert not loss.projector.training
    call(loss, dtype=torch.float64)
    assert loss.projector[0].weight is first


@pytest.mark.parametrize("way", ["copy", "pickle"])
def test_it_is_copied_before_and_after(way: str) -> None:
    for grown in (False, True):
        loss = Projected()
        if grown:
            call(loss)
        other = copy.deepcopy(loss) if way == "copy" else pickle.loads(pickle.dumps(loss))
        torch.manual_seed(1)
        ours = call(loss)
        torch.manual_seed(1)
        assert torch.equal(call(other), ours)


def test_a_state_dict_brings_the_sizes(tmp_path) -> None:
    loss = Projected()
    call(loss)
    torch.save(loss.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for other in (Projected(), copy.deepcopy(loss)):
        assert not any(other.load_state_dict(state, strict=True))
        assert torch.equal(call(other.eval()), call(loss.eval()))
    parent = nn.ModuleDict({"a": Projected()})
    parent.load_state_dict({f"a.{key}": value for key, value in state.items()}, strict=True)
    assert parent["a"].sizes == (4, 6)
    empty = Projected()
    empty.load_state_dict(Projected().state_dict())
    assert empty.sizes is None


def test_loaded_modules_have_the_mode_of_the_loss() -> None:
    loss = Projected()
    call(loss)
    for mode in (True, False):
        other = Projected().train(mode)
        other.load_state_dict(loss.state_dict())
        assert [each.training for each in other.modules()] == [mode] * 4


def test_parts_that_are_there_are_filled_and_not_made_anew() -> None:
    first, second = Projected(), Projected()
    call(first)
    call(second)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1)
    second.load_state_dict(first.state_dict())
    held = optimizer.param_groups[0]["params"]
    assert len(held) == 5
    assert all(ours is theirs for ours, theirs in zip(held, second.parameters(), strict=True))
    assert torch.equal(second.projector[0].weight, first.projector[0].weight)


def test_a_first_call_in_inference_mode_can_be_trained_later() -> None:
    loss = Projected()
    with torch.inference_mode():
        call(loss)
    call(loss).backward()
    assert loss.projector[0].weight.grad is not None


def test_other_sizes_raise_input_error() -> None:
    loss = Projected()
    call(loss)
    with pytest.raises(InputError, match=r"Projected was set up for sizes \(4, 6\), but now meets \(5, 6\)"):
        call(loss, student=5)
