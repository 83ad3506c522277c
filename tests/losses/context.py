"""The run of the contract test: two small networks with the layers of :func:`draw`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdlab.losses import Paraphraser, SelfSupervision
from kdlab.losses.context import Context
from kdlab.outputs import Mix, Outputs

NUM_CLASSES = 5
SAMPLES = 12
WIDTH = 4
VIEWS = {"rotations": 3}
MAPS = ((3, 4, 4), (WIDTH, 3, 3))
SEQUENCES = {
    **dict.fromkeys(("HiddenCosine", "TinyBERTHidden", "PKD"), ((5, 6), (5, 6))),
    "TinyBERTAttention": ((2, 5, 5), (2, 5, 5)),
    "MiniLM": 3 * ((5, 24),),
    "MiniLMv2": 3 * ((5, 48),),
}
"""The layers of one sample, for losses on sequences: hidden states (L, D), or attention (heads, L, L)."""


def seed(value: int) -> None:
    """Seed the generator of the CPU alone: ``torch.manual_seed`` also queues seeds for devices, which is slow."""
    torch.default_generator.manual_seed(value)


class Net(nn.Module):
    """Names and widths of the outputs of :func:`draw`, with BatchNorms; it is never run."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(width, NUM_CLASSES)
        for norm in (self.one, self.two):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)


def draw(batch: int, seed: int, scale: float = 1.0, views: Sequence[str] = (), kind: str = "") -> Outputs:
    """All outputs that a network can have, in float64; sequences with padding where the loss ``kind`` reads some."""
    shapes = SEQUENCES.get(kind, MAPS)
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, *shape: int) -> Tensor:
        return scale * torch.randn(rows, *shape, generator=generator, dtype=torch.float64)

    def once(rows: int) -> Outputs:
        layers = tuple(normal(rows, *shape) for shape in shapes)
        names = ("one", "two", "three")[: len(layers)]
        return Outputs(normal(rows, NUM_CLASSES), layers, normal(rows, WIDTH), names=names)

    seen = {view: once(batch * VIEWS.get(view, 1)) for view in views}
    if "mixed" in seen:
        mix = Mix(torch.arange(batch).roll(1), torch.linspace(0.2, 0.9, batch, dtype=torch.float64))
        seen["mixed"] = replace(seen["mixed"], mix=mix)
    mask = (torch.arange(5) < 3 + torch.arange(batch)[:, None] % 3).long() if kind in SEQUENCES else None
    return replace(once(batch), index=torch.arange(batch), views=seen, mask=mask)


def context(names: Sequence[str] = ("one", "two"), dtype: torch.dtype = torch.float64) -> Context:
    """A run of 12 samples in 5 classes, in batches of up to 7."""
    seed(5)
    student, teacher = Net().to(dtype), Net().to(dtype)
    return Context(
        student,
        (teacher,),
        tuple(names),
        tuple(names),
        samples=SAMPLES,
        labels=torch.arange(SAMPLES) % NUM_CLASSES,
        batch_size=7,
        classes=NUM_CLASSES,
        losses=others(dtype),
    )


def others(dtype: torch.dtype) -> dict[str, nn.Module]:
    """The losses that other losses build on, by name."""
    head, paraphraser = SelfSupervision(), Paraphraser()
    for each in (head, paraphraser):
        each.materialize(torch.zeros(1, dtype=dtype), WIDTH)
    return {"head": head, "paraphraser": paraphraser}


def setup(loss: nn.Module, given: Context) -> nn.Module:
    """As the module does at the start of a fit."""
    if getattr(loss, "several_teachers", False):  # the classifiers read what draw() gives as the layers
        given = replace(given, teachers=tuple(Net(width).to(given.teacher.fc.weight) for width in (3, WIDTH)))
    for part in loss.modules():
        if hasattr(part, "setup"):
            part.setup(given)
        if hasattr(part, "precompute"):
            part.precompute([(draw(10, seed=9).map(lambda x: x.float()), torch.arange(10) % NUM_CLASSES)])
    loss.register_forward_pre_hook(lambda *_: seed(7))  # the same draws in every call
    return loss


def numbers(kind: type[nn.Module]) -> list[str]:
    """The arguments of a loss that are numbers."""
    arguments = inspect.signature(kind).parameters.items()
    return [name for name, each in arguments if type(each.default) in (int, float)]
