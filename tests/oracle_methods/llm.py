"""The methods of the oracle file for language models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdlab import losses
from kdlab.losses.tokens import TokenLoss
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method
from tests.oracle_methods.nlp import entropy


def tokens(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """Both networks' token logits, and which tokens count."""
    student, teacher = (Outputs(arrays[f"{side}_logits"], mask=arrays.get("keep")) for side in ("student", "teacher"))
    return student, teacher


def value(loss: TokenLoss, arrays: Arrays) -> Tensor:
    """The loss, with the teacher's entropy where the released code has the cross-entropy."""
    got: Tensor = loss(*tokens(arrays), torch.zeros(1))
    forward = isinstance(loss, losses.ForwardKL) or (isinstance(loss, losses.SkewKL) and loss.direction == "forward")
    return got + entropy(arrays["teacher_logits"], arrays.get("keep")) if forward else got


def is_reverse(h: dict[str, Any]) -> bool:
    return "reverse" in h["symbol"]


def sequences(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """Both networks with the labels of their own answers, whose first token the prompt's last position predicts."""
    sides = []
    for side in ("student", "teacher"):
        logits, prompts = arrays[f"{side}_logits"], arrays[f"{side}_prompt_length"]
        place = torch.arange(logits.shape[1])
        answered = (place >= prompts[:, None] - 1) & (place < logits.shape[1] - 1)
        sides.append(Outputs(logits, target=torch.where(answered, 0, -100)))
    return sides[0], sides[1]


def uld_labels(arrays: Arrays) -> Tensor:
    target = sequences(arrays)[0].target
    assert target is not None
    return target


METHODS: dict[str, Method] = {
    "GKD-JSD": Method(lambda h: losses.GeneralizedJSD(h["beta"], h["temperature"]), outputs=tokens),
    "skew-KL": Method(lambda h: losses.SkewKL(h["lam"], "reverse" if is_reverse(h) else "forward"), compute=value),
    "token-KL": Method(lambda h: losses.ReverseKL() if is_reverse(h) else losses.ForwardKL(), compute=value),
    "ULD": Method(
        lambda h: losses.ULD(h["student_temperature"], h["teacher_temperature"]), outputs=sequences, target=uld_labels
    ),
}
