"""Draws the inputs of one oracle case again, with numpy alone, in the order in which the file lists them."""

from __future__ import annotations

from typing import Any

import numpy as np

Entry = dict[str, Any]


def make(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Every input of ``case`` by name: drawn in float64 by one generator, then cast to the case's dtype."""
    generator = np.random.default_rng(case["seed"])
    arrays: dict[str, np.ndarray] = {}
    for entry in case["inputs"]:
        array = _draw(generator, entry)
        for to, source in entry.get("copy_rows", []):
            array[to] = array[source]
        for row, value in entry.get("set_rows", []):
            array[row] = value
        if "first_column" in entry:
            array[:, 0] = arrays[entry["first_column"]]
        for row in entry.get("hit", []):
            array[row, arrays["labels"][row]] = array[row].max() + 1.0
        arrays[entry["name"]] = array
    if case.get("dtype", "float64") == "float32":
        arrays = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    return arrays


def _draw(generator: np.random.Generator, entry: Entry) -> np.ndarray:
    kind, shape = entry["kind"], tuple(entry.get("shape", ()))
    scale, shift = entry.get("scale", 1.0), entry.get("shift", 0.0)
    if kind == "const":
        return np.asarray(entry["value"])
    if kind == "normal":
        return scale * generator.standard_normal(shape) + shift
    if kind == "relu":
        return np.maximum(scale * generator.standard_normal(shape) + shift, 0.0)
    if kind == "uniform":
        return scale * generator.random(shape) + shift
    if kind == "softmax":
        logits = scale * generator.standard_normal(shape)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    if kind == "unit_rows":
        rows = generator.standard_normal(shape)
        return rows / np.sqrt((rows * rows).sum(axis=-1, keepdims=True))
    if kind == "integers":
        return generator.integers(entry["low"], entry["high"], size=shape).astype(np.int64)
    if kind == "distinct":
        return generator.permutation(entry["high"])[: shape[0]].astype(np.int64)
    if kind == "bernoulli":
        return (generator.random(shape) < entry["p"]).astype(np.int64)
    raise ValueError(f"unknown kind of input {kind!r}")
