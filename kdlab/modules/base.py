"""The training step that is the same for every method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import reduce
from operator import add
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlab.compat import CURRENT_HOOK, is_accumulating
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge, set_taps
from kdlab.members.member import Learner, Member
from kdlab.modules import optimization, setup_checks
from kdlab.modules.checkpoint_io import CheckpointedModule, use_atomic_io
from kdlab.modules.dry_run import DryRun, dry_run
from kdlab.modules.early_setup import EarlySetup, restore_callbacks
from kdlab.modules.evaluation import EvaluatedModule
from kdlab.modules.first_batch import first_batch
from kdlab.modules.guards import Guards, scale_and_share
from kdlab.modules.loss_logging import LoggedModule, Terms
from kdlab.modules.monitors import MonitorCheck
from kdlab.modules.position_weights import PositionWeights, takes_several_batches, zero_without_labels
from kdlab.modules.run_length import RunLength
from kdlab.modules.seeding import SeededModule, reseed
from kdlab.modules.sharding import shard
from kdlab.modules.source_checks import check_sources, match_normalization
from kdlab.optimizers import DOT
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress, Schedule
from kdlab.teaching.plan import Plan, Supervised, Teaching, weight_at_least_zero


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """Return the optimizer of the CIFAR-100 benchmarks: SGD with lr 0.05, momentum 0.9 and weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


