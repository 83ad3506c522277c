"""The methods of the oracle file that compare relations between samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab import losses
from kdlab.losses.feature.camkd import weighted
from kdlab.losses.relation.self_supervision import cosines
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method, Weighted


def stages(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """Both networks with their logits, their embedding and their stages."""
    sides = (
        Outputs(
            arrays[f"{name}_logits"],
            tuple(value for key, value in arrays.items() if key.startswith(f"{name}_stage_")),
            arrays[f"{name}_embedding"],
        )
        for name in ("student", "teacher")
    )
    return next(sides), next(sides)


def sskd(loss: losses.SSKD, arrays: Arrays) -> Tensor:
    """SSKD's second stage and its task, on what both heads put out; every fourth row is an upright image."""
    parts = [arrays[f"{name}_logits"].unflatten(0, (-1, 4)) for name in ("student", "teacher")]
    upright, rotated = [part[:, 0] for part in parts], [part[:, 1:].flatten(0, 1) for part in parts]
    seen = [arrays[f"{name}_ss_feature"].unflatten(0, (-1, 4)) for name in ("student", "teacher")]
    similar = [cosines(part[:, 1:].flatten(0, 1), part[:, 0]) for part in seen]
    task = F.cross_entropy(upright[0], arrays["labels"])
    return 0.1 * task + loss.combined(*upright, *rotated, arrays["labels"], *similar)


def set_up_crd(loss: losses.CRD, arrays: Arrays) -> None:
    """The memories of the case."""
    sizes = arrays["student_embedding"].shape[1], arrays["teacher_embedding"].shape[1]
    loss.materialize(arrays["student_embedding"], len(arrays["memory_student"]), *sizes)
    loss.memory.student.copy_(arrays["memory_student"])
    loss.memory.teacher.copy_(arrays["memory_teacher"])


def crd(loss: losses.CRD, arrays: Arrays) -> Tensor:
    """The contrast with the rows of the case, in the first training step."""
    ours, theirs = loss.vectors(arrays["student_embedding"], arrays["teacher_embedding"])
    loss.after_backward()  # of the pass that sized the parameters
    loss.memory.log_z.fill_(torch.nan)
    return loss.contrast(ours, theirs, arrays["contrast_index"])


def camkd(loss: losses.CAMKDFeatures, arrays: Arrays) -> Tensor:
    """CA-MKD's weighting of the maps of all teachers."""
    names = ("projected_student", "teacher_feature", "student_through_teacher_logits")
    parts = [[value for key, value in arrays.items() if key.startswith(name)] for name in names]
    return weighted(*parts, arrays["labels"])


def rkd(h: dict[str, Any], distance: float = 0.0, angle: float = 0.0) -> Weighted:
    return Weighted((h.get("w_d", distance), losses.RKDDistance()), (h.get("w_a", angle), losses.RKDAngle()))


METHODS: dict[str, Method] = {
    "RKD-distance": Method(partial(rkd, distance=1.0)),
    "RKD-angle": Method(partial(rkd, angle=1.0)),
    "SP": Method(lambda h: losses.SimilarityPreserving()),
    "PKT": Method(lambda h: losses.PKT(h["eps"])),
    "CC": Method(
        lambda h: losses.CorrelationCongruence(width=h["feat_dim"]),
        {
            "embed_s_weight": "embed_student.weight",
            "embed_s_bias": "embed_student.bias",
            "embed_t_weight": "embed_teacher.weight",
            "embed_t_bias": "embed_teacher.bias",
        },
    ),
    "IRG": Method(lambda h: losses.IRG(h["w_graph"], h["w_transform"]), outputs=stages),
    "ITRD": Method(
        lambda h: losses.ITRD(correlation=1.0, mutual=1.0, alpha=h["alpha_it"]),
        {"embed_weight": "embed.weight", "embed_bias": "embed.bias"},
    ),
    "SSKD": Method(
        lambda h: losses.SSKD(
            temperature=h["kd_T"],
            similarity_temperature=h["ss_T"],
            keep_answers=h["ratio_tf"],
            keep_similarities=h["ratio_ss"],
        ),
        compute=sskd,
    ),
    "CRD": Method(
        lambda h: losses.CRD(h["nce_k"], h["nce_t"], h["nce_m"], h["feat_dim"]),
        {
            "embed_s_weight": "embed_student.weight",
            "embed_s_bias": "embed_student.bias",
            "embed_t_weight": "embed_teacher.weight",
            "embed_t_bias": "embed_teacher.bias",
        },
        setup=set_up_crd,
        compute=crd,
    ),
    "CA-MKD-features": Method(lambda h: losses.CAMKDFeatures(), compute=camkd),
}
