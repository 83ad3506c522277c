"""Teachers that are the learner itself on other inputs: another augmentation, or another image of the same class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kdlab.data import SameClass, SecondView, View
from kdlab.errors import InputError
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.sample_bank import both
from kdlab.teaching.teaching import Answer, Lesson, Teaching


class _Seen(Teaching):
    """Every network also runs one view of the batch, in the same forward."""

    view: str

    @property
    def sees(self) -> tuple[str, ...]:
        """The view."""
        return (self.view,)

    def pairs(self, learners: Sequence[str]) -> list[tuple[str, str]]:
        """Each with itself."""
        return [(name, name) for name in learners]


class TwoViews(_Seen):
    r"""Two augmentations of one image teach each other (DDGSD).

    .. math:: L = \tfrac12 (task_a + task_b) + w \left( loss(a, \mathrm{sg}[b]) + loss(b, \mathrm{sg}[a]) \right)

    Both go through the network in one forward.

    Recipe: :class:`~kdlab.losses.SoftTargets`. The re-implementation (Self-KD-Lib) adds 5e-4 times the squared
    difference of the embeddings' overall means, and halves the label loss once more (``task_weight=0.5``).

    Paper: T.-B. Xu, C.-L. Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019.

    Args:
        detach: cut the teacher's side from the graph.
    """

    view = "second"

    def __init__(self, detach: bool = True) -> None:
        super().__init__()
        self.detach = detach

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """A second augmentation."""
        return {self.view: SecondView()}

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """Both augmentations, alike."""
        return [answer for name, each in outputs.items() for answer in both(name, each, batch, self.view)]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each augmentation from the other."""
        lessons = []
        for name, first in outputs.items():
            second = first.views[self.view]
            sides = (first.detach(), second.detach()) if self.detach else (first, second)
            lessons.append(Lesson(name, sides[1], source=name))
            lessons.append(Lesson(name, sides[0], source=name, student=second))
        return lessons


class Classmate(_Seen):
    r"""Every image is taught by another image of its class (CS-KD).

    .. math:: L = task(x) + w \cdot loss\big(f(x), \mathrm{sg}[f(x')]\big)

    with x' drawn from x's class, with replacement; it may be x, as in the released code. The labels count for x alone.
    Both go through the network in one forward; the released code runs x' in a forward of its own, also in train mode.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 4, weight 1 (CIFAR-100, TinyImageNet) or 3 (fine-grained).

    Paper: S. Yun, J. Park, K. Lee, J. Shin, "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR
    2020, arXiv 2003.13964.
    """

    view = "classmate"

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """Another image of each sample's class."""
        return {self.view: SameClass()}

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """Each image from its classmate."""
        return [Lesson(name, each.views[self.view].detach(), source=name) for name, each in outputs.items()]


class Classmates(_Seen):
    r"""Every batch is joined with further images of its samples' classes; labels and lessons count for all (BAKE).

    .. math:: L = task(X) + w \cdot loss\big(f(X), \mathrm{sg}[f(X)]\big), \qquad X = x \cup x'_1 \cup .. \cup x'_V

    for losses that compare the samples of one batch, which are seldom of one class otherwise.

    Recipe: BAKE three further images (CIFAR-100), :class:`~kdlab.losses.BAKE` with weight 1.

    Paper: Y. Ge, X. Zhang, C. L. Choi, K. C. Cheung, P. Zhao, F. Zhu, X. Wang, R. Zhao, H. Li, "Self-distillation with
    Batch Knowledge Ensembling Improves ImageNet Classification", 2021, arXiv 2104.13298.

    Args:
        count: V, further images a sample.

    Raises:
        InputError: a count below 1.
    """

    view = "classmates"

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        if count < 1:
            raise InputError(f"Classmates needs at least 1 further image a sample, not {count}.")
        self.count = count

    def asks(self, learners: Sequence[str]) -> dict[str, View]:
        """Further images of each sample's class."""
        return {self.view: SameClass(self.count)}

    def answers(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Answer]:
        """All images, alike."""
        return [answer for name, each in outputs.items() for answer in both(name, each, batch, self.view)]

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        """All images as one batch, from themselves."""
        lessons = []
        for name, each in outputs.items():
            whole, target = joined(each, each.views[self.view], batch.target)
            lessons.append(Lesson(name, whole.detach(), source=name, student=whole, target=target))
        return lessons


def joined(seen: Outputs, view: Outputs, target: Tensor) -> tuple[Outputs, Tensor]:
    """The outputs on a batch and on a view of it as those on one larger batch, with the labels of all."""
    own = target.repeat_interleave(len(view.logits) // len(seen.logits)) if view.target is None else view.target
    index = None if seen.index is None or view.index is None else torch.cat([seen.index, view.index])
    embedding = None
    if seen.embedding is not None and view.embedding is not None:
        embedding = torch.cat([seen.embedding, view.embedding])
    layers = tuple(torch.cat(pair) for pair in zip(seen.layers, view.layers, strict=True))
    whole = Outputs(torch.cat([seen.logits, view.logits]), layers, embedding, index=index, names=seen.names)
    return whole, torch.cat([target, own])
