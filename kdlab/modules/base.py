"""The training step that is the same for every method."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.knowledge import Knowledge, weight_at_least_zero
from kdlab.metrics import StudentVersusTeacher
from kdlab.modules.dry_run import Rehearsal, rehearse
from kdlab.modules.first_batch import every_batch
from kdlab.modules.gradient_split import note_task, splitting
from kdlab.modules.loss_logging import Terms
from kdlab.modules.optimization import check_length, configure
from kdlab.modules.seeding import reseed
from kdlab.modules.setup_checks import ask, be_heard, check_names, tell_ddp
from kdlab.modules.step import compared, indexed, sum_of, times
from kdlab.outputs import Batch, Observer, Outputs, headed
from kdlab.outputs.see import see
from kdlab.schedules import Progress, Schedule
from kdlab.teaching import Answer, Lesson, Teaching
from kdlab.teaching.teaching import all_alike


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimiser of the CIFAR-100 benchmarks: SGD with lr 0.05, momentum 0.9 and weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


class DistillationModule(pl.LightningModule):
    r"""Learners, what they are to learn, and who teaches them.

    Every step runs each learner once on its view of the batch and minimises

    .. math:: w_0(t) \sum_l task(z^l, y) + \sum_k w_k(t) \sum_{lessons} weight \cdot loss_k(student, teacher, y).

    Subclasses give ``learners`` (by name, registered as modules of their own) and ``teaching``; everything else is
    here.
    """

    teaching: Teaching | None
    """Who teaches whom; ``None`` is plain training on the labels."""

    def __init__(
        self,
        knowledge: Mapping[str, Knowledge] | None,
        task: nn.Module | None,
        task_weight: float,
        task_schedule: Schedule | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        parameter_groups: Mapping[str, Mapping[str, Any]] | None,
    ) -> None:
        super().__init__()
        self.knowledge = dict(knowledge or {})
        check_names(self.knowledge)
        self.task = task if task is not None else nn.CrossEntropyLoss()
        self.task_weight = weight_at_least_zero(task_weight, "The task weight")
        self.task_schedule = task_schedule
        self.losses = nn.ModuleDict({name: each.loss for name, each in self.knowledge.items()})
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.parameter_groups = {name: dict(options) for name, options in (parameter_groups or {}).items()}
        self.rehearsal: Rehearsal | None = None
        self._seed: int | None = None
        self._ended = False
        self._iterating = False
        self._terms = Terms()
        self._parts: tuple[Tensor | None, Tensor | None] | None = None
        self._metrics = StudentVersusTeacher()
        self.channels_last = self.compile_learners = False
        self._observers: dict[str, Observer] = {}
        self._turn: tuple[str, ...] | None = None

    @property
    def learners(self) -> dict[str, nn.Module]:
        """The networks that are trained, by name."""
        raise NotImplementedError(f"{type(self).__name__} must define learners.")

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the hook that runs here some 40 times a step; nn.Module would look each time whether it is a
        # parameter.
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    # What happens before the first step

    def configure_callbacks(self) -> list[pl.Callback]:
        """The knowledge, as callbacks of the Trainer."""
        return [*self.knowledge.values()]  # Lightning puts them in the place of those of an earlier fit

    def setup(self, stage: str) -> None:
        """Rehearse one batch before a training: sizes adapters, and finds everything that cannot work."""
        for network in self.learners.values():
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
        if stage == "fit":
            be_heard(self.trainer.global_rank)
            ask(self)
            self.rehearsal = rehearse(self)
            tell_ddp(self)
        for network in self.learners.values() if self.compile_learners else ():
            network.compile()

    def on_fit_start(self) -> None:
        """Agree on the seed of all processes, find the tapped layers again (SyncBatchNorm replaces modules), and show
        the training set to the losses that ask for it.
        """
        if self._seed is None or self._ended:
            self._ended = False
            self._seed = self.trainer.strategy.broadcast(torch.initial_seed())
        for each in [*self._observers.values(), *(self.teaching.observers if self.teaching else ())]:
            each.find_layers()
        if self.teaching is not None:
            for knowledge in self.knowledge.values():
                for precompute in knowledge.parts("precompute"):
                    precompute(self.teaching.precompute(every_batch(self)))
        still = {id(module) for module in (self.teaching.modules() if self.teaching else ())}
        if all(module.training or id(module) in still for module in self.modules()):
            # Lightning would warn of the teacher's eval mode, which is meant.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")

    def configure_optimizers(self) -> Any:
        """One optimiser for all trainable parts, the teacher left out, and the scheduler if there is one."""
        return configure(self)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimiser gets, by name: all that are not frozen, as a frozen teacher's are."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    # What is random: a function of (seed, process, epoch, batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed."""
        checkpoint["kdlab_seed"] = self._seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of the run that is resumed."""
        self._seed, self._ended = checkpoint.get("kdlab_seed"), False

    def on_fit_end(self) -> None:
        """The next fit draws anew; a checkpoint saved until then is still of this one."""
        self._ended = True

    def on_train_start(self) -> None:
        """Refuse a learning rate that was planned, in the run that is resumed, for fewer steps than this one takes."""
        check_length(self)
        self._iterating = True

    def on_train_epoch_start(self) -> None:
        """Fix the order in which a user's own shuffling loader (without workers) draws this epoch."""
        self._reseed(-1)
        if self._iterating:  # one draw of iter(loader), which for a fit's first epoch Lightning called before this hook
            torch.empty((), dtype=torch.int64).random_()
            self._iterating = False

    def _reseed(self, batch: int) -> None:
        assert self._seed is not None
        reseed(self.device, self._seed, self.global_rank, self.current_epoch, batch)

    # The step

    def observe(self, batch: Batch) -> dict[str, Outputs]:
        """One forward of every network on its view of the batch, and on those that knowledge and teaching ask for."""
        teaching, names = self.teaching, list(self.learners)
        inputs = teaching.views(batch, names) if teaching else dict.fromkeys(names, batch.inputs)
        further = list(self._further)
        outputs: dict[str, Outputs] = {}
        for name in names:
            with nullcontext() if self._turn is None else torch.set_grad_enabled(name in self._turn):
                outputs |= headed(name, see(self._observers[name], batch._replace(inputs=inputs[name]), further))
        return teaching.gather(outputs, batch) if teaching else outputs

    @property
    def _further(self) -> dict[str, None]:
        """The names of the views that every network runs beside the batch."""
        own = self.teaching.sees if self.teaching else ()
        return dict.fromkeys([*(view for each in self.knowledge.values() for view in each.views), *own])

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Who learns from whom on this batch."""
        assert self.teaching is not None
        lessons = self.teaching.lessons(outputs, batch)
        return [
            x if x.student is not None or x.teacher.index is batch.index else indexed(x, batch.index) for x in lessons
        ]

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """What the labels count for on this batch."""
        teaching = self.teaching
        return teaching.answers(outputs, batch) if teaching else all_alike(outputs, batch)

    def training_step(self, raw: Any, batch_idx: int) -> Tensor:
        """The weighted sum of the task and of all knowledge on one batch."""
        self._reseed(batch_idx)
        batch = Batch.of(raw)
        progress = Progress(self.current_epoch, self.global_step)
        if self.teaching is not None:
            self.teaching.advance(*progress)
        outputs = self.observe(batch)
        terms: dict[str, tuple[Tensor, float]] = {}
        task_weight = self.task_weight * (self.task_schedule(progress) if self.task_schedule else 1.0)
        if task_weight:
            answers = [x for x in self.answers(outputs, batch) if self._learns(x.learner)]
            terms["task"] = sum_of(times(self.task(x.logits, x.target), x.weight) for x in answers), task_weight
        active = {name: w for name, each in self.knowledge.items() if (w := each.weight_at(progress))}
        lessons = [x for x in self.lessons(outputs, batch) if self._learns(x.learner)] if active else []
        for name, weight in active.items() if lessons else ():
            knowledge = self.knowledge[name]
            terms[name] = sum_of(times(compared(knowledge, x, outputs, batch), x.weight) for x in lessons), weight
        if not terms:
            raise InputError(
                f"Nothing is left to learn at epoch {progress.epoch}: the task and all knowledge weigh 0, or there is "
                "no lesson yet."
            )
        weighted = {name: times(value, weight) for name, (value, weight) in terms.items()}
        total = sum_of(weighted.values())
        # One call every N steps: self.log costs 0.25 ms a call, whether or not a logger reads it.
        if every := self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._terms.add(terms, total, outputs, batch.target)
            whole = self._turn is None or self._turn == self.teaching.turns[-1]  # type: ignore[union-attr]
            if (progress.step + 1) % every == 0 and whole and not self.trainer.fit_loop._should_accumulate():
                self.log_dict(self._terms.flush(), on_step=True, on_epoch=False, sync_dist=True)
        if splitting(self):
            apart = [value for name, value in weighted.items() if name != "task"]
            self._parts = weighted.get("task"), sum_of(apart) if apart else None
        if self.teaching is not None:
            self.teaching.remember(outputs, batch)
        return total

    def _learns(self, learner: str) -> bool:
        """Whether a learner is among those whose turn it is."""
        return self._turn is None or any(learner == each or learner.startswith(f"{each}_") for each in self._turn)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The usual step, one after another where the learners take turns; then the teaching follows."""
        teaching = self.teaching
        for self._turn in (teaching.turns if teaching else ()) or (None,):
            super().optimizer_step(*args, **kwargs)
        self._turn = None
        if teaching is not None:
            teaching.after_step(self.learners)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The usual pass; an optimiser that treats the task's gradient apart is told it first."""
        if self._parts is not None and (optimizer := splitting(self)):
            note_task(self, optimizer, *self._parts)
        self._parts = None
        super().backward(loss, *args, **kwargs)

    def on_train_epoch_end(self) -> None:
        """Log what the last steps of the epoch left."""
        if values := self._terms.flush():
            self.log_dict(values, sync_dist=True)

    # What is reported

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Compare the deployed learner with the teacher on one batch."""
        raise NotImplementedError(f"{type(self).__name__} must define validation_step().")

    def forward(self, inputs: Any) -> Any:
        """The deployed learner's own output."""
        raise NotImplementedError(f"{type(self).__name__} must define forward().")
