"""The choice of a fast copy by timing, with given times, and how far a copy's outputs are from the network's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from kdlab.members import fast_choice, fast_copy
from kdlab.members.fast_choice import Choice, choose, in_turns
from kdlab.members.fast_copy import Runner, Trial, largest_error
from kdlab.members.fast_options import PLAIN, Fast
from kdlab.outputs import Outputs
from tests.members.test_fast_inference import Small, images, trained

CPU = torch.device("cpu")
FOLD, LAST, BOTH = Fast(True, False), Fast(False, True), Fast(True, True)
ORDER = (PLAIN, LAST, FOLD, BOTH)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def chosen(times: Mapping[Fast, float], monkeypatch: Any, fast: Fast = BOTH, net: nn.Module | None = None) -> Choice:
    """The choice where each option takes so many seconds."""
    trial = Trial(Runner(net or trained(Small()), ()), images(), fast)
    made: dict[int, Fast] = {}
    make = trial.make

    def noted(options: Fast) -> Any:
        copy = make(options)
        made[id(copy.runner)] = copy.options
        return copy

    def given(calls: Sequence[Any], *_: Any) -> list[list[float]]:
        return [[times[made[id(call.__defaults__[0])]]] * 3 for call in calls]

    monkeypatch.setattr(trial, "make", noted)
    monkeypatch.setattr(fast_choice, "in_turns", given)
    return choose(trial, only_layers=False)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((1.0, 0.9, 0.8, 0.7), BOTH),
        ((1.0, 0.9, 0.6, 0.7), FOLD),
        ((1.0, 1.2, 1.1, 1.3), PLAIN),
        ((1.0, 0.985, 0.99, 0.981), PLAIN),  # faster by less than 2 %
        ((1.0, 0.9, 0.711, 0.7), FOLD),  # within 2 % of the fastest, with fewer changes
        ((1.0, 0.99, 0.995, 0.979), BOTH),  # what is near the fastest must itself be faster than plain
    ],
)
def test_the_fastest_option_is_chosen(times: tuple[float, ...], expected: Fast, monkeypatch: Any) -> None:
    choice = chosen(dict(zip(ORDER, times, strict=True)), monkeypatch)
    assert choice.copy.options == expected
    assert choice.record["chosen"] == expected.changes
    assert [row["of_plain"] for row in choice.record["candidates"]] == list(times)
    assert f"({times[ORDER.index(expected)]:.2f})" in choice.text


def test_only_what_is_allowed_is_tried(monkeypatch: Any) -> None:
    choice = chosen({PLAIN: 1.0, FOLD: 0.9}, monkeypatch, Fast(channels_last=False))
    assert choice.copy.options == FOLD
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    assert len(chosen({PLAIN: 1.0}, monkeypatch, net=mlp).record["candidates"]) == 1


def test_an_option_outside_the_tolerance_is_not_chosen(monkeypatch: Any) -> None:
    altered = fast_copy.altered

    def wrong(*args: Any) -> Any:
        made: Any = altered(*args)
        if args[-1]:  # channels_last
            made.fc.weight.mul_(1.01)
        return made

    monkeypatch.setattr(fast_copy, "altered", wrong)
    choice = chosen({PLAIN: 1.0, FOLD: 0.9}, monkeypatch)
    assert choice.copy.options == FOLD
    refused = [row for row in choice.record["candidates"] if row["refused"]]
    assert [(row["channels_last"], row["ms"]) for row in refused] == [(True, None)] * 2
    assert "is allowed" in refused[0]["refused"]
    assert "not within tolerance: channels_last: outputs differ most in the logits" in choice.text


@pytest.mark.parametrize(("compiled", "expected"), [(0.5, True), (0.695, False)])
def test_the_fastest_option_is_tried_compiled(compiled: float, expected: bool, monkeypatch: Any) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda self: None)
    times = {PLAIN: 1.0, FOLD: 0.9, LAST: 0.8, BOTH: 0.7, Fast(compile=True): compiled}
    choice = chosen(times, monkeypatch, Fast(compile=True))
    assert choice.copy.options == Fast(compile=expected)
    assert len(choice.record["candidates"]) == 5


def test_half_precision_is_tried_where_there_are_instructions(monkeypatch: Any) -> None:
    monkeypatch.setattr("kdlab.members.fast_options.supports", lambda precision, device: precision == "bf16")
    options = Fast(precision="auto").combinations(CPU)
    assert options[0] == PLAIN
    assert len(options) == 8
    assert {option.precision for option in options} == {"same", "bf16"}
    assert {option.precision for option in Fast(precision="fp16").combinations(CPU)} == {"same", "fp16"}


def test_rounds_alternate_forward_and_backward(monkeypatch: Any) -> None:
    monkeypatch.setattr(fast_choice, "TURN", 0.0)
    ran: list[str] = []
    times = in_turns([lambda: ran.append("a"), lambda: ran.append("b")], CPU, rounds=3)
    assert "".join(ran) == "abab" + "ab" + "ba" + "ab"
    assert [len(row) for row in times] == [3, 3]


def test_no_round_begins_after_its_time(monkeypatch: Any) -> None:
    monkeypatch.setattr(fast_choice, "TURN", 0.0)
    assert [len(row) for row in in_turns([lambda: None], CPU, rounds=9, seconds=0.0)] == [3]


def outputs(logits: list[list[float]], layer: list[float] | None = None) -> Outputs:
    layers = () if layer is None else (torch.tensor([layer]),)
    return Outputs(torch.tensor(logits), layers, names=("conv",) if layers else ())


def test_tensors_count_relative_to_their_norm() -> None:
    name, error = largest_error(outputs([[1.0]], [3.0, 4.3]), outputs([[1.0]], [3.0, 4.0]))
    assert name == "layer 'conv'"
    assert error == pytest.approx(0.3 / 5, rel=1e-5)


@pytest.mark.parametrize(("temperatures", "expected"), [((1.0,), 0.14384), ((1.0, 4.0), 0.15040)])
def test_logits_count_as_the_losses_read_them(temperatures: tuple[float, ...], expected: float) -> None:
    # Nearly constant logits, of which a relative error sees nothing. At temperature T the copy's probabilities are
    # 3^(1/T) / (1 + 3^(1/T)) and 1 / (1 + 3^(1/T)); KL = log of the geometric mean of 1 / (2 q), times T^2.
    by_hand = max(
        t**2 * 0.5 * sum(math.log(0.5 / q) for q in (3 ** (1 / t) / (1 + 3 ** (1 / t)), 1 / (1 + 3 ** (1 / t))))
        for t in temperatures
    )
    assert by_hand == pytest.approx(expected, rel=1e-4)
    name, error = largest_error(outputs([[1e3 + math.log(3), 1e3]]), outputs([[1e3, 1e3]]), temperatures)
    assert name == f"the softmax at temperature {temperatures[-1]:g}"
    assert error == pytest.approx(expected, rel=1e-3)


def test_another_class_counts_where_it_is_clearly_less_probable() -> None:
    # Probabilities of 0.38 and 0.31, 0.334 and 0.333, and nearly 1; the constant leaves no relative error.
    plain = [[100.2, 100.0, 100.0], [100.2, 100.0, 100.0], [100.001, 100.0, 100.0], [109.0, 100.0, 100.0]]
    fast = [[100.2, 100.0, 100.0], [100.0, 100.2, 100.0], [100.0, 100.001, 100.0], [109.0, 100.0, 100.0]]
    name, error = largest_error(outputs(fast), outputs(plain))
    assert (name, error) == ("the most probable classes", 0.25)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_infinitely_far(bad: float) -> None:
    assert largest_error(outputs([[bad, 1.0]]), outputs([[1.0, 1.0]]))[1] == math.inf
    assert largest_error(outputs([[1.0]], [bad]), outputs([[1.0]], [1.0]))[1] == math.inf


def test_nearly_constant_outputs_are_no_reason_to_refuse() -> None:
    """As of random weights: the outputs hardly vary, so errors are large in units of their deviation."""
    net, x = trained(Small()), 1 + 1e-5 * images(64)
    copy = Trial(Runner(net, ()), x, Fast()).make(Fast())
    assert not copy.refused
    assert copy.options == BOTH
    assert float((copy.runner(x).logits - net(x)).abs().max()) > 1e-3 * float(net(x).std(0).max())
