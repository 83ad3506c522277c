"""Precision of losses, and the mathematics they share."""

import math

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision, kl_divergence, pool_to_smaller
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)


class Probe(nn.Module):
    """Remembers the dtypes that its forward saw."""

    def __init__(self, lazy=False):
        super().__init__()
        self.head = nn.LazyLinear(2) if lazy else nn.Linear(3, 2)
        self.register_buffer("count", torch.zeros(()))
        self.calls = 0

    @full_precision
    def forward(self, student, teacher, target):
        self.calls += 1
        out = self.head(student.logits)
        self.seen = {t.dtype for t in (student.logits, *teacher.layers, teacher.embedding, out, out @ out.T)}
        self.count += 1
        return out.square().sum() + teacher.layers[0].sum()


def both(dtype, teacher=None):
    value = torch.ones(4, 3, dtype=dtype)
    return Outputs(value), Outputs(
        value.to(teacher or dtype), (value.to(teacher or dtype),), value.to(teacher or dtype)
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("ambient", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("inputs", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_everything_is_float32_unless_something_is_float64(lazy, ambient, weights, inputs):
    probe = Probe(lazy).to(weights)
    wanted = torch.float64 if torch.float64 in (weights, inputs) else torch.float32
    with torch.autocast("cpu", dtype=ambient or torch.bfloat16, enabled=ambient is not None):
        for _ in range(2):
            loss = probe(*both(inputs), NO_TARGET)
    assert (probe.seen, loss.dtype) == ({wanted}, wanted)
    loss.backward()
    assert all(p.grad.dtype is p.dtype and p.grad.any() for p in probe.parameters())
    assert (probe.count.item(), probe.calls) == (2, 2)


class Part(nn.Module):
    """Has one part alone, in bfloat16, and remembers the dtype in which it was used."""

    def __init__(self, part):
        super().__init__()
        if part == "module":
            self.part = nn.Linear(3, 2, bias=False)
        elif part == "parameter":
            self.weight = nn.Parameter(torch.ones(2, 3))
        else:
            self.register_buffer("weight", torch.ones(2, 3))
        self.bfloat16()

    @full_precision
    def forward(self, student, teacher, target):
        weight = self.part.weight if "part" in self._modules else self.weight
        self.seen = weight.dtype
        return (student.logits @ weight.T).sum()


@pytest.mark.parametrize("part", ["module", "parameter", "buffer"])
def test_any_kind_of_part_is_converted_for_float32_inputs(part):
    loss = Part(part)
    assert loss(*both(torch.float32), NO_TARGET).dtype is torch.float32
    assert loss.seen is torch.float32


def test_sides_of_different_dtypes_meet():
    probe = Probe()
    probe(*both(torch.float32, teacher=torch.float16), NO_TARGET)
    assert probe.seen == {torch.float32}


def test_inputs_in_the_right_dtype_are_not_copied():
    class Identity(nn.Module):
        @full_precision
        def forward(self, student, teacher, target):
            self.seen = student
            return student.logits.sum()

    loss, outputs = Identity(), Outputs(torch.ones(2, 3))
    loss(outputs, outputs, NO_TARGET)
    assert loss.seen is outputs


def test_subclass_forward_runs_once_in_any_precision():
    class Twice(Probe):
        def forward(self, student, teacher, target):
            return 2 * super().forward(student, teacher, target)

    torch.manual_seed(0)
    probe = Twice().to(torch.bfloat16)
    runs = []
    probe.register_forward_hook(lambda *_: runs.append(1))
    got = probe(*both(torch.float32), NO_TARGET)
    once = probe.float()
    expected = 2 * Probe.forward(once, *both(torch.float32), NO_TARGET)
    assert torch.allclose(got, expected)
    assert len(runs) == 1


def test_devices_without_autocast():
    outputs = [side.map(lambda t: t.to("meta")) for side in both(torch.float16)]
    assert Probe().to("meta")(*outputs, NO_TARGET).dtype is torch.float32


def test_divergence():
    student, teacher = draw(2, 3, 4, seed=1), draw(2, 3, 4, seed=2)
    rows = list(zip(student.flatten(0, 1).tolist(), teacher.flatten(0, 1).tolist(), strict=True))
    terms = [9 * kl(softmax(t, 3), softmax(s, 3)) for s, t in rows]
    assert kl_divergence(student, teacher, 3.0).item() == pytest.approx(sum(terms) / 6, rel=1e-12)
    with pytest.raises(InputError, match="no position"):
        kl_divergence(student[:0], teacher[:0], 3.0)


def test_floor_is_added_to_the_teachers_probabilities():
    (q,), (p,) = draw(1, 4, seed=1).tolist(), draw(1, 4, seed=2).tolist()
    pairs = zip(softmax(p, 3), softmax(q, 3), strict=True)
    expected = 9 * sum((a + 0.1) * math.log((a + 0.1) / b) for a, b in pairs)
    value = kl_divergence(torch.tensor([q]).double(), torch.tensor([p]).double(), 3.0, floor=0.1)
    assert value.item() == pytest.approx(expected, rel=1e-6)


def test_pooling_takes_the_smaller_of_each_side():
    first, second = draw(2, 3, 4, 2, seed=1), draw(2, 5, 2, 6, seed=2)
    one, other = pool_to_smaller(first, second)
    assert (one.shape, other.shape) == ((2, 3, 2, 2), (2, 5, 2, 2))
    assert torch.allclose(one[:, :, 0], first[:, :, :2].mean(2))
    assert torch.allclose(other[..., 0], second[..., :3].mean(3))
    assert all(a is b for a, b in zip(pool_to_smaller(first, first), (first, first), strict=True))
