"""Checks kdlab's losses against oracle values: ``python -m tests.oracles FILE [--families a,b] [--methods A,B]``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from tests.oracle_inputs import make
from tests.oracle_methods import METHODS, Method

Case = dict[str, Any]
FAMILIES = ("response", "feature", "relation", "multi-teacher", "online", "self", "nlp", "llm")


class Tolerance(NamedTuple):
    """``|got - expected| <= relative * |expected| + absolute``; gradients of float32 cases relative to their norm."""

    loss_relative: float
    loss_absolute: float
    gradient_relative: float
    gradient_absolute: float
    of_norm: bool = False


def tolerance(case: Case, result: Case) -> Tolerance:
    """The row of the oracles' tolerance table for this case."""
    if case["dtype"] == "float32":
        return Tolerance(result["rtol"], 1e-6, 1e-3, 1e-7, of_norm=True)
    absolute = 1e-7 if "float32 internally" in result["factors"] or case["method"] == "OFD" else 1e-12
    return Tolerance(result["rtol"], absolute, result["rtol"], absolute)


def evaluate(case: Case, method: Method) -> list[str]:
    """The differences of kdlab's values on ``case``, one line for each quantity."""
    arrays = make(case)
    wrong = list(_check_inputs(case, arrays))
    if wrong:
        return wrong
    result = next(each for each in case["results"] if each["reference"])
    differentiable = {e["name"] for e in case["inputs"] if e["role"] in ("student", "trainable") or e.get("grad")}
    leaves = {}
    for name, array in arrays.items():
        leaves[name] = torch.as_tensor(array)
        if leaves[name].is_floating_point():
            leaves[name].requires_grad_()
    target = _target(case, result)
    try:
        shapes = {name: tuple(array.shape) for name, array in arrays.items()}
        hyper = {**result["hyper_parameters"], "shapes": shapes, "symbol": result.get("symbol", "")}
        loss, parameters = _loss(case, method, hyper, leaves)
    except InputError as error:
        return [] if target is None else [f"loss: got InputError ({error}), expected {target!r}"]
    if loss.requires_grad:
        loss.backward()
    wrong = list(_compare_loss(loss, target, tolerance(case, result)))
    for name, leaf in leaves.items():
        gradient = parameters[name].grad if name in parameters else leaf.grad
        if name in differentiable:
            wrong += _compare_gradient(name, gradient, result["grads"].get(name), tolerance(case, result))
        elif gradient is not None:
            wrong.append(f"gradient of {name}: got one of norm {float(gradient.norm())!r}, expected none")
    return wrong


