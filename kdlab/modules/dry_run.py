"""One dry batch before a training: adapters get their sizes, and what cannot work is said in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdlab.errors import InputError
from kdlab.losses.context import Context
from kdlab.modules.first_batch import TrainingData, training_data
from kdlab.modules.gradient_split import reaches
from kdlab.modules.step import taught
from kdlab.outputs import Batch, Observer, Outputs, heads_of
from kdlab.teaching import Lesson

if TYPE_CHECKING:
    from kdlab.modules.base import DistillationModule


@dataclass
class Rehearsal:
    """What a dry batch showed.

    Attributes:
        batches: batches an epoch, on this process; ``None`` if the loader has no length.
        taps: (network, layer, shape) of every tapped layer, logits and embedding included.
        terms: the raw value of the task and of every knowledge.
        idle: names of trainable parameters that no term ever gives a gradient.
        resting: names of those that are without gradient at times, because schedules switch their terms off.
    """

    batches: int | None
    taps: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)


def rehearse(module: DistillationModule) -> Rehearsal:
    """Run one batch through everything, forward and backward, and leave no trace but the adapters' sizes.

    Raises:
        InputError: an unknown layer, layers that do not fit, other class counts, labels outside the classes, something
            a loss needs and does not get, a loss that fails, is not finite, or sends no gradient to the student.
    """
    data = training_data(module)
    batch, result = data.few, Rehearsal(data.batches)
    teaching = module.teaching
    if module.knowledge and teaching is None:
        raise InputError(f"Knowledge {', '.join(map(repr, module.knowledge))} needs a teacher, but none is given.")
    student_layers = [name for each in module.knowledge.values() for name in each.student_layers]
    if teaching is not None and not teaching.fixed:  # its teachers are learners, or copies of them
        student_layers += [
            *teaching.reads,
            *(name for each in module.knowledge.values() for name in each.teacher_layers),
        ]
    module._observers = {name: Observer(network, student_layers) for name, network in module.learners.items()}
    if teaching is not None:
        every = module.knowledge.values()
        tapped = [name for each in every for name in each.teacher_layers]
        teaching.listen(tapped, bool(tapped) and all(each.reads_only_layers for each in every))
    values: dict[str, Tensor] = {}
    with isolate_rng(), torch.enable_grad(), _unchanged(module):
        with _explained(f"The student fails on inputs {_shape(batch.inputs)}"):
            outputs = module.observe(batch)
        for name, seen in outputs.items():
            _check_learner(
                name, seen, data.batch.target, getattr(getattr(module.trainer, "datamodule", None), "num_classes", 0)
            )
            result.taps += _shapes(name, seen)
        with _explained(f"The task loss ({type(module.task).__name__}) fails on labels {_shape(batch.target)}"):
            answers = [module.task(x.logits, x.target) * x.weight for x in module.answers(outputs, batch)]
            values["task"] = torch.stack(answers).sum()
        if teaching is not None:
            teaching.prepare(outputs, data.samples)
        lessons: list[Lesson] = []
        if module.knowledge:
            assert teaching is not None
            with _explained(f"The teacher fails on inputs {_shape(batch.inputs)}"), teaching.rehearsing():
                lessons = module.lessons(outputs, batch)
            result.taps += _shapes("teacher", lessons[0].teacher)
            _setup(module, data, outputs, lessons)
        for name in module.knowledge:
            values[name] = torch.stack([_term(module, name, x, outputs, batch) * x.weight for x in lessons]).sum()
        result.terms = {name: float(value.detach()) for name, value in values.items()}
        _find_gradients(module, values, result)
    return result


def _setup(
    module: DistillationModule, data: TrainingData, outputs: Mapping[str, Outputs], lessons: Sequence[Lesson]
) -> None:
    """Tell the losses what they ask of the run: every copy of a loss of the two that it is for."""
    teaching = module.teaching
    assert teaching is not None
    losses = {name: each.loss for name, each in module.knowledge.items()}
    for key, each in module.knowledge.items():
        what = f"Knowledge {key!r} ({type(each.loss).__name__})"
        surveys = "looks with the teacher at the training set" if any(each.parts("precompute")) else ""
        early = "takes over the teacher's classifier" if "teacher_classifier" in each.needs else surveys
        if early and not teaching.fixed:
            raise InputError(
                f"{what} {early} before the first step, which makes no sense while the teacher still learns "
                f"({type(teaching).__name__}): use it with a frozen teacher."
            )
        for pair in dict.fromkeys((x.learner, x.source) for x in lessons):
            student, student_head = _network(module, pair[0])
            teachers: tuple[nn.Module, ...] = tuple(x.network for x in teaching.observers)
            teacher_head = ""
            if not teaching.fixed:
                own, (peer, teacher_head) = teaching.network(pair[1]), _network(module, pair[1])
                teachers = (own or peer,) if own or pair[1] in outputs else ()
            context = Context(
                student,
                teachers,
                each.student_layers,
                each.teacher_layers,
                data.samples,
                data.labels,
                len(data.batch.target),
                _classes(outputs[pair[0]]),
                losses,
                module.trainer.strategy.root_device,
                teaching.fixed,
                student_head,
                teacher_head,
            )
            for setup in each.parts("setup", pair):
                with _explained(f"{what} cannot be set up", f"{what}: "):
                    setup(context)


def _network(module: DistillationModule, learner: str) -> tuple[nn.Module, str]:
    """The network of a learner, and which of its heads it is."""
    for name, network in module.learners.items():
        for head in heads_of(network):
            if learner == (f"{name}_{head}" if head else name):
                return network, head
    return next(iter(module.learners.values())), ""


def _term(
    module: DistillationModule, name: str, lesson: Lesson, outputs: Mapping[str, Outputs], batch: Batch
) -> Tensor:
    knowledge, teacher = module.knowledge[name], lesson.teacher
    student, target = taught(lesson, outputs, batch)
    what = f"Knowledge {name!r} ({type(knowledge.loss).__name__})"
    if missing := knowledge.missing(student, target):
        raise InputError(f"{what} needs {missing}.")
    if missing := knowledge.missing_of(teacher):
        raise InputError(f"{what} needs {missing}, but {type(module.teaching).__name__} gives none.")
    if knowledge.reads_logits and student.logits.shape != teacher.logits.shape:
        raise InputError(
            f"{what} compares class scores, but the student gives {_classes(student)} classes and the teacher "
            f"{_classes(teacher)}: give both the same num_classes."
        )
    ours, theirs = student.only(knowledge.student_layers), teacher.only(knowledge.teacher_layers)
    differ = [each.shape for each in ours.layers] != [each.shape for each in theirs.layers]
    fix = "; bring both to one shape, as kdlab.losses.Hint does with a trained regressor" if differ else ""
    failure = f"{what} fails on student {_described(ours)}, teacher {_described(theirs)}"
    with _explained(failure, f"{what}: ", fix), warnings.catch_warnings():
        # torch's own losses broadcast shapes that differ with no more than a warning
        warnings.filterwarnings("error", "Using a target size")
        value = knowledge.compare(student, teacher, target, (lesson.learner, lesson.source))
    if not isinstance(value, Tensor) or value.dim() != 0:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{what} must give one number as a tensor, but gives {got}: average it.")
    if not value.isfinite():
        raise InputError(f"{what} is {value.item()} on the first batch.")
    sources: list[Tensor] = []
    student.map(lambda each: sources.append(each) or each)  # type: ignore[func-returns-value]
    sources = [each for each in sources if each.requires_grad]
    if knowledge.reads_student and sources and not (value.requires_grad and any(reaches(value, sources))):
        raise InputError(
            f"{what} sends no gradient to the student: it cuts the student's side off (detach, no_grad, argmax)."
        )
    return value


def _check_learner(name: str, seen: Outputs, target: Tensor, data_classes: int) -> None:
    for layer, value in zip(seen.names, seen.layers, strict=True):
        if not value.requires_grad:
            raise InputError(
                f"Layer {layer!r} of the {name} carries no gradient: it is frozen, or activation checkpointing runs it "
                "with use_reentrant=True (use_reentrant=False works)."
            )
    classes = _classes(seen)
    if target.is_floating_point() or seen.logits.dim() != 2 or not target.numel():
        return
    low, high = int(target.min()), max(int(target.max()), data_classes - 1)
    if low < 0 or high >= classes:
        raise InputError(
            f"The labels go from {low} to {high}, but the {name} has {classes} classes (0 to {classes - 1})."
        )


def _find_gradients(module: DistillationModule, values: Mapping[str, Tensor], result: Rehearsal) -> None:
    """Which trainable parameters no term reaches, and which only terms that a schedule can switch off."""
    weights = {"task": (module.task_weight, module.task_schedule)}
    weights |= {name: (each.weight, each.schedule) for name, each in module.knowledge.items()}
    parameters = module.trainable()
    ever, always = set[str](), set[str]()
    for name, value in values.items():
        weight, schedule = weights[name]
        if weight and value.requires_grad:
            hit = {p for p, got in zip(parameters, reaches(value, list(parameters.values())), strict=True) if got}
            ever |= hit
            always |= hit if schedule is None else set()
    result.idle = [name for name in parameters if name not in ever]
    result.resting = [name for name in parameters if name in ever - always]


@contextmanager
def _explained(failure: str, source: str = "", help_: str = "") -> Iterator[None]:
    """Any exception as an InputError of one line; an InputError keeps its own sentence."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}{error}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{failure}: {lines[0].rstrip('.')}{help_}.") from error


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Learners in train mode, losses and teaching in eval mode; afterwards every mode and buffer is as before."""
    still = [module.get_submodule("losses"), getattr(module, "teaching", None) or nn.Module()]
    modes = {each: each.training for each in module.modules()}
    buffers = [
        (buffer, buffer.clone())
        for name, buffer in module.named_buffers()
        if not name.startswith("teacher.") and not is_lazy(buffer)
    ]
    try:
        module.train()
        for each in still:
            each.eval()
        yield
    finally:
        for each in module.modules():
            each.training = modes.get(each, True)  # an adapter's own parts may be new
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _classes(outputs: Outputs) -> int:
    return outputs.logits.shape[-1]


def _shape(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shape(each)}" for name, each in value.items())
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _shapes(network: str, seen: Outputs) -> list[tuple[str, str, tuple[int, ...]]]:
    parts = [*zip(seen.names, seen.layers, strict=True), ("logits", seen.logits), ("embedding", seen.embedding)]
    return [(network, name, tuple(value.shape[1:])) for name, value in parts if value is not None]


def _described(seen: Outputs) -> str:
    parts = [*zip(seen.names, seen.layers, strict=True)] or [("logits", seen.logits)]
    return ", ".join(f"{name!r} {tuple(value.shape)}" for name, value in parts)
