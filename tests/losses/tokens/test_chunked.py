"""Chunked losses: the eager ones' value and gradient, without tokens x vocabulary."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdlab.losses import ForwardKL, GeneralizedJSD, ReverseKL, SequenceKD, SkewKL, TopK
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.losses.tokens.token_loss import own_copy
from kdlab.outputs import Outputs
from kdlab.outputs.factored import FactoredLogits, factored
from tests.losses.slow import draw

LOSSES = {
    "forward": lambda size: ForwardKL(2.0, chunk_size=size),
    "reverse": lambda size: ReverseKL(chunk_size=size),
    "skew": lambda size: SkewKL(chunk_size=size),
    "jsd": lambda size: GeneralizedJSD(0.3, chunk_size=size),
    "top-k": lambda size: TopK(4, chunk_size=size),
    "sequence": lambda size: SequenceKD(chunk_size=size),
}
LABELS = torch.randint(0, 23, (2, 7), generator=torch.Generator().manual_seed(0))
LABELS[0, :3] = -100
MASK = torch.ones(2, 7)
MASK[1, 5:] = 0


def networks(bias=True, dtype=torch.float64):
    heads = [nn.Linear(width, 23, bias=bias).to(dtype) for width in (8, 6)]
    for number, head in enumerate(heads):
        nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(number))
    return heads


def logits_of(heads, hidden, factors, cap=None):
    """The logits of student and teacher, factored or not."""
    logits = []
    for head, states in zip(heads, hidden, strict=True):
        if factors:
            with factored(head):
                z = head(states)
        else:
            z = head(states)
        logits.append(z if cap is None else torch.tanh(z / cap) * cap)
    return logits


def step(loss, heads, factors, cap=None, scale=1.0):
    hidden = draw(2, 7, 8, seed=3).requires_grad_(), draw(2, 7, 6, seed=4)
    student, teacher = logits_of(heads, hidden, factors, cap)
    value = loss(Outputs(student, mask=MASK), Outputs(teacher.detach(), mask=MASK), LABELS) * scale
    return value, [hidden[0], *heads[0].parameters()], (student, teacher)


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_all_rows(name, bias, size):
    heads = networks(bias)
    eager, leaves, _ = step(LOSSES[name](None), heads, factors=False, scale=3.0)
    expected = torch.autograd.grad(eager, leaves)
    value, leaves, logits = step(LOSSES[name](size), heads, factors=True, scale=3.0)
    gradients = torch.autograd.grad(value, leaves)
    assert all(isinstance(each, FactoredLogits) and each.computed is None for each in logits)
    assert value.item() == pytest.approx(eager.item(), rel=1e-14)
    assert all(torch.allclose(*both, rtol=1e-12, atol=1e-15) for both in zip(gradients, expected, strict=True))


def test_soft_capped_logits_stay_factored():
    heads = networks()
    eager, leaves, _ = step(ForwardKL(), heads, factors=False, cap=2.0)
    expected = torch.autograd.grad(eager, leaves)
    value, leaves, logits = step(ForwardKL(chunk_size=3), heads, factors=True, cap=2.0)
    gradients = torch.autograd.grad(value, leaves)
    assert all(isinstance(each, FactoredLogits) and each.computed is None for each in logits)
    assert all(torch.allclose(*both, rtol=1e-12, atol=1e-15) for both in zip(gradients, expected, strict=True))


def test_a_kept_graph_has_the_same_gradient_again():
    value, leaves, _ = step(ForwardKL(chunk_size=3), networks(), factors=True)
    first = [each.clone() for each in torch.autograd.grad(value, leaves, retain_graph=True)]
    second = torch.autograd.grad(5 * value, leaves)
    assert all(torch.allclose(5 * a, b, rtol=1e-12) for a, b in zip(first, second, strict=True))


def test_only_what_is_trained_gets_a_gradient():
    heads = networks()
    heads[0].requires_grad_(False)
    value, (hidden, *_), _ = step(ForwardKL(chunk_size=3), heads, factors=True)
    value.backward()
    assert hidden.grad.any()
    assert all(parameter.grad is None for head in heads for parameter in head.parameters())


def test_task_loss_in_chunks_is_that_of_all_logits():
    (head, _), hidden = networks(), draw(2, 7, 8, seed=3)
    with factored(head):
        logits = head(hidden)
    for options in ({}, {"label_smoothing": 0.1}):
        value = TokenCrossEntropy(**options, chunk_size=4)(logits, LABELS)
        expected = nn.CrossEntropyLoss(**options)(head(hidden).transpose(1, 2), LABELS)
        assert logits.computed is None
        assert value.item() == pytest.approx(expected.item(), rel=1e-14)


def test_bfloat16_products_are_those_of_autocast():
    heads = networks(dtype=torch.float32)
    hidden = draw(2, 7, 8, seed=3).float(), draw(2, 7, 6, seed=4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        factors, plain = (logits_of(heads, hidden, each) for each in (True, False))
        assert factors[0].dtype is plain[0].dtype is torch.bfloat16
        values = [
            ForwardKL(chunk_size=3)(Outputs(student), Outputs(teacher.detach()), LABELS)
            for student, teacher in (factors, plain)
        ]
        gradients = [torch.autograd.grad(value, heads[0].weight)[0] for value in values]
    assert factors[0].computed is None
    assert values[0].dtype is torch.float32
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-6)
    assert torch.allclose(*gradients, atol=2e-3)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return result


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_times_vocabulary_is_never_stored(name):
    heads, rows = networks(), int(((LABELS != -100) & MASK.bool()).sum())
    found = {}
    for factors, size in ((False, None), (True, 2)):
        with Largest() as largest:
            value, leaves, _ = step(LOSSES[name](size), heads, factors)
            torch.autograd.grad(value, leaves)
        found[factors] = largest.numel
    assert found[False] >= rows * 23
    assert found[True] == heads[0].weight.numel()  # the gradient of the head; a chunk of 2 is smaller


def test_a_copy_of_logits_is_read_by_nobody_else():
    for logits in (torch.zeros(2, 3), FactoredLogits(torch.zeros(2, 4), torch.zeros(3, 4))):
        before = logits + 0  # computes factored ones
        own_copy(logits).add_(1)
        assert torch.equal(logits + 0, before)
