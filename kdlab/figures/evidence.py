"""Outputs of student and teacher on a data set, collected batch by batch, and the figures that they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from kdlab.figures import drawing
from kdlab.figures.comparison import (
    Rows,
    agreement_rows,
    cka_rows,
    confusion_rows,
    correlation_rows,
    reliability_rows,
)
from kdlab.modules.base import DistillationModule
from kdlab.outputs import Batch, logits_of, run
from kdlab.outputs.task_format import task_format

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLES = 256
"""Samples whose layers are compared: the Gram matrices of CKA are of this size."""


class Plot(NamedTuple):
    """A figure and the numbers that it draws."""

    name: str
    rows: Rows
    figure: Figure


class Evidence:
    """Logits, labels and, of the first samples, layers of a module's student and of its teacher.

    Layers are the network's direct parts that return a tensor (of a network in a wrapper, the wrapped one's). A
    co-training has the deployed network and no teacher; several teachers have the logits of their ensemble and no
    layers.
    """

    def __init__(self) -> None:
        self.student: list[Tensor] = []
        self.teacher: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.layers: tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]] = ({}, {})
        self._samples = 0

    @torch.no_grad()
    def add(self, module: DistillationModule, raw: Any) -> None:
        """Run the networks on a batch."""
        batch = Batch.of(raw)
        student: Any = getattr(module, "student", None)
        frozen: Any = getattr(getattr(module, "teacher", None), "frozen", ())
        if self._samples < SAMPLES:
            if isinstance(student, nn.Module) and len(frozen) == 1:
                teacher = frozen[0]
                with tapped(student, self.layers[0]):
                    run(student, batch.inputs)
                with tapped(teacher.network, self.layers[1]):
                    teacher.applied(partial(run, teacher.network), batch.inputs)
            self._samples += len(batch.target)
        logits = logits_of(module(batch.inputs))
        form = task_format(module.task, logits, batch.target, batch.mask)
        if not form.has_classes:
            return
        rows, labels = form.rows(logits), form.targets(batch.target)
        counted = form.counted(len(rows), batch.target, batch.mask)
        chosen = slice(None) if counted is None else counted
        teach: Any = getattr(module, "teacher_logits", lambda _: None)
        other = teach(batch)
        if other is not None and other.shape == logits.shape:
            self.teacher.append(form.rows(other)[chosen].float().cpu())
        self.student.append(rows[chosen].float().cpu())
        self.labels.append((labels.argmax(-1) if form.kind == "soft" else labels)[chosen].cpu())

    def plots(self, classes: list[str] | None = None) -> Iterator[Plot]:
        """Yield each figure that the outputs allow."""
        if self.student:
            labels, networks = torch.cat(self.labels), {"student": torch.cat(self.student)}
            if self.teacher:
                networks["teacher"] = torch.cat(self.teacher)
            count = networks["student"].shape[1]
            names = classes if classes and len(classes) == count else [str(number) for number in range(count)]
            rows = reliability_rows(networks, labels)
            yield Plot("reliability", rows, drawing.reliability(rows))
            if self.teacher:
                pair = networks["student"], networks["teacher"]
                rows = agreement_rows(*pair, labels, names)
                yield Plot("agreement", rows, drawing.agreement(rows))
                rows = confusion_rows(*pair, names)
                yield Plot("confusion", rows, drawing.confusion(rows))
                rows = correlation_rows(*pair, names)
                yield Plot("class_correlations", rows, drawing.correlations(rows))
        own, taught = ({name: torch.cat(parts)[:SAMPLES] for name, parts in side.items()} for side in self.layers)
        if own and taught:
            rows = cka_rows(own, taught)
            yield Plot("cka", rows, drawing.cka(rows))


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """Return the direct parts of a network, or of the one network inside a wrapper; lists by their elements."""
    parts = [*network.named_children()]
    while len(parts) == 1 and [*parts[0][1].named_children()]:
        parts = [(f"{parts[0][0]}.{name}", child) for name, child in parts[0][1].named_children()]
    layers: dict[str, nn.Module] = {}
    for name, part in parts:
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            layers |= {f"{name}.{inner}": child for inner, child in part.named_children()}
        elif not isinstance(part, nn.modules.dropout._DropoutNd):  # the identity in evaluation
            layers[name] = part
    return layers


@contextmanager
def tapped(network: nn.Module, layers: dict[str, list[Tensor]]) -> Iterator[None]:
    """Keep, in a forward, what the parts of a network return."""

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and name not in seen:  # a layer that runs again counts once
            seen.add(name)
            layers.setdefault(name, []).append(output.flatten(1).float().cpu().clone())

    seen: set[str] = set()
    handles = [part.register_forward_hook(partial(keep, name)) for name, part in parts_of(network).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
