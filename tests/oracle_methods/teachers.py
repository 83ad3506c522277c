"""The methods of the oracle file with several teachers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlab import losses
from kdlab.knowledge import Knowledge
from kdlab.members.member import Learner
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from kdlab.teaching import Ensemble, FrozenTeacher, MeanOfLosses
from tests.oracle_methods.method import Arrays, Method


class Fixed(nn.Module):
    """A teacher that always gives these logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Any) -> Tensor:
        return self.logits


def ensemble_loss(ensemble: Ensemble, knowledge: Knowledge, arrays: Arrays) -> Tensor:
    """The loss to the teachers of ``arrays``, computed as in a training step."""
    teachers = [Fixed(value.detach()) for name, value in arrays.items() if name.startswith("teacher_logits")]
    student, labels = Outputs(arrays["student_logits"]), arrays["labels"]
    batch = Batch(torch.zeros(len(labels), 1), labels, progress=Progress(0, 0))
    plan = FrozenTeacher(teachers, ensemble=ensemble).plan({"student": Learner("student", nn.Identity())})
    seen = {"student": student}
    for member in plan.frozen:
        seen |= member(batch, seen)
    (edge,) = plan.edges
    value = knowledge.compare(edge, knowledge.loss, seen, batch)
    assert value is not None
    return value


METHODS: dict[str, Method] = {
    "multi-teacher-logits": Method(
        lambda h: losses.SoftTargets(h["T"]),
        compute=lambda loss, arrays: ensemble_loss(MeanOfLosses(), Knowledge(loss), arrays),
    ),
}
