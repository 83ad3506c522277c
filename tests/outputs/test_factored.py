"""Factored logits behave as the logits that they stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdlab.outputs import Observer
from kdlab.outputs.factored import FactoredLogits, factored


@pytest.fixture
def logits():
    """Whole numbers, whose products are exact however a library orders the sums."""
    hidden, weight, bias = (torch.randint(-3, 4, shape).float() for shape in [(2, 5, 4), (7, 4), (7,)])
    return FactoredLogits(hidden.requires_grad_(), weight.requires_grad_(), bias)


KEPT = {
    "detach": lambda z: z.detach(),
    "rows": lambda z: z.flatten(0, 1),
    "class axis last": lambda z: z.movedim(-1, -1),
    "chosen rows": lambda z: z.flatten(0, -2)[torch.arange(10) % 3 == 0],
    "a slice": lambda z: z[1:],
    "a part of the vocabulary": lambda z: z[..., :5],
    "a cast": lambda z: z.to(torch.float64),
    "float": lambda z: z.float(),
    "scale": lambda z: 0.5 * z,
    "soft cap": lambda z: torch.tanh(z / 3.0) * 3.0,
}
COMPUTED = {
    "softmax": lambda z: z.softmax(-1),
    "a sum": lambda z: z + 1,
    "cross-entropy": lambda z: F.cross_entropy(z.transpose(1, 2), torch.zeros(2, 5, dtype=torch.int64)),
    "another axis": lambda z: z.transpose(1, 2),
    "one position": lambda z: z[:, -1],
    "stack": lambda z: torch.stack([z, z]),
    "all flat": lambda z: z.flatten(),
    "largest": lambda z: z.max(-1).values,
}


@pytest.mark.parametrize("name", [*KEPT, *COMPUTED])
def test_every_operation_has_the_value_of_the_logits(logits, name):
    operation = {**KEPT, **COMPUTED}[name]
    expected = operation(F.linear(logits.hidden, logits.weight, logits.bias))
    got = operation(logits)
    assert isinstance(got, FactoredLogits) == (name in KEPT)
    assert (logits.computed is None) == (name in KEPT)
    assert (got.shape, got.dtype, got.requires_grad) == (expected.shape, expected.dtype, expected.requires_grad)
    got = got.dense() if isinstance(got, FactoredLogits) else got
    assert torch.equal(got, expected)
    if expected.requires_grad:
        leaves = [logits.hidden, logits.weight]
        gradients = [torch.autograd.grad(x.sum(), leaves) for x in (got, expected)]
        assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_argmax_needs_no_logits(logits):
    expected = F.linear(logits.hidden, logits.weight, logits.bias).argmax(-1)
    assert torch.equal(logits.argmax(-1), expected)
    assert torch.equal(logits.flatten(0, 1).argmax(1), expected.flatten())
    assert logits.computed is None


def test_a_change_in_place_is_seen_by_all_readers(logits):
    logits[..., 6] = -1e4
    assert (logits.detach()[..., 6] == -1e4).all()
    assert (logits.flatten(0, 1)[:, 6] == -1e4).all()


def test_an_observer_gives_factors_only_where_asked():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 7))
    observer = Observer(net)
    plain = observer(torch.ones(2, 4)).logits
    observer.factors = True
    seen = observer(torch.ones(2, 4))
    assert isinstance(seen.logits, FactoredLogits)
    assert torch.equal(seen.embedding, seen.logits.hidden)
    assert torch.equal(seen.logits.dense(), plain)
    assert type(net(torch.ones(2, 4))) is torch.Tensor


def test_a_head_that_is_no_plain_linear_layer_is_left_alone():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    head = Scaled(4, 7)
    with factored(head):
        assert type(head(torch.ones(2, 4))) is torch.Tensor
