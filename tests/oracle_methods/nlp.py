"""The methods of the oracle file for encoders of text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method


def layers(arrays: Arrays, name: str) -> list[Tensor]:
    """The arrays ``NAME_0``, ``NAME_1``, and so on, in order."""
    return [arrays[f"{name}_{i}"] for i in range(sum(key.startswith(f"{name}_") for key in arrays))]


def tapped(layers: list[Tensor], mask: Tensor | None = None) -> Outputs:
    return Outputs(layers[0].new_zeros(len(layers[0]), 1), tuple(layers), mask=mask)


def entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """The entropy of the rows of logits that count, the mean: what a cross-entropy has more than a divergence."""
    log_p = logits.detach().log_softmax(-1)
    rows = -(log_p.exp() * log_p).sum(-1)
    return (rows if mask is None else rows[mask.bool()]).mean()


class TinyBERT(nn.Module):
    """Attention, hidden states and prediction, as the released script maps the layers."""

    def __init__(self, padded: int) -> None:
        super().__init__()
        self.padded = padded
        self.attention, self.hidden = losses.TinyBERTAttention(), losses.TinyBERTHidden()
        self.prediction = losses.ForwardKL()

    def forward(self, arrays: Arrays) -> Tensor:
        ours, theirs = (layers(arrays, f"{side}_attention") for side in ("student", "teacher"))
        block = len(theirs) // len(ours)
        scores = [tapped([self.pad(x) for x in side]) for side in (ours, theirs[block - 1 :: block])]
        hidden = [layers(arrays, f"{side}_hidden") for side in ("student", "teacher")]
        hidden[1] = hidden[1][::block]
        student, teacher = arrays["student_logits"], arrays["teacher_logits"].detach()
        prediction = self.prediction(Outputs(student), Outputs(teacher), torch.zeros(1)) + entropy(teacher)
        none = torch.zeros(1)
        value: Tensor = self.attention(*scores, none) + self.hidden(*map(tapped, hidden), none)
        return value + prediction / student.shape[-1]  # the released mean is over classes too

    def pad(self, scores: Tensor) -> Tensor:
        padding = scores.new_zeros(scores.shape[-1])
        padding[len(padding) - self.padded :] = -10000.0
        return scores + padding


class DistilBERT(nn.Module):
    """The parts of the triple loss that read the teacher."""

    def __init__(self, h: dict[str, Any]) -> None:
        super().__init__()
        self.weights = h["alpha_ce"], h["alpha_cos"]
        self.parts = losses.ForwardKL(h["T"], positions="attended"), losses.HiddenCosine()

    def forward(self, arrays: Arrays) -> Tensor:
        student, teacher = (
            Outputs(arrays[f"{side}_logits"], (arrays[f"{side}_hidden"],), mask=arrays["attention_mask"])
            for side in ("student", "teacher")
        )
        parts = [w * part(student, teacher, torch.zeros(1)) for w, part in zip(self.weights, self.parts, strict=True)]
        return torch.stack(parts).sum()


def states(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """Queries, keys and values of both networks, and the student's mask if there is one."""
    mask = arrays.get("attention_mask", arrays.get("mask"))
    student, teacher = (
        tapped([arrays[f"{side}_{name}"] for name in ("query", "key", "value")], mask)
        for side in ("student", "teacher")
    )
    return student, teacher


METHODS: dict[str, Method] = {
    "TinyBERT": Method(
        lambda h: TinyBERT(h.get("key_positions_masked", 0)),
        {f"fit_dense_{part}": f"hidden.projections.0.{part}" for part in ("weight", "bias")},
        compute=lambda loss, arrays: loss(arrays),
    ),
    "DistilBERT": Method(DistilBERT, compute=lambda loss, arrays: loss(arrays)),
    "MiniLM-v1": Method(lambda h: losses.MiniLM(h["shapes"]["student_query"][1]), outputs=states),
    "MiniLM-v2": Method(lambda h: losses.MiniLMv2(h["relation_heads"]), outputs=states),
}