class DistillationModule(LoggedModule, CheckpointedModule, SeededModule, EvaluatedModule):
    r"""Networks that learn, losses, and a plan of who teaches whom.

    A step runs every member of the plan once, in order, and minimizes

    .. math:: w_0(t) \sum_i a_i \, task(z_i, y) + \sum_k w_k(t) \sum_{edges\ (i, j)} e_{ij} \, loss_k(i, j, y)

    with the supervision a and the edges e of the plan.

    Subclasses register the networks and the teaching. A ``ReduceLROnPlateau`` with mode "max" watches the first of the
    values that are ``shown``.

    Attributes:
        teaching: who teaches whom; ``None`` is plain training on the labels.
        plan: the members, edges and supervision.
        lr: replaces the optimizer's learning rate, also that of groups without one of their own; ``None`` leaves it.
            Lightning's learning rate finders set it.
        dry_run: what the dry run of the last fit found.
        length: the number of steps of the run.
    """

    teaching: Teaching | None

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        teaching: Teaching | None,
        knowledge: Mapping[str, Knowledge | None] | None,
        task: nn.Module | None,
        task_weight: float,
        task_schedule: Schedule | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        parameter_groups: Mapping[str, Mapping[str, Any]] | None,
        channels_last: bool,
        compile: bool,
        skip_nonfinite: int,
        watch_gradients: bool,
    ) -> None:
        super().__init__()
        self.knowledge = {name: part for name, part in (knowledge or {}).items() if part is not None}
        setup_checks.check_names(self.knowledge)
        self.task = task if task is not None else nn.CrossEntropyLoss()
        self.task_weight = weight_at_least_zero(task_weight, "The task weight")
        self.task_schedule = task_schedule
        self.plan: Plan = (teaching or Supervised()).plan({n: Learner(n, x) for n, x in networks.items()})
        self.losses = nn.ModuleDict({name: each.connect(self.plan, name) for name, each in self.knowledge.items()})
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.parameter_groups = {name: dict(options) for name, options in (parameter_groups or {}).items()}
        self.channels_last, self.compile_learners = channels_last, compile
        self.lr: float | None = None
        self.dry_run: DryRun | None = None
        self.ignore: int | None = None  # the label that does not count, if there may be one
        self.is_labeled = True  # whether labels are there that a classifier scores
        self.length = RunLength()
        self._planned: tuple[float | None, int | None] = None, None
        self._turn: str | None = None
        self._guards, self._positions = Guards(skip_nonfinite, watch_gradients), PositionWeights()
        self._callbacks: list[pl.Callback] = []
        self._split: DOT | None = None
        self._parts: tuple[Tensor | None, Tensor | None] = None, None

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the running hook here some 40 times a step; nn.Module would look for a parameter each time.
        if name == CURRENT_HOOK:
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def learners(self) -> dict[str, nn.Module]:
        """Return the networks that are trained, by name."""
        return {name: learner.network for name, learner in self.plan.learners.items()}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return the knowledge, and the check of monitors, as callbacks; put :class:`EarlySetup` before all others."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [EarlySetup(), *(each for each in callbacks if not isinstance(each, EarlySetup))]
        self._random_state = torch.get_rng_state()  # setting up DDP seeds anew
        self._positions = PositionWeights()
        self._callbacks = [*[self._positions] * takes_several_batches(self.trainer), *self._guards.callbacks]
        return [MonitorCheck(), *self.knowledge.values(), *self._callbacks]

    def prepare(self, stage: str) -> None:
        """Run one batch before a training: sizes adapters, and reports everything that cannot work."""
        use_atomic_io(self.trainer)
        setup_checks.setup_logging(self.trainer.global_rank)
        match_normalization(self, getattr(self.trainer, "datamodule", None))
        for network in self.learners.values() if self.channels_last else ():
            network.to(memory_format=torch.channels_last)
        if stage == "fit":
            self.form = None
            setup_checks.prepare_data(self.trainer, self.plan, self.knowledge)
            data = check_sources(self, first_batch(self))
            self.length.plan(self.trainer, data.batches)
            self.dry_run = dry_run(self, data)
        else:
            set_taps(self.plan, {})

    def setup(self, stage: str) -> None:
        """Prepare again where a callback froze or thawed parameters; compile the networks."""
        if stage == "fit":
            assert self.dry_run is not None
            if self.dry_run.trainable != [*self.trainable()]:
                self.prepare(stage)
            setup_checks.configure_ddp(self, self.plan, self.dry_run)
        for network in self.learners.values() if self.compile_learners else ():
            network.compile()

    def configure_model(self) -> None:
        """Shard networks and losses, under FSDP2."""
        shard(self, [*self.learners.values(), *self.losses.values()])

    def on_fit_start(self) -> None:
        """Make the optimizer anew where a finder of Lightning changed the learning rate or the batch size."""
        self._guards.start()
        if self.trainer.train_dataloader is not None:  # a finder trained
            self.length.plan_again(self.trainer)
            if self._planned != (self.lr, self.length.steps):
                self.trainer.strategy.setup_optimizers(self.trainer)

    def configure_optimizers(self) -> Any:
        """Return one optimizer for all trainable parts, and the scheduler if there is one."""
        optimizer = self.optimizer(optimization.groups(self.trainable(), self.parameter_groups, self.lr))
        self.check_resumed(optimizer)
        optimization.prepare(optimizer, self, self.trainer)
        self._planned = self.lr, self.length.steps
        monitor = {"min": "val/loss", "max": f"val/{self.shown[0]}"}
        return optimization.with_scheduler(optimizer, self.lr_scheduler, self.length.steps, monitor, self.lr)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer gets, by name: all that are not frozen."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the planned number of steps too; refuse to save a state that is not finite."""
        self._guards.check_state(self)
        super().on_save_checkpoint(checkpoint)
        checkpoint["kdlab_total_steps"] = self.length.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the planned number of steps."""
        super().on_load_checkpoint(checkpoint)
        self.length.resumed = checkpoint.get("kdlab_total_steps")

    def on_train_end(self) -> None:
        """Check the weights that no later step would check."""
        self._guards.check_state(self)

    def on_train_start(self) -> None:
        """Put the callbacks of the module back, all of which a finder of Lightning drops."""
        restore_callbacks(self, self._callbacks)
        setup_checks.report_batch(self, self.knowledge, self.dry_run)
        self._split = next((one for one in self.trainer.optimizers if isinstance(one, DOT)), None)
        super().on_train_start()

    def observe(self, batch: Batch, members: Iterable[Member] | None = None) -> dict[str, Outputs]:
        """Run the members of the plan, or some of them, in order, and return their outputs by name."""
        seen: dict[str, Outputs] = {}
        for member in self.plan.members.values() if members is None else members:
            # Where networks take turns, the others teach with their weights as they are now.
            with nullcontext() if self._turn in (None, member.name) else torch.no_grad():
                seen |= member(batch, seen)
        return seen

    def supervised(self, seen: Mapping[str, Outputs], batch: Batch) -> Tensor | None:
        """Return the task loss over the plan's supervision; ``None`` if nothing is supervised in this turn."""
        values = []
        for name, weight in self.plan.supervision.items() if self.is_labeled else ():
            if self._turn not in (None, self.plan.owners[name].name):
                continue
            number = weight(seen, batch) if callable(weight) else weight
            if number != 0:
                target = seen[name].targets(batch)
                value = zero_without_labels(self.task(seen[name].logits, target), target, self.ignore)
                values.append(value if number == 1 else value * number)
        return reduce(add, values) if values else None

    def training_step(self, raw: Any, batch_idx: int) -> Tensor:
        """Return the weighted sum of the task and of all knowledge on one batch."""
        reseed(self.device, self._seed, self.global_rank, self.current_epoch, batch_idx)
        progress = Progress(self.current_epoch, self.global_step, self.length.steps)
        batch = Batch.of(raw)._replace(progress=progress)
        if self.plan.rewrite is not None:
            batch = self.plan.rewrite(batch)
        active = {name: weight for name, own in self.knowledge.items() if (weight := own.weight_at(progress))}
        members: Iterable[Member] = self.plan.members.values()
        if not active and all(isinstance(member, Learner) or member.is_frozen for member in members):
            members = self.plan.learners.values()  # frozen teachers rest while no knowledge counts
        seen = self.observe(batch, members)
        terms = dict[str, tuple[Tensor, float]]()
        task_weight = self.task_weight * (self.task_schedule(progress) if self.task_schedule else 1.0)
        if task_weight and (task := self.supervised(seen, batch)) is not None:
            terms["task"] = task, task_weight
        for name, weight in active.items():
            knowledge = self.knowledge[name]
            edges = [(e, x) for e, x in knowledge.edges if self._turn in (None, self.plan.owners[e.student].name)]
            if (value := knowledge.total(edges, seen, batch)) is not None:
                terms[name] = value, weight
        if not terms:
            raise InputError(
                f"Nothing is left to learn at epoch {progress.epoch}: the task and all knowledge weigh 0, or no edge "
                "has a teacher yet."
            )
        weighted = {name: value if weight == 1 else value * weight for name, (value, weight) in terms.items()}
        total = reduce(add, weighted.values())
        self._guards.check(self, terms, total, seen, batch, progress)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = bool(every) and (progress.step + 1) % every == 0
        if due and self._guards.watches:
            self._guards.add(weighted, self)
        if every:
            self._log_terms(terms, total, seen, batch, due)
        self._positions.count(batch, self.ignore if self._split is None else None)
        if self._split is not None:
            self._parts = weighted.pop("task", None), reduce(add, weighted.values()) if weighted else None
        for member in self.plan.members.values():
            member.record(batch, seen)
        return total

    def _log_terms(self, terms: Terms, total: Tensor, seen: Mapping[str, Outputs], batch: Batch, due: bool) -> None:
        logits = {name: seen[name].logits for name in self.plan.students}
        known = self.form if self.is_labeled and not batch.is_generated else None, self.ignore
        self._log.add(terms, total, logits, batch.target, self._turn != self.plan.turns[0], *known)
        if due and self._turn == self.plan.turns[-1] and not is_accumulating(self.trainer):
            self.log_row({**self._log.flush(), **self._guards.values(self.trainer.world_size)})

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the usual step, one after another where the networks take turns; then members follow."""
        for turn in self.plan.turns:
            self.__dict__["_turn"] = turn
            super().optimizer_step(*args, **kwargs)
        self.__dict__["_turn"] = None
        progress = Progress(self.current_epoch, self.global_step, self.length.steps)
        for member in self.plan.members.values():
            member.on_step_end(progress)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the usual backward pass; an optimizer that treats the task's gradient apart receives it first."""
        if self._split is not None:
            # It is no backward pass of its own, since under DDP each step has one.
            self._split.split(*self._parts, *scale_and_share(self.trainer), self.trainer.world_size)
            self._parts = None, None
        super().backward(self._positions.weighted(loss), *args, **kwargs)

    def on_train_epoch_start(self) -> None:
        """Check that the epoch has as many batches as planned."""
        self.length.check_epoch(self.trainer)
        super().on_train_epoch_start()

    def on_train_epoch_end(self) -> None:
        """Log the terms of the last steps of the epoch."""
        if values := self._log.flush():
            self.log_row(values, self.global_step - 1)
