"""Co-training: networks that learn together, or one that teaches itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from kdlab.errors import InputError, nearest
from kdlab.knowledge import Knowledge
from kdlab.metrics import Cohort
from kdlab.modules.base import DistillationModule, sgd
from kdlab.outputs import Batch, Observer, Outputs, headed, heads_of, logits_of, run
from kdlab.schedules import Schedule
from kdlab.teaching import Alone, Peers, Teaching

ENSEMBLE = "ensemble"
DEPLOYED = "deployed."
"""Before the names of the deployed network's tensors in a checkpoint."""


class CoTrainer(DistillationModule):
    """Networks that learn from labels and from each other, or from themselves.

    A network with several outputs (:class:`~kdlab.models.Branched`, :class:`~kdlab.models.WithExits`) is several
    learners: "net", its main output, and "net_branch1" or "net_exit1" and so on. The loss is the sum over all learners'
    labels, as the teaching weighs them, and over all lessons. A loss with parts of its own has them once for each pair
    of learner and teacher. Which learner is deployed is decided here, before the run; it is what ``forward`` and
    predictions give and what ``kdlab export`` writes.

    Checkpoints hold everything: networks, losses, and what the teaching keeps (averages, memories, gates).

    Args:
        networks: what is trained, by name.
        knowledge: what is learnt from a teacher, by name; the names are the log keys and the checkpoint keys.
        teaching: who teaches whom; :class:`~kdlab.teaching.Peers` for several learners, else
            :class:`~kdlab.teaching.Alone`.
        deploy: the learner that is deployed, by name; or an average of the teaching's, or "ensemble" (the mean of the
            learners' probabilities unless the teaching makes one); the first network if not given.
        task: the loss on the labels, ``task(logits, labels)``; cross-entropy if not given.
        task_weight: factor of the task loss, at least 0.
        task_schedule: a further factor of the task loss over epochs or steps.
        optimizer: makes the one optimiser of all parameters; SGD (0.05, momentum 0.9, weight decay 5e-4) if not
            given.
        lr_scheduler: makes the learning-rate scheduler from the optimiser; a ``OneCycleLR`` needs no length.
        parameter_groups: optimiser options of single parts, by the beginning of their parameters' names:
            ``{"networks.b": {"lr": 0.01}}``.
        channels_last: keep convolution weights with the channels innermost.
        compile: ``torch.compile`` the networks, in place.

    Raises:
        InputError: no network, a name that cannot be one, an unknown ``deploy``, what the teaching cannot teach; before
            the first step, everything of :func:`~kdlab.modules.dry_run.rehearse`.
    """

    teaching: Teaching

    def __init__(
        self,
        networks: dict[str, nn.Module],
        knowledge: dict[str, Knowledge] | None = None,
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
    ) -> None:
        super().__init__(knowledge, task, task_weight, task_schedule, optimizer, lr_scheduler, parameter_groups)
        self.channels_last, self.compile_learners = channels_last, compile
        self.names = learners_of(networks)
        self.networks = nn.ModuleDict(networks)
        self.teaching = teaching or (Peers() if len(self.names) > 1 else Alone())
        self.teaching.adopt(networks, self.names)
        pairs = self.teaching.pairs(self.names)
        self.losses = nn.ModuleDict({name: each.spread(pairs) for name, each in self.knowledge.items()})
        self.deploy = next(iter(networks)) if deploy is None else deploy
        ensemble = [ENSEMBLE] if len(self.names) > 1 else []
        known = [*self.names, *self.teaching.deployable, *ensemble]
        if self.deploy not in known:
            raise InputError(
                f"There is no {self.deploy!r} to deploy; the nearest names are {nearest(self.deploy, known)}."
            )
        self._cohort = Cohort()
        self._loss = MeanMetric(nan_strategy="disable")

    @property
    def learners(self) -> dict[str, nn.Module]:
        """The networks; each may be several learners."""
        return dict(self.networks)

    def forward(self, inputs: Any) -> Any:
        """The deployed one's own output; of an ensemble or a further head its logits."""
        if self.deploy in self.networks:
            return run(self.networks[self.deploy], inputs)
        if self.deploy in self.teaching.deployable:
            return run(self.teaching.deployable[self.deploy], inputs)
        learners, others = self.everyone(inputs)
        if self.deploy in (found := {**learners, **others}):
            return found[self.deploy]
        return torch.stack([each.float().softmax(-1) for each in learners.values()]).mean(0).log()

    def deployed(self) -> nn.Module:
        """The deployed network alone, with its original key names.

        Raises:
            InputError: it is an ensemble.
        """
        for name, network in {**self.networks, **self.teaching.deployable}.items():
            for head in heads_of(network):
                if self.deploy == (f"{name}_{head}" if head else name):
                    alone: Any = getattr(network, "alone", None)
                    found: nn.Module = alone(head) if len(heads_of(network)) > 1 else network
                    return found
        raise InputError(
            f"The deployed {self.deploy!r} is several networks: to export one of them, set deploy to its name."
        )

    def everyone(self, inputs: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The logits of all learners, and of what is made of them, on ``inputs``."""
        seen = self._everyone(inputs)
        logits = {name: each.logits for name, each in seen.items()}
        others = {name: each.logits for name, each in self.teaching.observe_own(inputs).items()}
        made = {name: each for name, each in logits.items() if name not in self.names}
        return {name: logits[name] for name in self.names}, {**made, **others}

    def _everyone(self, inputs: Any) -> dict[str, Outputs]:
        if not self._observers:
            self._observers = {n: Observer(x, self.teaching.reads) for n, x in self.learners.items()}
        outputs: dict[str, Outputs] = {}
        for name, observer in self._observers.items():
            outputs |= headed(name, observer(inputs))
        return self.teaching.gather(outputs, Batch(inputs, torch.empty(0)))

    # Evaluation: every learner, the ensemble, the deployed one

    def validation_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at all learners on one batch."""
        batch = self._look(raw)
        if not self.trainer.sanity_checking:
            self.teaching.examine({n: Outputs(z) for n, z in self._last.items()}, batch.target)

    def test_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Look at all learners on one batch."""
        self._look(raw)

    def predict_step(self, raw: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The deployed one's logits, (B, K); a batch may be inputs alone."""
        return logits_of(self(raw if isinstance(raw, Tensor) else Batch.of(raw).inputs))

    def on_validation_epoch_end(self) -> None:
        """Report."""
        if not self.trainer.sanity_checking:
            self.teaching.conclude()
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Report."""
        self._report("test")

    def _look(self, raw: Any) -> Batch:
        batch = Batch.of(raw)
        learners, others = self.everyone(batch.inputs)
        if len(learners) > 1:
            mean = torch.stack([each.float().softmax(-1) for each in learners.values()]).mean(0).log()
            others = {ENSEMBLE: mean, **others}
        self._cohort.update(learners, others, self.deploy, batch.target)
        loss = self.task({**learners, **others}[self.deploy], batch.target)
        self._loss.update(loss.expand(len(batch.target)))
        self._last = learners
        return batch

    def _report(self, stage: str) -> None:
        # Not through self.log: between processes with unequally many samples Lightning's mean is off.
        values = {"loss": self._loss.compute(), **self._cohort.compute()}
        self._loss.reset()
        self._cohort.reset()
        if not values["loss"].isfinite():
            rank_zero_warn(
                f"The loss of {self.deploy!r} in {stage} is {float(values['loss'])}, so its numbers mean nothing: the "
                "training has diverged (lower the learning rate or a weight)."
            )
        for name, value in values.items():
            self.log(f"{stage}/{name}", value, prog_bar=name == "deployed_accuracy", sync_dist=True)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed, and the deployed network under its own names."""
        super().on_save_checkpoint(checkpoint)
        if self.deploy != ENSEMBLE:
            own = self.deployed().state_dict()
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **{DEPLOYED + key: own[key] for key in own}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed; the deployed network is among the others already."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(DEPLOYED)}


def learners_of(networks: Mapping[str, nn.Module]) -> list[str]:
    """The learners' names: every network's, and its further heads'.

    Raises:
        InputError: no network, or a name that cannot be one.
    """
    if not networks:
        raise InputError("Co-training needs at least one network.")
    names: list[str] = []
    for name, network in networks.items():
        if not name.isidentifier() or hasattr(nn.ModuleDict, name) or name in (ENSEMBLE, "deployed"):
            raise InputError(
                "A network's name must be a plain word other than 'ensemble', 'deployed' and the methods of a dict, "
                f"not {name!r}."
            )
        names += [f"{name}_{head}" if head else name for head in heads_of(network)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise InputError(f"Two learners would be called {twice!r}: rename a network.")
    return names
