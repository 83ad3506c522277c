"""SSKD: soft targets on images and their rotations, and similarities from a pretext task (Xu et al. 2020)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, same_logits
from kdlab.losses.context import Context
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.losses.relation.self_supervision import (
    VIEW,
    SelfSupervision,
    cosines,
    pretext_head,
    rotations,
    upright_and_rotated,
)
from kdlab.outputs import Outputs


class SSKD(Lazy):
    r"""Divergences of predictions on images, on rotated images, and of similarities between both.

    .. math:: L = w_o \, T^2 \, \mathrm{KL}_b(p^t_b \| p^s_b) + w_r \, T^2 \, \mathrm{KL}_{R}(p^t_{bv} \| p^s_{bv})
              + w_s \, \tau^2 \, \mathrm{KL}_{S}(a^t_{bv} \| a^s_{bv})

    with :math:`p = \mathrm{softmax}(z / T)` of the image b and of its rotations v, :math:`a_{bv} = \mathrm{softmax}_j
    (\cos(h(x_{bv}), h(x_j)) / \tau)` over the upright images j of the batch, h the network's pretext head (that of the
    teacher from :class:`SelfSupervision`, that of the student trained here), each divergence the mean over its rows. R
    and S leave out rotated images on which the teacher is badly wrong: of those whose label (R) or whose upright image
    (S) is not its top prediction, only the shares ``keep_answers`` and ``keep_similarities`` with the best ranks are
    used (within a rank the earlier rows). Computed in float32, or in float64 for float64 inputs.

    Recipe: CIFAR-100 0.1 on the labels of the upright images, weight 1 with the defaults here, 240 epochs after
    :class:`SelfSupervision`'s 60; rotations by 90, 180 and 270 degrees, no mirroring.

    Args:
        head: the name of the knowledge whose loss is :class:`SelfSupervision`.
        answers: w_o, not negative.
        rotated_answers: w_r, not negative.
        similarities: w_s, not negative.
        temperature: T, positive.
        similarity_temperature: tau, positive.
        keep_answers: share of the teacher's wrong predictions that is used, from 0 to 1.
        keep_similarities: the same for its wrong similarities, from 0 to 1.

    Shapes:
        logits: (B, K) on both sides, and (V B, K) in the view "rotations", those of one image adjacent.
        embedding: (B, Ds) and (B, Dt), and with V B rows in the view.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range; no knowledge of that name with :class:`SelfSupervision`; no view; networks
            that differ in classes or batch; labels that are not class indices.

    Paper: G. Xu, Z. Liu, X. Li, C. C. Loy, "Knowledge Distillation Meets Self-Supervision", ECCV 2020, arXiv
    2006.07114. Follows the authors' code.

    >>> x = torch.eye(2)
    >>> side = Outputs(x, embedding=x, views={"rotations": Outputs(x, embedding=x)})
    >>> loss = SSKD(similarities=0.0)
    >>> loss.setup(Context(torch.nn.Identity(), (), losses={"head": SelfSupervision()}))
    >>> loss(side, side, torch.tensor([0, 1]))
    tensor(0., grad_fn=<AddBackward0>)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "embedding", "classes", "views")
    views: ClassVar[tuple[str, ...]] = (VIEW,)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the two heads differ
    order_matters: ClassVar[bool] = True  # it decides which images of equal rank are left out
    couples_samples: ClassVar[bool] = True

    def __init__(
        self,
        head: str = "head",
        answers: float = 0.9,
        rotated_answers: float = 2.7,
        similarities: float = 10.0,
        temperature: float = 4.0,
        similarity_temperature: float = 0.5,
        keep_answers: float = 1.0,
        keep_similarities: float = 0.75,
    ) -> None:
        super().__init__()
        self.name = head
        self.answers = at_least("answers", answers, 0)
        self.rotated_answers = at_least("rotated_answers", rotated_answers, 0)
        self.similarities = at_least("similarities", similarities, 0)
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.similarity_temperature = at_least("similarity_temperature", similarity_temperature, 0, strictly=True)
        self.keep_answers = at_least("keep_answers", keep_answers, 0, most=1)
        self.keep_similarities = at_least("keep_similarities", keep_similarities, 0, most=1)
        self._pretext: tuple[SelfSupervision, ...] = ()

    def setup(self, context: Context) -> None:
        """Store the loss with the teacher's head, which stays a part of that loss."""
        self._pretext = (context.loss(self.name, SelfSupervision),)

    def build(self, width: int) -> None:
        """Build the student's head."""
        self.head = pretext_head(width)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; gradient to the student and its head only."""
        same_logits(student, teacher)
        labels = class_labels(target, student.logits)
        upright, rotated = upright_and_rotated(student, "student")
        student_view, teacher_view = rotations(student, "student"), rotations(teacher, "teacher")
        same_logits(student_view, teacher_view)
        if not self._pretext:
            raise InputError(f"SSKD needs the teacher's head: call setup() with a loss {self.name!r}.")
        self.materialize(upright, upright.shape[1])
        teacher_similarities = self._pretext[0].cosines(teacher.detach())
        similarities = cosines(self.head(rotated), self.head(upright))
        return self.combined(
            student.logits,
            teacher.logits,
            student_view.logits,
            teacher_view.logits,
            labels,
            similarities,
            teacher_similarities,
        )

    def combined(
        self,
        upright: Tensor,
        upright_teacher: Tensor,
        rotated: Tensor,
        rotated_teacher: Tensor,
        labels: Tensor,
        similar: Tensor,
        similar_teacher: Tensor,
    ) -> Tensor:
        """Return the weighted sum, from logits (B, K), those of rotated images (V B, K), and similarities (V B, B)."""
        views = len(rotated) // len(upright)
        image_index = torch.arange(len(upright), device=upright.device).repeat_interleave(views)
        mask = _row_mask(rotated_teacher, labels.repeat_interleave(views), self.keep_answers)
        similarity_mask = _row_mask(similar_teacher, image_index, self.keep_similarities)
        t, tau = self.temperature, self.similarity_temperature
        value = self.answers * _divergence(upright, upright_teacher, t, torch.ones_like(upright[:, 0]))
        value = value + self.rotated_answers * _divergence(rotated, rotated_teacher, t, mask)
        return value + self.similarities * _divergence(similar, similar_teacher, tau, similarity_mask)


def _row_mask(scores: Tensor, truth: Tensor, share: float) -> Tensor:
    """Return 1 for the rows to use, else 0: all with the truth on top, and the best ranked ``share`` of the others."""
    right = scores.detach().gather(1, truth[:, None])
    rank = (scores.detach() > right).sum(1)
    order = rank.argsort(stable=True)
    wrong = (rank > 0).sum()
    count = len(rank) - wrong + (wrong * share).floor()
    places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return (places < count).to(scores.dtype)


def _divergence(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor) -> Tensor:
    """Return T^2 times the mean over the rows in the mask; 0 if there are none."""
    log_q, log_p = F.log_softmax(student / temperature, 1), F.log_softmax(teacher.detach() / temperature, 1)
    rows = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    return temperature**2 * (mask * rows).sum() / mask.sum().clamp(min=1)
