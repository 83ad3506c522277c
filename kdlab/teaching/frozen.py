"""A frozen teacher, or a weighted ensemble of them, in front of one student."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.outputs import Batch, Observer, Outputs
from kdlab.teaching.teaching import Lesson, Teaching
from kdlab.views import see


class FrozenTeacher(Teaching):
    r"""One or several trained networks that teach and never change.

    Several teachers act as one whose class probabilities are the weighted mean of theirs:
    :math:`z^t = \log \sum_m w_m \operatorname{softmax}(z^m)`, with :math:`\sum_m w_m = 1`. A loss's temperature then
    softens this mean. (Ensemble: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015,
    arXiv:1503.02531.)

    The networks are in eval mode without gradients and stay so through any ``train()``; they are run under ``no_grad``,
    in the precision of the training, once a step.

    Args:
        networks: the teachers.
        weights: one positive number per teacher, scaled to sum to 1; ``None`` counts all alike.
        batchnorm: ``"frozen"`` normalises with the teachers' running statistics. ``"batch"`` normalises with those of
            the batch, as the released code of OFD and ReviewKD (CIFAR) does; the running statistics still do not
            change.

    Raises:
        InputError: no network, or weights that are not positive or not one per teacher; layers tapped on several
            teachers.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        batchnorm: Literal["frozen", "batch"] = "frozen",
    ) -> None:
        super().__init__()
        weights = [1.0] * len(networks) if weights is None else list(weights)
        if not networks:
            raise InputError("A frozen teacher needs at least one network.")
        if len(weights) != len(networks) or any(not 0 < w < math.inf for w in weights):
            raise InputError(
                f"Teacher weights must be one positive number per teacher ({len(networks)}), not {weights}."
            )
        if batchnorm not in ("frozen", "batch"):
            raise InputError(f"A teacher's batchnorm is 'frozen' or 'batch', not {batchnorm!r}.")
        self.networks = nn.ModuleList(networks)
        self.weights = [w / sum(weights) for w in weights]
        self.batchnorm = batchnorm
        self.listen(())

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode, whatever ``mode`` says."""
        super().train(False)
        return self

    def listen(self, layers: Sequence[str]) -> None:
        """Keep ``layers`` at every later :meth:`observe`, and be frozen, whatever was done to the networks since."""
        self.eval().requires_grad_(False)
        if layers and len(self.networks) > 1:
            raise InputError(
                f"Layers {list(layers)} cannot be tapped on an ensemble of {len(self.networks)} teachers: "
                "it has logits alone."
            )
        self._observers = [Observer(network, layers) for network in self.networks]

    @property
    def observers(self) -> Sequence[Observer]:
        """One per teacher."""
        return self._observers

    @torch.no_grad()
    def observe(self, inputs: Any) -> Outputs:
        """What the teacher, or the ensemble as one, gives on ``inputs``."""
        if any(network.training for network in self.networks):  # train() was called on the network itself
            self.eval()
        with self._batch_statistics() if self.batchnorm == "batch" else nullcontext():
            seen = [observer(inputs) for observer in self._observers]
        if len(seen) == 1:
            return seen[0]
        shapes = {tuple(each.logits.shape[1:]) for each in seen}
        if len(shapes) > 1:
            raise InputError(
                f"The teachers of an ensemble must know the same classes, but give logits of {sorted(shapes)}."
            )
        return Outputs(_mean_of_probabilities([each.logits for each in seen], self.weights))

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Every learner learns from the teacher on the unchanged batch."""
        views = list(next(iter(outputs.values())).views)
        teacher = see(self.observe, batch, views)
        return [Lesson(name, teacher) for name in outputs]

    def survey(self, batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Tensor]]:
        """What the teacher gives on each of ``batches``, with its labels."""
        return ((self.observe(batch.inputs), batch.target) for batch in batches)

    @contextmanager
    def _batch_statistics(self) -> Iterator[None]:
        """BatchNorm on the batch's own statistics, running statistics neither read nor written."""
        norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
        try:
            for norm in norms:
                norm.training, norm.track_running_stats = True, False
            yield
        finally:
            for norm in norms:
                norm.training, norm.track_running_stats = False, True


def _mean_of_probabilities(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    log_p = torch.stack([F.log_softmax(each.float(), -1) for each in logits])
    log_w = torch.tensor(weights, device=log_p.device).log().view(-1, *[1] * (log_p.dim() - 1))
    return torch.logsumexp(log_p + log_w, 0)
