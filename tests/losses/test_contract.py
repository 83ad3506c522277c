"""Properties of every loss that kdlab exports."""

import copy
import functools
import inspect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.errors import InputError
from kdlab.outputs import Outputs
from tests.losses.context import NUM_CLASSES, VIEWS, context, draw, numbers, seed, setup
from tests.tiers import tiered

NEEDS = {"logits", "layers", "student_layers", "teacher_layers", "embedding", "classes", "index", "views"}
NEEDS |= {"teacher_embedding", "student_classifier", "teacher_classifier"}
CLASSES = [getattr(losses, name) for name in losses.__all__]
EVERY = pytest.mark.parametrize("kind", CLASSES, ids=losses.__all__)
Sides = tuple[Outputs, Outputs, Tensor]
NEED_TWO = {"ITRD", "MCL", "ReviewKD"}
"""Losses that one sample has no variance or no other sample for."""
ZERO_OF_NOTHING = {"MiniLM", "MiniLMv2", "ULD", *losses.tokens.__all__}
"""Means over positions that count: 0 where none does."""
DIRECTIONS, STEP, TOLERANCE = 4, 1e-6, 1e-6


@functools.cache
def needs(kind: type[nn.Module]) -> tuple[str, ...]:
    return kind().needs


def reads_layers(kind: type[nn.Module], side: str) -> bool:
    return bool({"layers", f"{side}_layers"} & set(needs(kind)))


def seen_by(kind: type[nn.Module], outputs: Outputs, side: str) -> Outputs:
    """The outputs that the module passes to this loss: layers only if it needs them, and as many as it takes."""
    count = getattr(kind, "layer_count", len(outputs.names)) if reads_layers(kind, side) else 0
    return outputs.only(outputs.names[len(outputs.names) - count :])


def sides(kind: type[nn.Module], batch: int = 6, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Sides:
    views = getattr(kind(), "views", ())
    student, teacher = (
        seen_by(kind, draw(batch, seed, scale, views, kind.__name__), side).map(lambda x: x.to(dtype).requires_grad_())
        for side, seed in (("student", 1), ("teacher", 2))
    )
    return student, teacher, torch.arange(batch) % NUM_CLASSES


def used(kind: type[nn.Module], outputs: Outputs, side: str = "student") -> list[Tensor]:
    """The tensors that this loss declares to need."""
    layers = list(outputs.layers)
    parts = {"logits": [outputs.logits], "layers": layers, f"{side}_layers": layers, "embedding": [outputs.embedding]}
    parts[f"{side}_embedding"] = [outputs.embedding]
    tensors = [tensor for need in needs(kind) for tensor in parts.get(need, [])]
    if getattr(kind, "only_views", False) and outputs.views:
        tensors = []
    return tensors + [tensor for view in outputs.views.values() for tensor in used(kind, view, side)]


def everything(outputs: Outputs) -> list[Tensor]:
    tensors: list[Tensor] = []
    outputs.map(lambda tensor: tensors.append(tensor) or tensor)
    return tensors


def sized(kind: type[nn.Module], dtype: torch.dtype = torch.float64, **options: float) -> nn.Module:
    """A loss after its setup, with materialized parameters."""
    return copy.deepcopy(_sized(kind, dtype, **options))


@functools.cache
def _sized(kind: type[nn.Module], dtype: torch.dtype, **options: float) -> nn.Module:
    seed(0)
    seen = draw(1, 0, kind=kind.__name__)
    names = seen_by(kind, seen, "student").names or seen_by(kind, seen, "teacher").names
    loss = setup(kind(**options), context(names, dtype)).to(dtype)
    with torch.no_grad():
        loss.eval()(*sides(kind))
    return loss.train().to(dtype)


def finite_or_input_error(call: Callable[[], Tensor]) -> Tensor | None:
    try:
        value = call()
    except InputError as error:
        message = str(error)
    else:
        message = ""
    if message:
        assert message.endswith(".")
        assert "\n" not in message
        return None
    assert value.shape == ()
    assert value.isfinite()
    return value


@EVERY
def test_class_attributes_and_docstring(kind):
    assert isinstance(needs(kind), tuple)
    assert set(needs(kind)) <= NEEDS
    assert needs(kind)
    assert "needs" in vars(kind)
    assert isinstance(kind.recipe_weight, float)
    assert ("views" in needs(kind)) == bool(getattr(kind(), "views", ()))
    assert list(inspect.signature(kind.forward).parameters) == ["self", "student", "teacher", "target"]
    assert "Paper:" in kind.__doc__
    assert ">>>" in kind.__doc__


@EVERY
def test_only_declared_inputs_are_read(kind):
    student, teacher, target = sides(kind)
    loss = sized(kind)
    expected = loss(student, teacher, target)
    needed = {id(tensor) for tensor in [*used(kind, student, "student"), *used(kind, teacher, "teacher")]}
    blind = [side.map(lambda x: x if id(x) in needed else torch.full_like(x, math.nan)) for side in (student, teacher)]
    blind = [side if "index" in needs(kind) else replace(side, index=None) for side in blind]
    target = target if "classes" in needs(kind) else torch.full((6,), math.nan)
    assert torch.equal(loss(*blind, target), expected)


@EVERY
def test_minimum_at_equal_networks(kind):
    minimum = getattr(kind, "minimum", 0.0)
    if minimum is None:
        pytest.skip("the class says that equal networks are not its minimum")
    student, teacher, target = sides(kind)
    loss = sized(kind)
    assert loss(student, student, target).item() == pytest.approx(minimum, abs=1e-12)
    assert loss(student, teacher, target).item() > minimum + 1e-6


@EVERY
def test_gradient_reaches_student_and_parameters_only(kind):
    student, teacher, target = sides(kind)
    loss = sized(kind)
    loss(student, teacher, target).backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in used(kind, student))
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert all(tensor.grad is None for tensor in everything(teacher))


