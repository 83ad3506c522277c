"""Losses that couple the samples of a batch: gathered from two processes (gloo) they are those of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdlab.knowledge import Knowledge
from kdlab.outputs import Batch, Mix, Outputs
from kdlab.outputs.containers import gathered
from kdlab.teaching.plan import Edge
from tests.losses.context import seed
from tests.losses.test_contract import CLASSES, everything, sides, sized

SAMPLES = 7
SPLIT = {0: slice(0, 4), 1: slice(4, 7)}  # ranks may have unequal parts
APART = {"CRD", "MGD", "MixSKD", "SemCKD"}  # they draw numbers for a batch, or read places in it


def part(value: Any, rows: slice) -> Any:
    """The rows of one process."""
    match value:
        case Tensor():
            views = len(value) // SAMPLES
            return value[rows.start * views : rows.stop * views]
        case Outputs():
            fields = [field.name for field in dataclasses.fields(value)]
            return dataclasses.replace(value, **{name: part(getattr(value, name), rows) for name in fields})
        case Mapping():
            return {name: part(each, rows) for name, each in value.items()}
        case tuple():
            return tuple(part(each, rows) for each in value)
    return value


def leaves(outputs: Outputs) -> Outputs:
    return outputs.map(lambda x: x.detach().clone().requires_grad_())


def whole(kind: type[nn.Module]) -> tuple[Outputs, Outputs, Tensor]:
    student, teacher, target = sides(kind, SAMPLES)
    return leaves(student), leaves(teacher), target


COUPLED = [kind for kind in CLASSES if getattr(kind, "couples_samples", False)]


def value_of(kind: type[nn.Module], rows: slice, gather: bool) -> tuple[float, list[Tensor], list[Tensor]]:
    """Value and gradients (student, parameters) of the rows of a process through a Knowledge."""
    student, teacher, target = whole(kind)
    student, teacher, target = leaves(part(student, rows)), leaves(part(teacher, rows)), part(target, rows)
    knowledge, loss = Knowledge(kind(), gather=gather), sized(kind)
    knowledge.student_layers, knowledge.teacher_layers = student.names, teacher.names
    seed(0)
    value = knowledge.compare(Edge("s", "t"), loss, {"s": student, "t": teacher}, Batch(None, target))
    assert value is not None
    value.backward()
    inputs = [torch.zeros_like(x) if x.grad is None else x.grad for x in everything(student)]
    return value.item(), inputs, [p.grad if p.grad is not None else torch.zeros_like(p) for p in loss.parameters()]


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    rows = SPLIT[rank]
    result: dict[str, Any] = {kind.__name__: value_of(kind, rows, gather=True) for kind in COUPLED}
    partner = torch.tensor([[1, 2, 3, 0], [2, 0, 1]][rank])
    outputs = Outputs(torch.arange(rows.start, rows.stop).float()[:, None], mask=torch.ones(len(partner), 2).bool())
    view = dataclasses.replace(outputs, mix=Mix(partner, torch.full((len(partner),), 0.5)), target=partner)
    result["mix"] = gathered(dataclasses.replace(outputs, views={"mixed": view}, names=("a",)))
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_couples_samples_is_declared_where_it_holds() -> None:
    for kind in CLASSES:
        if kind.__name__ in APART:
            continue
        student, teacher, target = sides(kind, SAMPLES)
        values = []
        for rows in (slice(0, SAMPLES), *SPLIT.values()):
            seed(0)
            values.append(sized(kind).eval()(part(student, rows), part(teacher, rows), target[rows]).item())
        mean = (4 * values[1] + 3 * values[2]) / SAMPLES
        assert math.isclose(values[0], mean, rel_tol=1e-9) != getattr(kind, "couples_samples", False), kind


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_gathered_losses_equal_one_process(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(process, (tmp_path,), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for kind in COUPLED:
        value, inputs, parameters = value_of(kind, slice(0, SAMPLES), gather=False)
        for rank, (own, own_inputs, own_parameters) in enumerate(each[kind.__name__] for each in ranks):
            assert own == pytest.approx(value, rel=1e-9), kind
            for expected, gradient in zip(inputs, own_inputs, strict=True):  # DDP divides by the processes
                torch.testing.assert_close(gradient / 2, part(expected, SPLIT[rank]), rtol=1e-7, atol=1e-12)
            for expected, gradient in zip(parameters, own_parameters, strict=True):
                torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-12)
    for each in ranks:
        mixed = each["mix"].views["mixed"]
        assert each["mix"].logits[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert mixed.mix.partner.tolist() == [1, 2, 3, 0, 6, 4, 5]
        assert mixed.target.tolist() == [1, 2, 3, 0, 2, 0, 1]
        assert each["mix"].mask.shape == (7, 2)
