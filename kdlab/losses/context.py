"""The run as a loss sees it at setup: networks, data and the other losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.outputs import heads_of, layer_names, split_call
from kdlab.outputs.task_format import CLASS_SCORES, TaskFormat

_Loss = TypeVar("_Loss", bound=nn.Module)
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Context:
    """The run that a loss receives in its optional method ``setup(context)``.

    ``setup`` is called at the start of every fit, before the first ``forward`` and before a checkpoint is loaded, so it
    must not change trained values. A loss stores teacher tensors in non-persistent buffers
    (``register_buffer(name, value, persistent=False)``): they move with the loss and stay out of checkpoints. It stores
    student modules in a tuple, so that they are not registered twice.

    Attributes:
        student: the student.
        teachers: the teacher, or the teachers of an ensemble.
        student_layers: names of the student layers that this loss reads.
        teacher_layers: names of the teacher layers that this loss reads.
        samples: size of the training set; ``None`` if the loader has no length.
        labels: (samples,) int64, the label of every training sample by index; ``None`` if unknown.
        batch_size: samples in a full batch of one process, or of all where they are gathered; ``None`` if unknown.
        classes: number of classes, the width of the student's logits.
        losses: all losses of the run, by the name of their knowledge.
        device: device of the training; the networks may be on another one before it.
        fixed: whether the teachers are frozen.
        student_head: name of the output head that is compared, see :func:`kdlab.outputs.heads_of`.
        teacher_head: the same for the teacher.
        form: what logits and targets of the task mean.
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
    form: TaskFormat = CLASS_SCORES

    @property
    def teacher(self) -> nn.Module:
        """Return the only teacher.

        Raises:
            InputError: there are several teachers, or they are not frozen.
        """
        if not self.fixed:
            raise InputError(
                "This loss reads the teacher's weights at setup, but the teacher is trained: use it with a frozen "
                "teacher."
            )
        if len(self.teachers) != 1:
            raise InputError(f"This loss needs one teacher, not an ensemble of {len(self.teachers)}.")
        return self.teachers[0]

    def classifier(self, of: Literal["student", "teacher"], number: int | None = None) -> nn.Linear:
        """Return the linear layer on the embedding; ``number`` picks one of several teachers.

        Raises:
            InputError: there is none.
        """
        network = self.student if of == "student" else self.teacher if number is None else self.teachers[number]
        head = self.student_head if of == "student" else self.teacher_head
        layer = heads_of(network)[head].classifier
        if not isinstance(layer, nn.Linear):
            raise InputError(
                f"This loss needs the {of}'s classifier, but {type(network).__name__} has none on its embedding."
            )
        return layer

    def layer(self, of: Literal["student", "teacher"], name: str) -> nn.Module:
        """Return a layer by its name, or by the name of one of its calls.

        Raises:
            InputError: the network has no such layer.
        """
        network, head = (self.student, self.student_head) if of == "student" else (self.teacher, self.teacher_head)
        layers, name = layer_names(network), heads_of(network)[head].layer(split_call(name)[0])
        if name not in layers:
            near = nearest(name, layers)
            raise InputError(f"{type(network).__name__} has no layer {name!r}; the nearest names are {near}.")
        return layers[name]

    def loss(self, name: str, kind: type[_Loss]) -> _Loss:
        """Return the loss of another knowledge, for methods with several stages.

        Raises:
            InputError: there is none of that name and class.
        """
        loss = self.losses.get(name)
        if not isinstance(loss, kind):
            raise InputError(f"This loss needs a knowledge named {name!r} whose loss is {kind.__name__}.")
        return loss


def copied(tensor: Tensor | None) -> Tensor | None:
    """Return a detached copy, for a buffer."""
    with torch.inference_mode(False), torch.no_grad():
        return None if tensor is None else tensor.detach().clone()