def difference_quotient(value: Callable[[], Tensor], tensors: Sequence[Tensor], direction: Sequence[Tensor]) -> float:
    """The central difference quotient of ``value`` when all tensors move along a direction, in place."""
    starts = [tensor.detach().clone() for tensor in tensors]
    values = []
    with torch.no_grad():
        for step in (STEP, -STEP, 0.0):
            for tensor, start, way in zip(tensors, starts, direction, strict=True):
                tensor.copy_(start + step * way)
            values.append(value().item())
    return (values[0] - values[1]) / (2 * STEP)


def check_gradient(value: Callable[[], Tensor], tensors: Sequence[Tensor]) -> None:
    """Compare the gradient with difference quotients in random directions.

    Every entry moves by 0.5 to 1.5 steps in each direction, so an error of more than twice the tolerance in a single
    entry shows; gradcheck's default tolerance for an entry is ten times as large.
    """
    first, second = (torch.autograd.grad(value(), tensors, allow_unused=True) for _ in range(2))
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(tensors, first, strict=True)]
    assert all(g is None if h is None else torch.equal(g, h) for g, h in zip(first, second, strict=True))
    generator = torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        draws = [torch.rand(2, *x.shape, generator=generator, dtype=x.dtype) for x in tensors]
        direction = [(length + 0.5) * (sign - 0.5).sign() for length, sign in draws]
        expected = sum((g * way).sum().item() for g, way in zip(gradients, direction, strict=True))
        assert difference_quotient(value, tensors, direction) == pytest.approx(expected, rel=0, abs=TOLERANCE)


@EVERY
def test_gradient_is_the_derivative_of_the_value(kind):
    if not getattr(kind, "true_gradient", True):
        pytest.skip("the class says that its gradient is not the derivative of its value")
    student, teacher, target = sides(kind, batch=4)
    loss = sized(kind)
    parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    check_gradient(lambda: loss(student, teacher, target), [*used(kind, student), *parameters])


def test_gradient_check_finds_one_wrong_entry():
    x = torch.rand(100, dtype=torch.float64, requires_grad=True)
    check_gradient(lambda: x.exp().sum(), [x])
    with pytest.raises(AssertionError):
        check_gradient(lambda: x.exp().sum() + 1e-5 * (x[7] - x[7].detach()), [x])


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {"temperature": t}) for kind in CLASSES for t in (0.05, 0.7, 4.0, 20.0) if "temperature" in numbers(kind)]
    + [(kind, {}) for kind in CLASSES if "temperature" not in numbers(kind)],
)
@pytest.mark.parametrize(
    ("inputs", "weights", "ambient"),
    tiered(
        [
            (torch.float32, torch.float32, None),
            (torch.float32, torch.float32, torch.bfloat16),
            (torch.float32, torch.float32, torch.float16),
            (torch.bfloat16, torch.float32, torch.bfloat16),
            (torch.float16, torch.float32, torch.float16),
            (torch.bfloat16, torch.bfloat16, None),
            (torch.float16, torch.float16, None),
        ],
        quick=[(torch.float32, torch.float32, None), (torch.float16, torch.float32, torch.float16)],
    ),
    ids=lambda each: str(each).removeprefix("torch."),
)
def test_any_precision_is_finite_and_close_to_float64(kind, options, inputs, weights, ambient):
    loss = sized(kind, weights, **options)
    student, teacher, target = sides(kind, scale=20.0, dtype=inputs)
    with torch.no_grad():
        student.logits.clamp_(-60, 60)[0, :2] = torch.tensor([60.0, -60.0])
        teacher.logits.clamp_(-60, 60)[0, :2] = torch.tensor([-60.0, 60.0])
    with torch.autocast("cpu", dtype=ambient or torch.bfloat16, enabled=ambient is not None):
        value = loss(student, teacher, target)
    value.backward()
    assert value.dtype is torch.float32
    assert value.isfinite()
    assert all(tensor.grad.isfinite().all() for tensor in [*used(kind, student), *loss.parameters()])
    exact = loss.double()(*(side.map(lambda x: x.detach().double()) for side in (student, teacher)), target)
    assert value.item() == pytest.approx(exact.item(), rel=2e-4, abs=1e-6)


