"""A frozen teacher, or a weighted ensemble of them, in front of one student."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.members.batchnorm import batch_statistics
from kdlab.members.ensembles import Ensemble
from kdlab.members.fast_inference import Fast, FastObserver
from kdlab.members.teacher_cache import TeacherCache
from kdlab.outputs import Batch, Observer, Outputs
from kdlab.outputs.batch import inputs_of
from kdlab.outputs.see import see
from kdlab.teaching.teaching import Lesson, Teaching


class FrozenTeacher(Teaching):
    r"""One or several trained networks that teach and never change.

    Several teachers act as their ``ensemble`` says: by default as one whose class probabilities are the weighted mean
    of theirs. Their layers are named with the number of the teacher: ``"0.layer3"`` is the first one's.

    The networks are in eval mode without gradients and stay so through any ``train()``; they are run under ``no_grad``,
    in the precision of the training, once a step. What runs is by default a faster copy with the same outputs (see
    :class:`~kdlab.teaching.Fast`), and no further than the last layer that is tapped where nothing else is read.

    Args:
        networks: the teachers.
        weights: one positive number per teacher, scaled to sum to 1; ``None`` counts all alike.
        batchnorm: ``"frozen"`` normalises with the teachers' running statistics. ``"batch"`` normalises with those of
            the batch, as the released code of OFD and ReviewKD (CIFAR) does; the running statistics still do not
            change.
        ensemble: how several teachers act together; :class:`~kdlab.teaching.Ensemble` if not given.
        fast: what may be done to make the forward cheaper; ``None`` for nothing.
        cache: where outputs are kept on disk instead of being computed again; :meth:`TeacherCache.open` starts its use.

    Raises:
        InputError: no network, or weights that are not positive or not one per teacher, or that the ensemble does not
            ask for.
    """

    fixed: ClassVar[bool] = True

    def __init__(
        self,
        networks: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        batchnorm: Literal["frozen", "batch"] = "frozen",
        ensemble: Ensemble | None = None,
        fast: Fast | None = Fast(),  # noqa: B008  # frozen
        cache: TeacherCache | None = None,
    ) -> None:
        super().__init__()
        given, weights = weights is not None, [1.0] * len(networks) if weights is None else list(weights)
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
        self.ensemble = ensemble or Ensemble()
        if given and not self.ensemble.weighted:
            raise InputError(f"{type(self.ensemble).__name__} finds the teachers' weights itself: give none.")
        self.fast = fast
        self.cache = cache
        self._index: Tensor | None = None
        self.listen(())

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in eval mode, whatever ``mode`` says."""
        super().train(False)
        return self

    def listen(self, layers: Sequence[str], only_layers: bool = False) -> None:
        """Keep ``layers`` at every later :meth:`observe`, and be frozen, whatever was done to the networks since.

        With ``only_layers`` a lesson's forward stops after the last of them.
        """
        self.eval().requires_grad_(False)
        own: list[list[str]] = [[] for _ in self.networks]
        self.layers = tuple(dict.fromkeys(layers))
        for layer in self.layers if len(self.networks) > 1 else ():
            number, _, name = layer.partition(".")
            if not (number.isdecimal() and int(number) < len(own) and name):
                raise InputError(
                    f"An ensemble's layers are named with the number of the teacher, from '0.' to '{len(own) - 1}.', "
                    f"as '0.{layer}'; {layer!r} is not."
                )
            own[int(number)].append(name)
        if len(self.networks) == 1:
            own = [list(self.layers)]
        self._only_layers = only_layers and len(self.networks) == 1
        self._observers = [self._observer(network, names) for network, names in zip(self.networks, own, strict=True)]

    def _observer(self, network: nn.Module, layers: Sequence[str]) -> Observer:
        fast = self.fast
        if self.batchnorm == "batch" or fast is None or not (self._only_layers or fast.applies(network)):
            return Observer(network, layers)
        return FastObserver(network, layers, fast)

    @property
    def observers(self) -> Sequence[Observer]:
        """One per teacher."""
        return self._observers

    def advance(self, epoch: int, step: int) -> None:
        """Let the cache know the epoch."""
        if self.cache is not None:
            self.cache.advance(epoch)

    def note(self, index: Tensor | None) -> None:
        """Keep this batch's index as it was before its transfer: to read it on the device would be to wait."""
        self._index = index

    def observe(self, inputs: Any) -> Outputs:
        """What the teacher, or the ensemble as one, gives on ``inputs``; an ensemble's members count alike here."""
        return self._together(self._seen(inputs))

    @torch.no_grad()
    def _seen(self, inputs: Any, only_layers: bool = False) -> list[Outputs]:
        """What each teacher gives."""
        if any(network.training for network in self.networks):  # train() was called on the network itself
            self.eval()
        for observer in self._observers:
            if isinstance(observer, FastObserver):
                observer.only_layers = only_layers
        plain = self.is_rehearsing
        with batch_statistics(self) if self.batchnorm == "batch" else nullcontext():
            return [
                observer.plainly(inputs) if plain and isinstance(observer, FastObserver) else observer(inputs)
                for observer in self._observers
            ]

    def _together(self, seen: Sequence[Outputs]) -> Outputs:
        """The teachers as one."""
        return seen[0] if len(seen) == 1 else self._ensembled(seen)

    @torch.no_grad()
    def _ensembled(self, seen: Sequence[Outputs]) -> Outputs:
        shapes = {tuple(each.logits.shape[1:]) for each in seen}
        if len(shapes) > 1:
            raise InputError(
                f"The teachers of an ensemble must know the same classes, but give logits of {sorted(shapes)}."
            )
        tapped = {
            f"{number}.{name}": layer
            for number, each in enumerate(seen)
            for name, layer in zip(each.names, each.layers, strict=True)
        }
        logits = self.ensemble.together([each.logits for each in seen], self.weights)
        members = tuple((Outputs(each.logits), logits.new_ones(len(logits))) for each in seen)
        return Outputs(logits, tuple(tapped[name] for name in self.layers), names=self.layers, members=members)

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Every learner learns from the teacher on the unchanged batch."""
        views = list(next(iter(outputs.values())).views)
        cached = self.cache is not None and self.cache.is_open and not self.is_rehearsing
        teacher = see(partial(self._recalled, batch, views) if cached else self._lesson, batch, views)
        return [Lesson(name, self._weighed(teacher, student, batch.target)) for name, student in outputs.items()]

    def _lesson(self, inputs: Any) -> Outputs:
        """As :meth:`observe`, no further than what is read in a lesson."""
        return self._together(self._seen(inputs, self._only_layers))

    def _recalled(self, batch: Batch, views: Sequence[str], inputs: Tensor) -> Outputs:
        """As :meth:`observe` on the batch and its views, from the cache as far as it has them."""
        assert self.cache is not None
        assert batch.index is not None
        index = batch.index if self._index is None else self._index
        parts = [("", index, self.cache.rows)]
        for view in views:
            each = len(inputs_of((batch.views or {})[view])) // len(index)
            places = index[:, None] * each + torch.arange(each, device=index.device)
            parts.append((view, places.flatten(), self.cache.rows * each))
        return self._together(self.cache.look(parts, lambda: self._seen(inputs), inputs.device))

    def _weighed(self, teacher: Outputs, student: Outputs, target: Tensor) -> Outputs:
        """The ensemble's outputs with its members weighted as it weights them, or without members if it does not."""
        if not teacher.members:
            return teacher
        seen = [member for member, _ in teacher.members]
        weights = self.ensemble.weights(seen, self.weights, student, target)
        members = () if weights is None else tuple(zip(seen, weights, strict=True))
        views = {name: dataclasses.replace(view, members=()) for name, view in teacher.views.items()}
        return dataclasses.replace(teacher, members=members, views=views)

    def precompute(self, batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Tensor]]:
        """What the teacher gives on each of ``batches``, with its labels."""
        return ((self.observe(batch.inputs), batch.target) for batch in batches)
