"""Co-training: networks that learn together, or one that teaches itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from kdlab.errors import InputError, nearest
from kdlab.knowledge import Knowledge
from kdlab.metrics import Cohort
from kdlab.modules.base import DistillationModule, sgd
from kdlab.modules.setup_checks import check_key
from kdlab.outputs import Batch, heads_of, run
from kdlab.outputs.task_format import TaskFormat, task_format
from kdlab.schedules import Schedule
from kdlab.teaching import Alone, Peers, Teaching
from kdlab.teaching.plan import heads_of_all

ENSEMBLE = "ensemble"
DEPLOYED = "deployed."
"""Prefix of the deployed network's tensors in a checkpoint."""


class CoTrainer(DistillationModule):
    """Networks that learn from labels and from each other, or from themselves.

    A network with several outputs (:class:`~kdlab.models.Branched`, :class:`~kdlab.models.WithExits`) is several
    students: "net", its main output, and "net_branch1" or "net_exit1" and so on. The loss is the sum over all students'
    labels, as the teaching weighs them, and over all edges of its plan. A loss with parameters has one copy for each
    pair of student and teacher. Which output is deployed is decided here, before the run; ``forward`` and predictions
    give it, and ``kdlab export`` writes it.

    Checkpoints hold networks, losses, and the state of the teaching (averages, banks, gates), but no frozen teacher.

    What a batch and a network may be: see :class:`~kdlab.modules.Distiller`.

    Args:
        networks: the networks to train, by name. ``None`` takes out one of a
            config before (``--model.networks.c=null``).
        knowledge: what to learn from a teacher, by name; the names are log keys and checkpoint keys. ``None`` takes out
            one too.
        teaching: who teaches whom; :class:`~kdlab.teaching.Peers` for several students, else
            :class:`~kdlab.teaching.Alone`.
        deploy: name of the output that is deployed: a student, an average of the teaching's, or "ensemble" (the mean of
            the students' probabilities unless the teaching makes one); the first network if not given.
        task: the loss on the labels, ``task(logits, labels)``; cross-entropy if not given.
        task_weight: factor of the task loss, at least 0.
        task_schedule: a further factor of the task loss over epochs or steps.
        optimizer: makes the one optimizer of all parameters; SGD (0.05, momentum 0.9, weight decay 5e-4) if not
            given.
        lr_scheduler: makes the learning-rate scheduler from the optimizer; a ``OneCycleLR`` needs no length.
        parameter_groups: optimizer options of single parts, by the beginning of their parameters' names:
            ``{"networks.b": {"lr": 0.01}}``.
        channels_last: keep convolution weights with the channels innermost.
        compile: ``torch.compile`` the networks, in place.
        skip_nonfinite: how many steps with a non-finite loss or gradient may be skipped; the next one stops the
            training, as the first one does with 0. The count is logged as ``skipped_steps``.
        watch_gradients: log every ``log_every_n_steps`` the norm of each weighted term's gradient
            (``grad/NAME_norm``) and its cosine to the task's (``grad/NAME_cosine``).

    Raises:
        InputError: no network, a name that cannot be one, an unknown ``deploy``, what the teaching cannot teach; before
            the first step, everything of :func:`~kdlab.modules.dry_run.dry_run`.
    """

    teaching: Teaching
    metrics: Cohort
    shown: ClassVar[tuple[str, ...]] = ("deployed_accuracy",)

    def __init__(
        self,
        networks: Mapping[str, nn.Module | None],
        knowledge: Mapping[str, Knowledge | None] | None = None,
        teaching: Teaching | None = None,
        deploy: str | None = None,
        task: nn.Module | None = None,
        task_weight: float = 1.0,
        task_schedule: Schedule | None = None,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        parameter_groups: dict[str, dict[str, Any]] | None = None,
        channels_last: bool = False,
        compile: bool = False,  # torch's word
        skip_nonfinite: int = 0,
        watch_gradients: bool = False,
    ) -> None:
        present = {name: network for name, network in networks.items() if network is not None}
        if not present:
            raise InputError("Co-training needs at least one network.")
        for name in present:
            check_key("A network's", name, (ENSEMBLE, "deployed"))
        several = len(present) > 1 or any(len(heads_of(network)) > 1 for network in present.values())
        chosen = teaching or (Peers() if several else Alone())
        options = (task, task_weight, task_schedule, optimizer, lr_scheduler, parameter_groups)
        further = (channels_last, compile, skip_nonfinite, watch_gradients)
        super().__init__(present, chosen, knowledge, *options, *further)
        self.names = heads_of_all(self.plan.learners)
        self.networks = nn.ModuleDict(present)
        self.teaching = chosen
        self.deploy = next(iter(present)) if deploy is None else deploy
        self.reported = f"The loss of {self.deploy!r}"
        members = [member for member in self.plan.members.values() if member.in_evaluation and not member.is_frozen]
        evaluated = [name for member in members for name in member.names]
        known = dict.fromkeys([*evaluated, *([ENSEMBLE] if len(self.names) > 1 else [])])
        if self.deploy not in known:
            raise InputError(
                f"No output {self.deploy!r} to deploy; the nearest names are {nearest(self.deploy, known)}."
            )
        self.metrics = Cohort()

    def forward(self, inputs: Any) -> Any:
        """Return the deployed network's own output; of an ensemble or a further head its logits."""
        if networks := self.plan.networks_of(self.deploy):
            ((network, head),) = networks
            if not head:
                return run(network, inputs)
        logits = self.logits(inputs)
        return logits[self.deploy] if self.deploy in logits else self._mean(logits)

    def deployed(self) -> nn.Module:
        """Return the deployed network alone, with its original key names.

        Raises:
            InputError: it is an ensemble.
        """
        if not (networks := self.plan.networks_of(self.deploy)):
            raise InputError(
                f"The deployed {self.deploy!r} is several networks: to export one of them, set deploy to its name."
            )
        ((network, head),) = networks
        alone: Any = getattr(network, "alone", None)
        single: nn.Module = alone(head) if len(heads_of(network)) > 1 else network
        return single

    def logits(self, inputs: Any) -> dict[str, Tensor]:
        """Return the logits on ``inputs`` of all students, and of what runs in evaluation beside them, by name."""
        seen = self.evaluate(Batch(inputs, torch.empty(0)))
        names = dict.fromkeys([*self.names, *seen])
        return {name: seen[name].logits for name in names if "@" not in name}

    def _mean(self, logits: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of the ensemble of all students."""
        own = [logits[name] for name in self.names]
        form = self.form or task_format(self.task, own[0], None)
        return form.mean(own)

    # Evaluation: every student, the ensemble, the deployed output

    def evaluate_batch(self, batch: Batch, metrics: Any) -> tuple[Tensor, TaskFormat]:
        """Evaluate all students on one batch; return the deployed logits."""
        seen = self.evaluate(batch)
        students = {name: seen[name].logits for name in self.names}
        others = {name: own.logits for name, own in seen.items() if name not in students and "@" not in name}
        form = task_format(self.task, students[self.names[0]], batch.target, batch.mask)
        if len(students) > 1 and (form.kind != "other" or self.deploy == ENSEMBLE):
            others = {ENSEMBLE: form.mean([*students.values()]), **others}
        metrics.update(students, others, self.deploy, batch.target, form, batch.mask)
        if self.trainer.validating:
            for member in self.plan.members.values():
                member.record(batch, seen)
        return {**students, **others}[self.deploy], form

    def on_validation_epoch_end(self) -> None:
        """Let members use what they recorded, and report."""
        if self.trainer.validating:
            for member in self.plan.members.values():
                member.on_validation_end()
        super().on_validation_epoch_end()

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the seed, and the deployed network under its own names."""
        super().on_save_checkpoint(checkpoint)
        if self.plan.networks_of(self.deploy):
            own = self.deployed().state_dict()
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **{DEPLOYED + key: own[key] for key in own}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the seed; the deployed network is among the others already."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(DEPLOYED)}