@EVERY
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_batch_size_is_finite_or_raises_input_error(kind, batch):
    student, teacher, target = sides(kind, batch=batch, dtype=torch.float32)
    value = finite_or_input_error(lambda: sized(kind, torch.float32)(student, teacher, target))
    assert (value is None) == (batch == 1 and kind.__name__ in NEED_TWO)
    if value is None:
        return
    value.backward()
    assert all(tensor.grad.isfinite().all() for tensor in used(kind, student))


@EVERY
def test_empty_batch_is_finite_or_raises_input_error(kind):
    student, teacher, target = sides(kind, batch=0, dtype=torch.float32)
    value = finite_or_input_error(lambda: sized(kind, torch.float32)(student, teacher, target))
    assert value == 0 if kind.__name__ in ZERO_OF_NOTHING else value is None


@EVERY
def test_batch_order_does_not_matter(kind):
    if getattr(kind, "order_matters", False):
        pytest.skip("the class says that the order matters")
    student, teacher, target = sides(kind, batch=7)
    loss, order = sized(kind), torch.tensor([3, 0, 6, 1, 5, 2, 4])

    def turn(side: Outputs, count: int = 1) -> Outputs:
        rows = (order[:, None] * count + torch.arange(count)).flatten()
        views = {name: turn(view, VIEWS.get(name, 1)) for name, view in side.views.items()}
        return replace(replace(side, views={}).map(lambda x: x[rows]), views=views)

    turned = [
        replace(turn(side), index=side.index[order], mask=None if side.mask is None else side.mask[order])
        for side in (student, teacher)
    ]
    assert loss(*turned, target[order]).item() == pytest.approx(loss(student, teacher, target).item(), rel=1e-10)


@EVERY
def test_different_batch_sizes_raise_input_error(kind):
    student, teacher, target = sides(kind, batch=6)
    loss = sized(kind)
    for one, other in ((student.map(lambda x: x[:1]), teacher), (student, teacher.map(lambda x: x[:1]))):
        with pytest.raises(InputError):
            loss(one, other, target)


@EVERY
def test_missing_inputs_raise_input_error(kind):
    student, teacher, target = sides(kind)
    loss = sized(kind)
    if {"layers", "student_layers", "teacher_layers", "embedding", "views"} & set(needs(kind)):
        with pytest.raises(InputError):
            loss(*(Outputs(side.logits, index=side.index) for side in (student, teacher)), target)
    if "classes" in needs(kind):
        with pytest.raises(InputError):
            loss(student, teacher, torch.rand(6))


@EVERY
def test_state_dict_round_trip(kind):
    student, teacher, _ = sides(kind)
    old, new = sized(kind), setup(kind(), context(student.names or teacher.names)).double()
    new.load_state_dict(old.state_dict(), strict=True)
    assert torch.equal(new(*sides(kind)), old(*sides(kind)))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (kind, name, value)
        for kind in CLASSES
        for name in numbers(kind)
        for value in (-1.0, math.nan, math.inf, "1", *([0] if name == "temperature" else []))
    ],
)
def test_invalid_numbers_raise_input_error(kind, name, value):
    with pytest.raises(InputError, match=name):
        kind(**{name: value})


BOUNDS = {
    "positive": ([0], [1e-3]),
    "above 0": ([0], [1e-3]),
    "not negative": ([-1e-3], [0]),
    "at least 0": ([-1e-3], [0]),
    "at least 1": ([0], [1]),
    "below 1": ([1, 1.5], [0.999]),
    "from 0 to 1": ([-1e-3, 1.001, 2], [0, 1]),
    "in \\[0, 1\\)": ([-1e-3, 1, 1.5], [0, 0.999]),
}
"""By the words of a docstring: numbers that are refused, and numbers that are taken."""


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in CLASSES for name in numbers(kind)])
def test_bounds_of_numbers_are_those_of_the_docstring(kind, name):
    described = re.search(rf"^ +{name}: (.*(?:\n {{12,}}.*)*)", kind.__doc__, re.MULTILINE)
    for words, (refused, taken) in BOUNDS.items():
        if described and re.search(rf"(?<!\w){words}(?!\w)", described[1]):
            for value in taken:
                kind(**{name: value})
            for value in refused:
                with pytest.raises(InputError, match=name):
                    kind(**{name: value})


def test_contract_can_fail():
    class Broadcast(nn.Module):
        """Compares what happens to broadcast, with a gradient to the teacher."""

        needs: ClassVar[tuple[str, ...]] = ("logits",)

        def forward(self, student, teacher, target):
            return (student.logits - teacher.logits).square().mean()

    for check in (
        test_different_batch_sizes_raise_input_error,
        test_gradient_reaches_student_and_parameters_only,
    ):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check(Broadcast)
