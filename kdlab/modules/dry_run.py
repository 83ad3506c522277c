"""The dry run: one batch before a training sizes adapters and finds everything that cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from kdlab.compat import is_lazy
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge, pair_of, set_taps
from kdlab.losses.context import Context
from kdlab.modules.first_batch import FirstBatch
from kdlab.modules.run_length import RunLength
from kdlab.modules.smallest_batch import try_smallest_batch
from kdlab.modules.term_checks import (
    called,
    check_student,
    checked_term,
    described_loss,
    explained,
    is_backbone,
    no_broadcast,
    readers,
    shape_of,
    shapes_of,
)
from kdlab.optimizers.dot import reaches
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import task_format
from kdlab.schedules import Progress
from kdlab.teaching.plan import Plan


@dataclass
class DryRun:
    """What a dry run found.

    Attributes:
        batches: batches an epoch, on this process; ``None`` if the loader has no length.
        batch_size: samples in the first batch of this process.
        taps: (network, layer, shape) of every tapped layer, logits and embedding included.
        terms: the raw value of the task and of every knowledge.
        idle: names of trainable parameters that no term ever gives a gradient.
        resting: names of those that are without gradient at times, while terms are off or have no teacher yet.
        trainable: names of all trainable parameters.
    """

    batches: int | None
    batch_size: int = 0
    taps: list[tuple[str, str, tuple[int, ...]]] = field(default_factory=list)
    terms: dict[str, float] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)
    resting: list[str] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)


class _LastStep(Progress):
    """The last step of a run, in its first epoch; notes whether its length is read."""

    length: RunLength

    @property
    def total_steps(self) -> int | None:
        """Return the length of the run."""
        self.length.is_read = True
        return self[2]


def dry_run(module: Any, data: FirstBatch) -> DryRun:
    """Run the first batch through a DistillationModule, forward and backward; only the sizes of lazy parts stay.

    Raises:
        InputError: an unknown layer, layers that do not fit, other class counts, labels outside the classes, something
            a loss needs and does not get, a loss that fails, is not finite, or sends no gradient to the student.
    """
    plan: Plan = module.plan
    knowledge: dict[str, Knowledge] = module.knowledge
    for name, own in knowledge.items():
        if not own.is_connected:
            raise InputError(f"Knowledge {name!r} needs a teacher, but none is given.")
    if torch.is_inference_mode_enabled() or any(map(Tensor.is_inference, module.parameters())):
        raise InputError(
            "Weights made under torch.inference_mode() cannot be trained, nor can others under it: build the networks, "
            "and call fit, outside of it."
        )
    length: RunLength = module.length
    steps = None if length.steps is None else max(length.steps, 1)
    progress = _LastStep(0, (steps or 1) - 1, steps)
    progress.length, length.is_read = length, False
    for schedule in (module.task_schedule, *(own.schedule for own in knowledge.values())):
        if schedule is not None:
            schedule(progress)
    batch, result = data.few._replace(progress=progress), DryRun(data.batches, len(data.batch.target))
    set_taps(plan, knowledge, module.task)
    values: dict[str, Tensor] = {}
    constant: dict[str, Tensor] = {}
    with isolate_rng(), torch.enable_grad(), _dry(module, plan):
        torch.set_rng_state(module._random_state)  # adapters begin alike in one process and in several
        seen: dict[str, Outputs] = {}
        for member in plan.members.values():
            member.setup(data.samples)
            name = called(member.name)
            source = f"{name}{readers(plan, knowledge, member)}: "
            with explained(f"{name} fails on inputs {shape_of(batch.inputs)}", source):
                seen |= member(batch, seen)
        classes = getattr(getattr(module.trainer, "datamodule", None), "num_classes", 0)
        with explained(f"The task loss ({type(module.task).__name__}) and its labels"):
            first = seen[next(iter(plan.supervision), plan.students[0])]
            module.form = form = task_format(module.task, first.logits, first.targets(batch), first.mask)
        ignored = form.ignore_index if form.kind == "classes" else None
        may_ignore = ignored is not None and (data.labels is None or bool(data.labels.eq(ignored).any()))
        module.ignore = ignored if may_ignore else None
        module.is_labeled = ignored is None or data.labels is None or not bool(data.labels.eq(ignored).all())
        if not module.is_labeled:
            rank_zero_info("No sample has a label: there is no task loss.")
        for name in plan.students:
            has_task = module.is_labeled and module.task_weight > 0
            check_student(name, seen[name], data.batch.target, classes, form, has_task)
        module.is_labeled &= not all(is_backbone(seen[name]) for name in plan.students)
        for member in plan.members.values():
            if form.kind not in member.kinds or not (member.any_shape or first.logits.dim() == 2):
                raise InputError(
                    f"{called(member.name)} ({type(member).__name__}) combines class scores (B, K), but the task has "
                    f"{form.kind} targets and logits {tuple(first.logits.shape)}."
                )
        for name, own in knowledge.items():
            with explained("", f"Knowledge {name!r}: "):
                own.use_form(form, first, may_ignore)
        tapped = [*plan.students, *(edge.teacher for own in knowledge.values() for edge, _ in own.edges)]
        result.taps = [tap for name in dict.fromkeys(tapped) for tap in shapes_of(name, seen[name])]
        failure = f"The task loss ({type(module.task).__name__}) fails on labels {shape_of(batch.target)}"
        with explained(failure), no_broadcast():
            if (value := module.supervised(seen, batch)) is not None:
                values["task"] = constant["task"] = value
        for name in knowledge:
            _setup(name, module, data, seen)
        for name, own in knowledge.items():
            terms = [(edge, checked_term(name, own, edge, loss, seen, batch, form)) for edge, loss in own.edges]
            if not terms:  # all its edges are cut off
                continue
            values[name] = torch.stack([term for _, term in terms]).sum()
            # A weight that is a function may be 0 in a step, and a bank or a snapshot may have nothing to give yet.
            every_step = [t for e, t in terms if not callable(e.weight) and not plan.owners[e.teacher].is_optional]
            if every_step:
                constant[name] = torch.stack(every_step).sum()
        result.terms = {name: float(value.detach()) for name, value in values.items()}
        result.idle, result.resting = _without_gradient(module, values, constant)
        if module.trainable() and values and not any(value.requires_grad for value in values.values()):
            raise InputError("No term has a gradient: networks run under torch.no_grad() or inference_mode().")
        result.trainable = [*module.trainable()]
        try_smallest_batch(module, data)
    return result


def _setup(name: str, module: Any, data: FirstBatch, seen: Mapping[str, Outputs]) -> None:
    """Set up every copy of a loss for its student and teacher."""
    knowledge: Knowledge = module.knowledge[name]
    plan: Plan = module.plan
    what = described_loss(name, knowledge)
    early = "copies the teacher's classifier at setup" if "teacher_classifier" in knowledge.needs else ""
    if any(knowledge.parts("precompute")):
        early = "runs the teacher on the training set at setup"
    for pair in knowledge.copies:
        edge = next(edge for edge, _ in knowledge.edges if pair_of(edge) == pair)
        teacher = plan.owners[edge.teacher]
        if early and not teacher.is_frozen:
            raise InputError(f"{what} {early} and needs a frozen teacher, but {edge.teacher!r} changes in training.")
        ((student, student_head), *_) = plan.networks_of(pair[0])
        networks = teacher.networks_of(edge.teacher) or plan.networks_of(pair[1])
        context = Context(
            student,
            tuple(network for network, _ in networks),
            knowledge.student_layers,
            knowledge.teacher_layers,
            data.samples,
            data.labels,
            len(data.batch.target) * (module.trainer.world_size if knowledge.gather else 1),
            module.form.rows(seen[edge.student].logits).shape[1],
            {key: other.copies.get(pair, other.loss) for key, other in module.knowledge.items()},
            module.trainer.strategy.root_device,
            teacher.is_frozen,
            student_head,
            networks[0][1] if networks else "",
            module.form,
        )
        for setup in knowledge.parts("setup", pair):
            with explained(f"{what} cannot be set up", f"{what}: "):
                setup(context)


def _without_gradient(
    module: Any, values: Mapping[str, Tensor], constant: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """Find trainable parameters that no term reaches, and those that no term without schedule reaches at every step."""
    parameters = module.trainable()
    factors = {"task": (module.task_weight, module.task_schedule)}
    factors |= {name: (own.weight, own.schedule) for name, own in module.knowledge.items()}

    def reached(terms: Mapping[str, Tensor], scheduled: bool) -> set[str]:
        names = set[str]()
        for name, value in terms.items():
            weight, schedule = factors[name]
            if weight and value.requires_grad and (scheduled or schedule is None):
                hits = reaches(value, list(parameters.values()))
                names |= {parameter for parameter, hit in zip(parameters, hits, strict=True) if hit}
        return names

    ever, always = reached(values, scheduled=True), reached(constant, scheduled=False)
    return [name for name in parameters if name not in ever], [name for name in parameters if name in ever - always]


@contextmanager
def _dry(module: Any, plan: Plan) -> Iterator[None]:
    """Set ``is_dry_run``, train mode of learners, eval mode of losses and teaching; afterwards all is as before."""
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for _, buffer in module.named_buffers() if not is_lazy(buffer)]
    try:
        for member in plan.members.values():
            member.is_dry_run = True
        module.train()
        for part in (module.losses, module.teaching):
            if part is not None:
                part.eval()
        yield
    finally:
        for member in plan.members.values():
            member.is_dry_run = False
        for part in module.modules():
            part.training = modes.get(part, True)  # an adapter's own parts may be new
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
