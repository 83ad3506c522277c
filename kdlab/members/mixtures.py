"""Mixtures: teachers made of other members' outputs, which the members name as ``sources``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.lazy import Lazy
from kdlab.members.ensembles import Ensemble
from kdlab.members.member import Member, Seen
from kdlab.outputs.containers import Batch, Outputs
from kdlab.outputs.task_format import Kind


class Ensembled(Member):
    """Several frozen teachers as one.

    Their layers are named with the number of the teacher: ``"0.layer3"`` is the first one's. Where the ensemble weighs
    the teachers sample by sample, for the outputs ``student``, the outputs carry each teacher's with its weights
    (``Outputs.members``). The ``weights`` of the teachers sum to 1.
    """

    is_frozen: ClassVar[bool] = True
    in_evaluation: ClassVar[bool] = True
    teachers: tuple[Member, ...]
    layers: tuple[str, ...] = ()

    def __init__(
        self, name: str, teachers: Sequence[Member], student: str, ensemble: Ensemble, weights: Sequence[float]
    ) -> None:
        super().__init__(name)
        self.__dict__["teachers"] = tuple(teachers)
        self.student, self.ensemble, self.weights = student, ensemble, tuple(weights)

    @property
    def kinds(self) -> tuple[Kind, ...]:  # type: ignore[override]
        """Return the kinds of targets for which the ensemble's logits are right."""
        return self.ensemble.kinds

    def set_taps(self, layers: Sequence[str], views: Sequence[str] = (), only_layers: bool = False) -> None:
        """Tap each teacher's own layers."""
        own: list[list[str]] = [[] for _ in self.teachers]
        self.layers = tuple(dict.fromkeys(layers))
        for layer in self.layers:
            number, _, name = layer.partition(".")
            if not (number.isdecimal() and int(number) < len(own) and name):
                raise InputError(
                    f"An ensemble's layers are named with the number of the teacher, from '0.' to '{len(own) - 1}.', "
                    f"as '0.{layer}'; {layer!r} is not."
                )
            own[int(number)].append(name)
        for teacher, names in zip(self.teachers, own, strict=True):
            teacher.set_taps(names, views)

    def networks_of(self, name: str) -> tuple[tuple[nn.Module, str], ...]:
        """Return the networks of all teachers."""
        return tuple((network, "") for teacher in self.teachers for network, _ in teacher.networks_of(teacher.name))

    @torch.no_grad()
    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the teachers' outputs as one."""
        if not all(teacher.name in seen for teacher in self.teachers):  # a file, in evaluation
            return {}
        outputs = [seen[teacher.name] for teacher in self.teachers]
        together = self._together(outputs)
        views = {view: self._together([each.views[view] for each in outputs]) for view in outputs[0].views}
        if batch.progress is not None:
            weights = self.ensemble.weights(outputs, self.weights, seen[self.student], batch.target)
            if weights is not None:
                members = tuple((Outputs(each.logits), own) for each, own in zip(outputs, weights, strict=True))
                together = dataclasses.replace(together, members=members)
        return {self.name: dataclasses.replace(together, index=batch.index, views=views)}

    def _together(self, outputs: Sequence[Outputs]) -> Outputs:
        shapes = {tuple(each.logits.shape[1:]) for each in outputs}
        if len(shapes) > 1:
            raise InputError(
                f"The teachers of an ensemble must know the same classes, but give logits of {sorted(shapes)}."
            )
        tapped = {
            f"{number}.{name}": layer
            for number, each in enumerate(outputs)
            for name, layer in zip(each.names, each.layers, strict=True)
        }
        logits = self.ensemble.together([each.logits for each in outputs], self.weights)
        return Outputs(logits, tuple(tapped[name] for name in self.layers), names=self.layers)


