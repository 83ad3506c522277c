"""What a loss can ask of a run once, before the first step: networks, data and the other losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.outputs import heads_of, layer_names

_Loss = TypeVar("_Loss", bound=nn.Module)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Context:
    """The run as a loss sees it in ``setup(context)``, which it may define; it keeps what it needs of it.

    ``setup`` is called at the start of every fit, before the loss' first ``forward`` and before a checkpoint is
    loaded, so it must leave alone what was learnt. What it keeps of the teacher belongs into non-persistent buffers
    (``register_buffer(name, value, persistent=False)``): they move with the loss and stay out of checkpoints. What it
    keeps of the student is no part of the loss: hold it in a tuple, so that it is not registered twice.

    Attributes:
        student: the network that learns.
        teachers: the networks that teach; one, or several of an ensemble.
        student_layers: names of the layers that this loss reads on the student's side.
        teacher_layers: the same on the teacher's side.
        samples: size of the training set; ``None`` if the loader does not say.
        labels: (samples,) int64, the label of every training sample by its index; ``None`` if unknown.
        batch_size: samples in a full batch of one process; ``None`` if unknown.
        classes: number of classes, the width of the student's logits.
        losses: all losses of the run, by the name of their knowledge.
        device: where the training will run; the networks may be elsewhere until then.
        fixed: whether the teachers stay as they are during the training.
        student_head, teacher_head: which output of a network with several is meant, see
            :func:`kdlab.outputs.heads_of`.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    samples: int | None = None
    labels: Tensor | None = None
    batch_size: int | None = None
    classes: int = 0
    losses: Mapping[str, nn.Module] = field(default_factory=dict)
    device: torch.device = _CPU
    fixed: bool = True
    student_head: str = ""
    teacher_head: str = ""

    @property
    def teacher(self) -> nn.Module:
        """The only teacher.

        Raises:
            InputError: there are several, or none that is fixed.
        """
        if not self.fixed:
            raise InputError(
                "This loss looks at the teacher before the first step, which says nothing of a teacher that still "
                "learns: use it with a frozen teacher."
            )
        if len(self.teachers) != 1:
            raise InputError(f"This loss needs one teacher, not an ensemble of {len(self.teachers)}.")
        return self.teachers[0]

    def classifier(self, of: Literal["student", "teacher"], number: int | None = None) -> nn.Linear:
        """The linear layer that reads the embedding; ``number`` picks one of several teachers.

        Raises:
            InputError: there is none.
        """
        network = self.student if of == "student" else self.teacher if number is None else self.teachers[number]
        head = self.student_head if of == "student" else self.teacher_head
        found = heads_of(network)[head].classifier
        if not isinstance(found, nn.Linear):
            raise InputError(
                f"This loss needs the {of}'s classifier, but {type(network).__name__} has no linear layer to read its "
                "embedding."
            )
        return found

    def layer(self, of: Literal["student", "teacher"], name: str) -> nn.Module:
        """A layer by name.

        Raises:
            InputError: the network has no such layer.
        """
        network, head = (self.student, self.student_head) if of == "student" else (self.teacher, self.teacher_head)
        layers, name = layer_names(network), heads_of(network)[head].layer(name)
        if name not in layers:
            near = nearest(name, layers)
            raise InputError(f"{type(network).__name__} has no layer {name!r}; the nearest names are {near}.")
        return layers[name]

    def loss(self, name: str, kind: type[_Loss]) -> _Loss:
        """Another knowledge's loss, where one stage of a method builds on another.

        Raises:
            InputError: there is none of that name and kind.
        """
        found = self.losses.get(name)
        if not isinstance(found, kind):
            raise InputError(f"This loss needs a knowledge named {name!r} whose loss is {kind.__name__}.")
        return found


def copied(tensor: Tensor | None) -> Tensor | None:
    """A detached copy, for a buffer."""
    with torch.inference_mode(False), torch.no_grad():
        return None if tensor is None else tensor.detach().clone()