def _loss(case: Case, method: Method, hyper: Case, leaves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    loss = method.build(hyper).to(getattr(torch, case["dtype"]))
    constants = {name: leaf.detach() for name, leaf in leaves.items()}
    method.setup(loss, constants)
    parameters: dict[str, Tensor] = {}
    if names := method.names(leaves):
        with torch.no_grad():
            _value(loss, method, constants)  # sizes the parameters
            for name, own in names.items():
                parameters[name] = loss.get_parameter(own)
                if parameters[name].shape != leaves[name].shape:
                    raise ValueError(
                        f"{name} is {tuple(leaves[name].shape)} but kdlab's is {tuple(parameters[name].shape)}"
                    )
                parameters[name].copy_(leaves[name])
    return _value(loss, method, leaves), parameters


def _value(loss: nn.Module, method: Method, leaves: dict[str, Tensor]) -> Tensor:
    if method.compute is not None:
        return method.compute(loss, leaves)
    value: Tensor = loss(*method.outputs(leaves), method.target(leaves))
    return value


def _check_inputs(case: Case, arrays: dict[str, np.ndarray]) -> Iterable[str]:
    for name, check in case["input_check"].items():
        array = arrays[name].astype(np.float64)
        scale = float(np.abs(array).sum())
        for quantity, got in (("sum", float(array.sum())), ("first", float(array.flat[0]) if array.size else 0.0)):
            if not math.isclose(got, check[quantity], rel_tol=1e-9, abs_tol=1e-9 * scale):
                yield f"input {name} {quantity}: got {got!r}, expected {check[quantity]!r}"


def _target(case: Case, result: Case) -> float | None:
    """The value to reach; ``None`` where no finite one is recorded, which only a HAZARD case may have."""
    hazard = "HAZARD" in (case.get("note") or "")
    recorded = [result.get("loss_float64_same_inputs"), result["loss"]] if hazard else [result["loss"]]
    finite = [float(value) for value in recorded if value is not None and math.isfinite(float(value))]
    if not finite and not hazard:
        raise ValueError("the file has no finite loss")
    return finite[0] if finite else None


def _compare_loss(loss: Tensor, target: float | None, allowed: Tolerance) -> Iterable[str]:
    got = float(loss.detach())
    if loss.dim() or not math.isfinite(got):
        yield f"loss: got {loss.detach()!r}, expected a finite scalar or an InputError"
    elif target is not None and abs(got - target) > allowed.loss_relative * abs(target) + allowed.loss_absolute:
        yield f"loss: got {got!r}, expected {target!r}"


def _compare_gradient(name: str, got: Tensor | None, expected: Case | None, allowed: Tolerance) -> Iterable[str]:
    if expected is None:
        if got is not None and bool(got.any()):
            yield f"gradient of {name}: got one of norm {float(got.norm())!r}, expected none"
        return
    if got is None:
        yield f"gradient of {name}: got none, expected one of norm {expected['l2']!r}"
        return
    if not bool(got.isfinite().all()):
        yield f"gradient of {name}: got a value that is not finite"
    norm = float(expected["l2"])
    if not math.isfinite(norm):  # what the released code does there is no target
        return
    values = [float(got.double().norm()), *got.flatten()[:3].tolist()]
    quantities = ["l2", *(f"first3[{i}]" for i in range(len(values) - 1))]
    for quantity, value, wanted in zip(quantities, values, [norm, *expected["first3"]], strict=True):
        scale = norm if allowed.of_norm else abs(wanted)
        if not abs(value - wanted) <= allowed.gradient_relative * scale + allowed.gradient_absolute:
            yield f"gradient of {name} {quantity}: got {value!r}, expected {wanted!r}"


def run(cases: Sequence[Case]) -> int:
    """Evaluate ``cases``, print one line for each method, failures and totals; return the number of failures."""
    lines: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"passed": 0, "failed": 0, "not implemented": 0})
    for case in cases:
        name = case["method"]
        if name not in METHODS:
            counts[name]["not implemented"] += 1
            continue
        try:
            wrong = evaluate(case, METHODS[name])
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error}"]
        counts[name]["failed" if wrong else "passed"] += 1
        lines[name] += [f"  {case['id']}  {line}" for line in wrong]
    for name, count in counts.items():
        print(f"{name}  {', '.join(f'{number} {what}' for what, number in count.items() if number)}")
        print(*lines[name], sep="\n", end="\n" if lines[name] else "")
    total = {what: sum(count[what] for count in counts.values()) for what in ("passed", "failed", "not implemented")}
    print(", ".join(f"{number} {what}" for what, number in total.items()))
    return total["failed"]


def select(cases: Sequence[Case], families: str | None, methods: str | None) -> list[Case]:
    """The cases of the families and methods named, both comma-separated; ``None`` selects all."""
    for key, text, known in (
        ("family", families, {*FAMILIES, *(case["family"] for case in cases)}),
        ("method", methods, {*METHODS, *(case["method"] for case in cases)}),
    ):
        if text is None:
            continue
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise InputError(f"There is no {key} {name!r}; the nearest names are {nearest(name, sorted(known))}.")
        cases = [case for case in cases if case[key] in names]
    return list(cases)


def read(path: Path) -> list[Case]:
    """The cases of an oracle file."""
    try:
        content = json.loads(path.read_text())
        cases: list[Case] = content["cases"]
        for case in cases:
            for key in ("id", "method", "family", "seed", "dtype", "inputs", "input_check", "results"):
                case[key]
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not an oracle file ({type(error).__name__}: {error}).") from None
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracles", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--families", help="comma-separated, e.g. response,feature")
    parser.add_argument("--methods", help="comma-separated, e.g. KD,DKD")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        cases = select(read(options.file), options.families, options.methods)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if run(cases) else 0


if __name__ == "__main__":
    sys.exit(main())
