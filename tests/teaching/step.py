"""What the tests of teachings share: one training step of a module outside of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdlab import CoTrainer
from kdlab.knowledge import set_taps
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from tests.modules.tiny import digits

START = Progress(0, 0)


class Given(nn.Module):
    """A network with these logits, whatever it is called with."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(logits)

    def forward(self, inputs: Any) -> Tensor:
        return torch.cat([*self.logits])


class Kept(nn.Module):
    """A loss that leaves its teacher in the graph: the mean scalar product of the logits; it keeps what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[Outputs, Outputs, Tensor]] = []

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.read.append((student, teacher, target))
        return (student.logits * teacher.logits).sum(1).mean()


def first_batch_of(data: Any = None) -> Batch:
    """The first training batch, as a step sees it."""
    data = data or digits()
    data.setup()
    batch: Batch = data.prepare(next(iter(data.train_dataloader())), 0)
    return batch


def seen_by(module: CoTrainer, batch: Batch | None = None, progress: Progress = START) -> tuple[Any, Batch]:
    """The outputs of all members in a training step on ``batch``, and the batch."""
    batch = (first_batch_of() if batch is None else batch)._replace(progress=progress)
    set_taps(module.plan, module.knowledge)
    module.train()
    return module.observe(batch), batch


def compared(module: CoTrainer, seen: Any, batch: Batch, name: str = "soft") -> dict[tuple[str, str], Tensor | None]:
    """The loss of each edge with its weight, by the names of student and teacher."""
    knowledge = module.knowledge[name]
    return {edge[:2]: knowledge.compare(edge, loss, seen, batch) for edge, loss in knowledge.edges}


def teachers(module: CoTrainer, seen: Any) -> dict[str, Tensor]:
    """The teacher's logits of each student that has one teacher, by the student's name."""
    assert len({edge.student for edge in module.plan.edges}) == len(module.plan.edges)
    return {edge.student: seen[edge.teacher].logits for edge in module.plan.edges}
