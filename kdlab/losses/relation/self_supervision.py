"""Self-supervision (SSKD): a pretext head on the teacher, the first stage of SSKD (Xu et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs

VIEW = "rotations"


class SelfSupervision(Lazy):
    r"""Cross-entropy of finding the upright image of every rotated one in the batch, with a trained head.

    .. math:: L = -\frac{1}{V B} \sum_{b,v} \log \mathrm{softmax}_j \left( \cos(h(x_{bv}), h(x_j)) \right)_b

    with :math:`x_j` the teacher's embedding of the upright image j, :math:`x_{bv}` that of the v-th rotation of image
    b, h a linear layer, ReLU and a linear layer, all of the embedding's width. The teacher does not change; the student
    is not read. :class:`SSKD` uses the head afterwards. 0 for a batch of one, about log B for an untrained head.
    Computed in float32, or in float64 for float64 embeddings.

    Recipe: CIFAR-100 weight 1 alone (no labels) for 60 epochs before the student's training, learning rate 0.05,
    divided by 10 at epochs 30 and 45; rotations by 90, 180 and 270 degrees, no mirroring. ImageNet 30 epochs at 0.1.

    Shapes:
        teacher's embedding: (B, D), and (V B, D) in the view "rotations", those of one image adjacent.
        target: not used.

    Raises:
        InputError: no embedding, no view, or a view that is not V rotations of each image.

    Paper: G. Xu, Z. Liu, X. Li, C. C. Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv
    2006.07114. Follows the authors' code, which has no temperature in the softmax.

    >>> upright, rotated = torch.eye(2), torch.ones(6, 2)
    >>> rotations = Outputs(rotated, embedding=rotated)
    >>> teacher = Outputs(upright, embedding=upright, views={"rotations": rotations})
    >>> loss = SelfSupervision()
    >>> loss(Outputs(torch.zeros(2, 2)), teacher, torch.zeros(2)).shape
    torch.Size([])
    >>> loss.head
    Sequential(
      (0): Linear(in_features=2, out_features=2, bias=True)
      (1): ReLU()
      (2): Linear(in_features=2, out_features=2, bias=True)
    )
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher_embedding", "views")
    views: ClassVar[tuple[str, ...]] = (VIEW,)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the student is not read
    couples_samples: ClassVar[bool] = True

    def build(self, width: int) -> None:
        """Build the pretext head."""
        self.head = pretext_head(width)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over all rotated images, a scalar; gradient to the head only."""
        upright, rotated = (each.detach() for each in upright_and_rotated(teacher, "teacher"))
        if len(student.logits) != len(upright):
            raise InputError(f"The student has {len(student.logits)} samples and the teacher {len(upright)}.")
        self.materialize(upright, upright.shape[1])
        labels = torch.arange(len(upright), device=upright.device).repeat_interleave(len(rotated) // len(upright))
        return F.cross_entropy(cosines(self.head(rotated), self.head(upright)), labels)

    def cosines(self, teacher: Outputs) -> Tensor:
        """Return the trained head's similarities (V B, B) of rotated to upright images, without gradient."""
        embedded = upright_and_rotated(teacher, "teacher")
        with torch.no_grad():
            self.materialize(embedded[0], embedded[0].shape[1])
            # The head belongs to another loss: its weights are not yet in the precision of the caller.
            weights = {name: weight.to(embedded[0].dtype) for name, weight in self.head.named_parameters()}
            upright, rotated = (torch.func.functional_call(self.head, weights, (each,)) for each in embedded)
            return cosines(rotated, upright)


def pretext_head(width: int) -> nn.Module:
    """Return linear, ReLU, linear, all of one width."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def cosines(rotated: Tensor, upright: Tensor) -> Tensor:
    """Return cosine similarities (V B, B)."""
    return F.normalize(rotated, eps=1e-8) @ F.normalize(upright, eps=1e-8).T


def upright_and_rotated(outputs: Outputs, side: str) -> tuple[Tensor, Tensor]:
    """Return the embedding (B, D) of a network, and that of the rotated images (V B, D)."""
    view = rotations(outputs, side)
    if outputs.embedding is None or view.embedding is None:
        raise InputError(f"The {side} has no embedding: its last layer must be linear.")
    return outputs.embedding, view.embedding


def rotations(outputs: Outputs, side: str) -> Outputs:
    """Return the view "rotations", checked to hold equally many images for each of the batch."""
    view, batch = outputs.views.get(VIEW), len(outputs.logits)
    if view is None:
        raise InputError(f"The {side} has no view {VIEW!r}: add kdlab.data.Rotations to data.views.")
    if not batch or not len(view.logits) or len(view.logits) % batch:
        raise InputError(
            f"The {side}'s view {VIEW!r} has {len(view.logits)} images for {batch}: use equally many for each image."
        )
    return view
