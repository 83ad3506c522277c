"""Checks of the dry run on one term and one student, and how their messages name networks, losses and shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kdlab.errors import InputError, form_of
from kdlab.knowledge import Knowledge
from kdlab.members.member import Member
from kdlab.optimizers.dot import reaches
from kdlab.outputs import Batch, Outputs
from kdlab.outputs.task_format import TaskFormat
from kdlab.teaching.plan import Edge, Plan


def checked_term(
    name: str,
    knowledge: Knowledge,
    edge: Edge,
    loss: nn.Module,
    seen: Mapping[str, Outputs],
    batch: Batch,
    form: TaskFormat,
) -> Tensor:
    """Return the loss of one edge, checked."""
    student, teacher = seen[edge.student], seen[edge.teacher]
    what = described_loss(name, knowledge)
    target = student.targets(batch)
    if missing := knowledge.missing(student, target if knowledge.form is None else form.targets(target)):
        raise InputError(f"{what} needs {missing}.")
    if missing := knowledge.missing_of(teacher):
        raise InputError(f"{what} needs {missing}, but {called(edge.teacher).lower()} gives none.")
    if knowledge.reads_logits and not knowledge.reads_sequences and student.logits.shape != teacher.logits.shape:
        widths = [form.rows(each.logits).shape[1] for each in (student, teacher)]
        raise InputError(
            f"{what} compares class scores, but the student gives {widths[0]} classes and the teacher {widths[1]}: "
            "give both the same num_classes."
            if widths[0] != widths[1]
            else f"{what} compares logits, but the student gives {tuple(student.logits.shape)} and the teacher "
            f"{tuple(teacher.logits.shape)}."
        )
    layers = student.only(knowledge.student_layers), teacher.only(knowledge.teacher_layers)
    shapes = [[layer.shape for layer in side.layers] for side in layers]
    fix = "; bring both to one shape, as kdlab.losses.Hint does with a trained regressor"
    sides = [described(side, knowledge.needs) for side in layers]
    failure = f"{what} fails on student {sides[0]}, teacher {sides[1]}"
    with explained(failure, f"{what}: ", fix if shapes[0] != shapes[1] else ""), no_broadcast():
        value = knowledge.compare(edge, loss, seen, batch)
        if value is None and callable(edge.weight):  # it weighs 0 on these samples
            value = knowledge.compare(edge._replace(weight=1.0), loss, seen, batch)
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{what} must give one number as a tensor, but gives {got}: average it.")
    if not value.isfinite():
        raise InputError(f"{what} is {value.item()} on the first batch.")
    sources = [tensor for tensor in student.tensors() if tensor.requires_grad]
    if knowledge.reads_student and sources and not (value.requires_grad and any(reaches(value, sources))):
        raise InputError(
            f"{what} sends no gradient to the student: it detaches the student's side (detach, no_grad, argmax)."
        )
    return value


def is_backbone(outputs: Outputs) -> bool:
    """Return whether outputs are those of a network without a classifier."""
    return outputs.embedding is not None and outputs.embedding is outputs.logits


def check_student(
    name: str, outputs: Outputs, target: Tensor, data_classes: int, form: TaskFormat, has_task: bool
) -> None:
    """Check that a student's taps carry gradient and that labels are among its classes."""
    for layer, value in zip(outputs.names, outputs.layers, strict=True):
        if not value.requires_grad:
            raise InputError(
                f"Layer {layer!r} of the {name} carries no gradient: it is frozen, or activation checkpointing runs it "
                "with use_reentrant=True (use_reentrant=False works)."
            )
    classes = form.rows(outputs.logits).shape[1]
    if form.kind != "classes":
        return
    target = target[target != form.ignore_index]
    if not target.numel():
        return
    if is_backbone(outputs):
        if has_task:
            raise InputError(
                f"The {name} has no classifier, but the data has labels: set its num_classes (the data has "
                f"{data_classes or 'some'}), or model.task_weight=0."
            )
        return
    low, high = int(target.min()), max(int(target.max()), data_classes - 1)
    if low < 0 or high >= classes:
        raise InputError(
            f"The labels go from {low} to {high}, but the {name} has {classes} classes (0 to {classes - 1})."
        )


@contextmanager
def no_broadcast() -> Iterator[None]:
    """Make an error of the warning that torch's own losses give where they broadcast shapes that differ."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Using a target size")
        yield


@contextmanager
def explained(failure: str, source: str = "", help_: str = "") -> Iterator[None]:
    """Turn any exception into an InputError of one line; an InputError keeps its own text."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}{error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{failure}: {lines[0].rstrip('.')}{help_}.") from error


def called(name: str) -> str:
    """Return how messages call a member: the only student and the only teacher by their roles."""
    return f"The {name}" if name in ("student", "teacher") else f"Network {name!r}"


def readers(plan: Plan, knowledge: Mapping[str, Knowledge], member: Member) -> str:
    """Return which knowledge reads layers of a member, as a part of a message."""
    names = [
        name
        for name, own in knowledge.items()
        for edge, _ in own.edges
        if (own.student_layers and plan.owners[edge.student] is member)
        or (own.teacher_layers and plan.owners[edge.teacher] is member)
    ]
    listed = ", ".join(map(repr, dict.fromkeys(names)))
    return f", whose layers knowledge {listed} reads" if names else ""


def described_loss(name: str, knowledge: Knowledge) -> str:
    """Return how messages call the loss of a knowledge."""
    return f"Knowledge {name!r} ({type(knowledge.loss).__name__})"


def shape_of(value: Any) -> str:
    """Return shape and dtype of inputs as text; of what is no tensor its form."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping) and value:
        return ", ".join(f"{name} {shape_of(part)}" for name, part in value.items())
    return form_of(value)


def shapes_of(name: str, outputs: Outputs) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return (network, part, shape of one sample) of taps, logits and embedding."""
    layers = zip(outputs.names, outputs.layers, strict=True)
    parts = [*layers, ("logits", outputs.logits), ("embedding", outputs.embedding)]
    if is_backbone(outputs):
        parts = [*layers, ("embedding (its output: there is no classifier)", outputs.embedding)]
    return [(name, layer, tuple(value.shape[1:])) for layer, value in parts if value is not None]


def described(outputs: Outputs, needs: Sequence[str]) -> str:
    """Return what a loss reads of one side, with shapes, as text: the taps, and the logits and embedding it declares.

    Without a declaration (``needs`` is empty) these are the taps, or logits and embedding where there are none.
    """
    parts = [*zip(outputs.names, outputs.layers, strict=True)]
    undeclared = not needs and not parts
    if "logits" in needs or undeclared:
        parts.append(("logits", outputs.logits))
    tapped = outputs.names and "layers" not in needs  # one layer stands for the embedding
    if outputs.embedding is not None and (undeclared or ({"embedding", "teacher_embedding"} & {*needs} and not tapped)):
        parts.append(("embedding", outputs.embedding))
    return ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in parts or [("logits", outputs.logits)])
