"""How kdlab builds each method of an oracle file: one entry a method name; add an entry to add a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.outputs import Outputs

Arrays = dict[str, Tensor]


def side(arrays: Arrays, name: str) -> Outputs:
    """What ``name`` ("student" or "teacher") puts out: its ``_logits``, ``_feature[_i]`` and ``_embedding``."""
    layers = [value for key, value in arrays.items() if key.startswith(f"{name}_feature")]
    embedding = arrays.get(f"{name}_embedding")
    some = next(value for key, value in arrays.items() if key.startswith(name))
    logits = arrays.get(f"{name}_logits", some.new_zeros(len(some), 1))
    return Outputs(logits, tuple(layers), embedding, arrays.get("mask"))


@dataclass(frozen=True)
class Method:
    """One method: its loss from hyper-parameters, the file's names of its parameters, its outputs from the arrays.

    ``set_up`` gives a loss what it would ask of a run; ``compute`` gives the value without an Outputs, where the case
    is about a part of a method.
    """

    build: Callable[[dict[str, Any]], nn.Module]
    parameters: dict[str, str] = field(default_factory=dict)
    outputs: Callable[[Arrays], tuple[Outputs, Outputs]] = lambda arrays: (
        side(arrays, "student"),
        side(arrays, "teacher"),
    )
    target: Callable[[Arrays], Tensor] = lambda arrays: arrays.get("labels", torch.zeros(1))
    set_up: Callable[[Any, Arrays], None] = lambda loss, arrays: None
    compute: Callable[[Any, Arrays], Tensor] | None = None


METHODS: dict[str, Method] = {
    "KD": Method(lambda h: losses.SoftTargets(h["T"])),
    "DKD": Method(lambda h: losses.DKD(h["alpha"], h["beta"], h["T"])),
    "AT": Method(lambda h: losses.AttentionTransfer(h.get("p", 2))),
    "FitNet": Method(
        lambda h: losses.Hint("conv"),
        {
            "regressor_conv_weight": "regressors.0.weight",
            "regressor_conv_bias": "regressors.0.bias",
            "regressor_bn_weight": "regressors.0.norm.weight",
            "regressor_bn_bias": "regressors.0.norm.bias",
        },
    ),
    "FitNet-1x1": Method(lambda h: losses.Hint("1x1"), {"transform_weight": "regressors.0.weight"}),
    "RKD-distance": Method(lambda h: losses.RKDDistance()),
    "RKD-angle": Method(lambda h: losses.RKDAngle()),
    "SP": Method(lambda h: losses.SimilarityPreserving()),
}