class MeanOfOthers(Member):
    """The mean of the class probabilities of several members, once all are there."""

    is_optional: ClassVar[bool] = True

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the mean."""
        if not set(self.sources) <= seen.keys():
            return {}
        count = len(self.sources)
        logits = Ensemble().together([seen[source].logits for source in self.sources], [1 / count] * count)
        return {self.name: Outputs(logits, index=batch.index)}


class Joined(Member):
    """The outputs on the batch and on a view of it as those on one larger batch, with the labels of all."""

    def __init__(self, name: str, source: str, view: str) -> None:
        super().__init__(name, (source, f"{source}@{view}"))

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the outputs, concatenated."""
        first, second = (seen[source] for source in self.sources)
        embedding, index = (
            None if one is None or other is None else torch.cat([one, other])
            for one, other in ((first.embedding, second.embedding), (first.index, second.index))
        )
        layers = tuple(torch.cat(pair) for pair in zip(first.layers, second.layers, strict=True))
        target = torch.cat([batch.target, second.targets(batch)])
        logits = torch.cat([first.logits, second.logits])
        return {self.name: Outputs(logits, layers, embedding, index=index, names=first.names, target=target)}


class Gate(Member, Lazy):
    """The sum of branches' logits, weighted for every sample by softmax(ReLU(BatchNorm(W x + b))) of the pooled trunk.

    The trunk's map x is the ``layer`` of the outputs ``trunk``.
    """

    in_evaluation: ClassVar[bool] = True

    def __init__(self, name: str, branches: Sequence[str], trunk: str, layer: str) -> None:
        super().__init__(name, branches)
        self.trunk, self.layer = trunk, layer

    def build(self, width: int, branches: int) -> None:
        """Make the linear layer and its normalization."""
        self.linear = nn.Linear(width, branches)
        self.norm = nn.BatchNorm1d(branches)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the gated logits (B, K)."""
        (trunk,) = seen[self.trunk].only((self.layer,)).layers
        pooled = trunk.flatten(2).mean(2) if trunk.dim() > 2 else trunk
        self.materialize(pooled.detach(), pooled.shape[1], len(self.sources))
        shares = self.norm(self.linear(pooled)).relu().softmax(1)
        logits = (torch.stack([seen[name].logits for name in self.sources], 2) * shares[:, None]).sum(2)
        return {self.name: Outputs(logits, index=batch.index)}


class Attention(Member, Lazy):
    r"""Mixtures of peers' logits, one for each peer: weights are the softmax over b of (L h_a) . (E h_b).

    Gives ``NAME@PEER`` for each peer, and ``NAME``, the plain mean of all peers' logits. All carry gradient. The
    attention's width is by ``factor`` smaller than the embedding.
    """

    def __init__(self, name: str, peers: Sequence[str], factor: int) -> None:
        super().__init__(name, peers)
        self.factor = factor

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all outputs."""
        return (self.name, *(f"{self.name}@{peer}" for peer in self.sources))

    def build(self, width: int, inner: int) -> None:
        """Make both projections, without bias."""
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the mixtures' logits (B, K)."""
        embeddings = embeddings_of(self.sources, seen, "OKDDip compares embeddings")
        widths = {each.shape[1] for each in embeddings}
        if len(widths) > 1:
            raise InputError(f"OKDDip's attention compares embeddings of one width, not of {sorted(widths)}.")
        h = torch.stack(embeddings, 1)
        self.materialize(h.detach(), h.shape[2], max(h.shape[2] // self.factor, 1))
        z = torch.stack([seen[peer].logits for peer in self.sources], 1)
        mixed = (self.query(h) @ self.key(h).transpose(1, 2)).softmax(2) @ z
        outputs = {
            f"{self.name}@{peer}": Outputs(mixed[:, n], index=batch.index) for n, peer in enumerate(self.sources)
        }
        return {self.name: Outputs(z.mean(1), index=batch.index), **outputs}


class EnsembleClassifier(Member, Lazy):
    """A linear classifier of all peers' embeddings side by side."""

    in_evaluation: ClassVar[bool] = True

    def build(self, width: int, classes: int) -> None:
        """Make the classifier."""
        self.classifier = nn.Linear(width, classes)

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        """Return the classifier's logits (B, K)."""
        joined = torch.cat(embeddings_of(self.sources, seen, "PCL joins embeddings"), 1)
        self.materialize(joined.detach(), joined.shape[1], seen[self.sources[0]].logits.shape[1])
        return {self.name: Outputs(self.classifier(joined), index=batch.index)}


def embeddings_of(names: Sequence[str], seen: Seen, purpose: str) -> list[Tensor]:
    """Return the embeddings (B, D) of several members."""
    embeddings = []
    for name in names:
        if (embedding := seen[name].embedding) is None:
            raise InputError(f"{purpose}, but {name!r} has no linear classifier.")
        embeddings.append(embedding.flatten(1))
    return embeddings
