"""The methods of the oracle file that compare logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from kdlab import losses
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method, Weighted, side


def _with_labels(loss: losses.WSLD, arrays: Arrays) -> Tensor:
    """The authors' total: the labels with weight 1, and theirs for ImageNet."""
    sides = side(arrays, "student"), side(arrays, "teacher"), arrays["labels"]
    value: Tensor = losses.Labels()(*sides) + 2.5 * loss(*sides)
    return value


def _ctkd(h: dict[str, Any]) -> losses.CurriculumTemperature:
    """The loss in the epoch whose factor on the temperature's gradient is the file's."""
    loss = losses.CurriculumTemperature(None, h["t_start"], h["t_end"])
    loss.reversal = h["lambda_"]
    return loss


def _rld(h: dict[str, Any]) -> losses.RLD:
    return losses.RLD(h["alpha"], h["beta"], h["T"], h["alpha_T"])


def _two_views(arrays: Arrays) -> tuple[Outputs, Outputs]:
    student, teacher = (
        replace(Outputs(arrays[f"{name}_weak"]), views={"strong": Outputs(arrays[f"{name}_strong"])})
        for name in ("student", "teacher")
    )
    return student, teacher


def _regions(loss: losses.ScaleDecoupled, arrays: Arrays) -> Tensor:
    """The file gives the regions' logits (B, K, M), without maps and classifiers."""
    regions = [arrays[f"{name}_patch_logits"].permute(2, 0, 1) for name in ("student", "teacher")]
    return loss.compare(regions[0], regions[1].detach(), arrays["labels"])


METHODS: dict[str, Method] = {
    "KD": Method(lambda h: losses.SoftTargets(h["T"])),
    "DeiT-hard": Method(lambda h: losses.HardLabels()),
    "DKD": Method(lambda h: losses.DKD(h["alpha"], h["beta"], h["T"])),
    "DIST": Method(lambda h: losses.DIST(h["tau"], h["beta"], h["gamma"])),
    "NKD": Method(lambda h: losses.NKD(h["gamma"], h["T"])),
    "WSLD": Method(lambda h: Weighted((h.get("alpha", 1.0), losses.WSLD(h["T"])))),
    "WSLD-authors-total": Method(lambda h: losses.WSLD(h["T"]), compute=_with_labels),
    "TTM": Method(lambda h: losses.TTM(h["l"])),
    "WTTM": Method(lambda h: losses.WTTM(h["l"])),
    "RLD": Method(_rld),
    "LSKD": Method(lambda h: losses.LogitStandardization(losses.SoftTargets(h["T"]))),
    "MLKD": Method(
        lambda h: Weighted((h.get("kd_weight", 1.0), losses.MLKD(tuple(h["temperatures"])))), outputs=_two_views
    ),
    "CTKD": Method(_ctkd, {"global_T": "theta"}),
    "SDD": Method(lambda h: losses.ScaleDecoupled(losses.DKD(h["alpha"], h["beta"], h["T"])), compute=_regions),
    "OFA-loss": Method(lambda h: losses.OFA(h["eps"], h["T"])),
}
