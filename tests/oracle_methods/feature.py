"""The methods of the oracle file that compare layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.losses.context import Context
from kdlab.losses.feature.review_kd import hierarchical_distance
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method, Weighted, count, side


def take_margins(loss: Any, arrays: Arrays) -> None:
    """Set the margins of batch normalizations with the file's weights, which are tapped themselves."""
    norms = nn.Sequential()
    for i in range(count(arrays, "teacher_feature")):
        weight, bias = arrays[f"teacher_bn_weight_{i}"], arrays[f"teacher_bn_bias_{i}"]
        norm = nn.BatchNorm2d(len(weight))
        norm.weight, norm.bias = nn.Parameter(weight), nn.Parameter(bias)
        norms.append(norm)
    loss.setup(Context(norms, (norms,), teacher_layers=tuple(map(str, range(len(norms))))))


def fix_mask(loss: Any, arrays: Arrays) -> None:
    """Use the file's random numbers; their shape selects what is masked."""
    (loss,) = loss.losses
    loss.uniform = lambda x: arrays["mask_uniform"]
    loss.masked = "positions" if arrays["mask_uniform"].shape[1] == 1 else "channels"


def give_paraphraser(loss: Any, arrays: Arrays) -> None:
    """Set a paraphraser with the file's weights; the file's indices include a missing normalization."""
    factors, channels = arrays["paraphraser_encoder_3_weight"].shape[:2]
    paraphraser = losses.Paraphraser((factors + 0.5) / channels)
    paraphraser.encode(arrays["teacher_feature"])
    with torch.no_grad():
        for part in ("encoder", "decoder"):
            for i, theirs in ((0, 0), (2, 3), (4, 6)):
                for kind in ("weight", "bias"):
                    own = paraphraser.get_parameter(f"{part}.{i}.{kind}")
                    own.copy_(arrays[f"paraphraser_{part}_{theirs}_{kind}"])
    loss.setup(Context(nn.Identity(), (nn.Identity(),), losses={"paraphraser": paraphraser}))


def fused_layers(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """The file's layers of each side, from shallow to deep."""
    sides = [
        Outputs(torch.zeros(1, 1), tuple(arrays[f"{side}_{name}"] for name in depths(arrays)))
        for side in ("student", "teacher")
    ]
    return sides[0], sides[1]


def depths(arrays: Arrays) -> list[str]:
    """The file's names of the layers, from shallow to deep: from the largest map to the smallest."""
    names = [name.removeprefix("student_") for name in arrays if name.startswith("student_")]
    return sorted(names, key=lambda name: -arrays[f"student_{name}"].shape[2])


def distances(loss: Any, arrays: Arrays) -> Tensor:
    """The hierarchical distances of all layers."""
    student, teacher = side(arrays, "student"), side(arrays, "teacher").detach()
    return torch.stack(list(map(hierarchical_distance, student.layers, teacher.layers))).sum()


METHODS: dict[str, Method] = {
    "AT": Method(lambda h: losses.AttentionTransfer(h.get("p", 2))),
    "FitNet": Method(
        lambda h: losses.Hint("conv"),
        {
            "regressor_conv_weight": "regressors.0.conv.weight",
            "regressor_conv_bias": "regressors.0.conv.bias",
            "regressor_bn_weight": "regressors.0.norm.weight",
            "regressor_bn_bias": "regressors.0.norm.bias",
        },
    ),
    "FitNet-1x1": Method(lambda h: losses.Hint("1x1"), {"transform_weight": "regressors.0.weight"}),
    "NST": Method(lambda h: losses.NST()),
    "FSP": Method(lambda h: losses.FSP()),
    "CWD": Method(lambda h: losses.CWD(h["tau"])),
    "AB": Method(lambda h: losses.ActivationBoundary(h["margin"])),
    "VID": Method(
        lambda h: losses.VID(h["init_pred_var"]),
        {
            **{f"regressor_{i}_weight": f"predictors.0.mean.{i}.weight" for i in (0, 2, 4)},
            "log_scale": "predictors.0.log_scale",
        },
    ),
    "OFD": Method(
        lambda h: losses.OFD(),
        lambda arrays: {
            f"connector_{i}_{theirs}_{part}": f"connectors.{i}.{ours}.{part}"
            for i in range(count(arrays, "student_feature"))
            for theirs, ours, part in (("conv", "conv", "weight"), ("bn", "norm", "weight"), ("bn", "norm", "bias"))
        },
        setup=take_margins,
    ),
    "MGD": Method(
        lambda h: Weighted((h.get("alpha_mgd", 1.0), losses.MGD(h["lambda_mgd"]))),
        {
            "align_weight": "losses.0.aligned.0.weight",
            "align_bias": "losses.0.aligned.0.bias",
            **{
                f"generation_{i}_{part}": f"losses.0.generators.0.{i}.{part}"
                for i in (0, 2)
                for part in ("weight", "bias")
            },
        },
        setup=fix_mask,
    ),
    "KDSVD": Method(lambda h: losses.KDSVD(h["k"])),
    "FT": Method(
        lambda h: losses.FactorTransfer(),
        compute=lambda loss, arrays: loss.distance(arrays["student_factor"], arrays["teacher_factor"].detach()),
    ),
    "FT-translator": Method(
        lambda h: losses.FactorTransfer(),
        {
            f"translator_encoder_{i}_{part}": f"translator.{i}.{part}"
            for i in (0, 1, 3, 4, 6, 7)
            for part in ("weight", "bias")
        },
        setup=give_paraphraser,
    ),
    "ReviewKD-HCL": Method(lambda h: losses.ReviewKD(), compute=distances),
    "ReviewKD-ABF": Method(
        lambda h: losses.ReviewKD(h["mid_channel"], embedding=False),
        lambda arrays: {
            f"abf_{name}_{theirs}_{part}": f"fusions.{i}.{ours}.{part}"
            for i, name in enumerate(depths(arrays))
            for theirs, ours, parts in (
                ("conv1_0", "enter.conv", ("weight",)),
                ("conv1_1", "enter.norm", ("weight", "bias")),
                ("conv2_0", "leave.conv", ("weight",)),
                ("conv2_1", "leave.norm", ("weight", "bias")),
                ("att_conv_0", "attention", ("weight", "bias")),
            )
            for part in parts
        },
        fused_layers,
    ),
}
