"""One dry batch before a training: adapters get their sizes, and what cannot work is said in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, Outputs

if TYPE_CHECKING:
    from kdlab.modules.base import DistillationModule

SAMPLES = 8
"""How many samples of the first batch a rehearsal looks at."""


@dataclass
class Rehearsal:
    """What a dry batch showed.

    Attributes:
        batches: batches an epoch, on this process; ``None`` if the loader has no length.
        taps: (network, layer, shape) of every tapped layer, logits and embedding included.
        terms: the raw value of the task and of every knowledge.
        idle: names of trainable parameters that got no gradient from any term.
    """

    batches: int | None
    taps: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)


def first_batch(module: DistillationModule) -> tuple[Batch, int | None]:
    """The first few training samples as the module will get them, and the loader's length; no random state is used up."""
    trainer = module.trainer
    with isolate_rng():
        loader = trainer.fit_loop._data_source.dataloader()
        raw = next(iter(loader), None)
        if raw is None:
            raise InputError("The training loader yields no batch: the data set is empty or smaller than one batch.")
        batch = Batch.of(module._apply_batch_transfer_handler(raw))
    few = Batch(_few(batch.inputs), batch.target[:SAMPLES], None if batch.index is None else batch.index[:SAMPLES])
    return few, len(loader) if hasattr(loader, "__len__") else None


def rehearse(module: DistillationModule, first: tuple[Batch, int | None]) -> Rehearsal:
    """Run one batch through everything, forward and backward, and leave no trace but the adapters' sizes.

    Raises:
        InputError: an unknown layer, layers that do not fit, other class counts, labels outside the classes, something a loss
            needs and does not get, a loss that fails, is not finite, or sends no gradient to the student.
    """
    batch, batches = first
    result = Rehearsal(batches)
    teaching = module.teaching
    if module.knowledge and teaching is None:
        raise InputError(f"Knowledge {', '.join(map(repr, module.knowledge))} needs a teacher, but none is given.")
    student_layers = [name for each in module.knowledge.values() for name in each.student_layers]
    module._observers = {name: Observer(network, student_layers) for name, network in module.learners.items()}
    if teaching is not None:
        teaching.listen([name for each in module.knowledge.values() for name in each.teacher_layers])
    with isolate_rng(), torch.enable_grad(), _unchanged(module):
        outputs = module.observe(batch)
        for name, seen in outputs.items():
            _check_learner(name, seen, batch)
            result.taps += _shapes(name, seen)
        values = {"task": sum(module.task(seen.logits, batch.target) for seen in outputs.values())}
        lessons = module.lessons(outputs, batch) if module.knowledge else []
        if lessons:
            result.taps += _shapes("teacher", lessons[0].teacher)
        for name in module.knowledge:
            terms = [_term(module, name, outputs[x.learner], x.teacher, batch.target) * x.weight for x in lessons]
            values[name] = sum(terms)
        result.terms = {name: float(value.detach()) for name, value in values.items()}
        result.idle = _without_gradient(module, values)
    return result


def _term(module: DistillationModule, name: str, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    knowledge = module.knowledge[name]
    what = f"Knowledge {name!r} ({type(knowledge.loss).__name__})"
    if missing := knowledge.missing(student, target):
        raise InputError(f"{what} needs {missing}.")
    if student.logits.shape != teacher.logits.shape and not {"layers", "embedding"} & set(knowledge.needs):
        raise InputError(
            f"{what} compares class scores, but the student gives {_classes(student)} classes and the teacher "
            f"{_classes(teacher)}: give both the same num_classes."
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # torch's losses broadcast with no more than a warning
            value = knowledge.compare(student, teacher, target)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:
        pair = f"student {_described(student, knowledge.student_layers)}, teacher {_described(teacher, knowledge.teacher_layers)}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{what} fails on {pair}: {reason}") from error
    if value.dim() != 0:
        raise InputError(f"{what} must give one number, but gives a tensor of shape {tuple(value.shape)}: average it.")
    if not value.isfinite():
        raise InputError(f"{what} is {value.item()} on the first batch.")
    if not value.requires_grad:
        raise InputError(f"{what} sends no gradient to the student: its layers were detached or checkpointed (use_reentrant=True).")
    return value


def _check_learner(name: str, seen: Outputs, batch: Batch) -> None:
    for layer, value in zip(seen.names, seen.layers, strict=True):
        if not value.requires_grad:
            raise InputError(
                f"Layer {layer!r} of the {name} carries no gradient: it is frozen, or runs under activation checkpointing with "
                "use_reentrant=True (use_reentrant=False works)."
            )
    target, classes = batch.target, _classes(seen)
    if not target.is_floating_point() and seen.logits.dim() == 2 and target.numel():
        low, high = int(target.min()), int(target.max())
        if low < 0 or high >= classes:
            raise InputError(f"The labels go from {low} to {high}, but the {name} has {classes} classes (0 to {classes - 1}).")


def _without_gradient(module: DistillationModule, values: dict[str, Any]) -> list[str]:
    weighty = [value for name, value in values.items() if (module.task_weight if name == "task" else module.knowledge[name].weight)]
    parameters = module.trainable()
    if not weighty or not parameters:
        return list(parameters)
    total = sum(weighty)
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None]


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Learners in train mode and losses in eval mode; afterwards every mode and buffer is as before."""
    losses = module.get_submodule("losses")
    modes = [(each, each.training) for each in module.modules()]
    buffers = [(buffer, buffer.clone()) for name, buffer in module.named_buffers() if not name.startswith("teacher.")]
    try:
        module.train()
        losses.eval()
        yield
    finally:
        for each, mode in modes:
            each.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _few(inputs: Any) -> Any:
    return {k: v[:SAMPLES] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:SAMPLES]


def _classes(outputs: Outputs) -> int:
    return outputs.logits.shape[-1]


def _shapes(network: str, seen: Outputs) -> list[tuple[str, str, tuple[int, ...]]]:
    parts = [*zip(seen.names, seen.layers, strict=True), ("logits", seen.logits), ("embedding", seen.embedding)]
    return [(network, name, tuple(value.shape[1:])) for name, value in parts if value is not None]


def _described(seen: Outputs, layers: tuple[str, ...]) -> str:
    parts = zip(layers, seen.only(layers).layers, strict=True) if layers else [("logits", seen.logits)]
    return ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in parts)
