"""BAKE: soft targets in which a batch's samples share their answers with those that look alike (Ge et al. 2021)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import sample_logits
from kdlab.outputs import Outputs


class BAKE(nn.Module):
    r"""Divergence from the teacher's answers after these have spread among the similar samples of the batch.

    .. math:: L = \frac{T^2}{B} \sum_b \mathrm{KL}\big( Q_b \,\|\, \mathrm{softmax}(z^s_b / T) \big), \qquad
              Q = (1 - \omega) (I - \omega A)^{-1} P, \qquad P_b = \mathrm{softmax}(z^t_b / T)

    with :math:`A_{bj} = \mathrm{softmax}_j(\cos(x_b, x_j))` over the other samples, :math:`A_{bb} = 0`, and x the
    teacher's embedding with a norm of at least 10^-12. Q is what endless steps of :math:`Q \leftarrow \omega A Q +
    (1 - \omega) P` come to; its rows sum to 1. It is a target: no gradient passes through it. A batch of one has
    nobody to share with, so that Q = P; omega = 0 makes :class:`SoftTargets` of it. Only the samples of one process
    share. The network usually teaches itself: its own answers of the same step stand on the teacher's side. Computed
    in float32, or in float64 for float64 inputs.

    Recipe: weight 1 beside weight 1 on the labels, T = 4; CIFAR-100 omega = 0.5 and 3 more images of the class of each
    in a batch of 128; TinyImageNet omega = 0.9 and 1 more.

    Args:
        temperature: T, positive.
        omega: how much is taken over from others, from 0 to below 1.

    Shapes:
        logits: (B, K), the same for both networks.
        teacher's embedding: (B, D), or its only tapped layer, flattened.
        target: not used.

    Raises:
        InputError: a number out of range; networks that differ in classes or batch, an empty batch; no embedding.

    Paper: Y. Ge, C. L. Choi, X. Zhang, P. Zhao, F. Zhu, R. Zhao, H. Li, "Self-distillation with Batch Knowledge
    Ensembling Improves ImageNet Classification", arXiv 2104.13298. Follows the authors' code; Self-KD-Lib passes Q
    through a further softmax.

    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> network = Outputs(logits, embedding=torch.eye(2))
    >>> BAKE(temperature=1.0)(network, network.detach(), torch.zeros(2))
    tensor(0.1192)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "teacher_embedding")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the shared answers are not the student's own

    def __init__(self, temperature: float = 4.0, omega: float = 0.5) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.omega = at_least("omega", omega, 0, below=1)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over the batch, a scalar; gradient to the student's logits only."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        shared = self.shared(teacher_logits, _embedding(teacher).detach())
        log_q = F.log_softmax(student_logits / self.temperature, 1)
        return F.kl_div(log_q, shared, reduction="sum") * (self.temperature**2 / len(student_logits))

    def shared(self, logits: Tensor, embedding: Tensor) -> Tensor:
        """Return the targets Q (B, K) from logits (B, K) and embeddings (B, D)."""
        directions = F.normalize(embedding, eps=1e-12)
        identity = torch.eye(len(logits), dtype=logits.dtype, device=logits.device)
        # A finite number, not minus infinity: in a batch of one the softmax then gives 1 and Q = P.
        affinity = (directions @ directions.T).masked_fill(identity.bool(), -1e9).softmax(1)
        probabilities = F.softmax(logits / self.temperature, 1)
        # Exactly, no entry is negative; rounding may leave a tiny one, of which there is no logarithm.
        shared: Tensor = torch.linalg.solve(identity - self.omega * affinity, probabilities).clamp(min=0)
        return (1 - self.omega) * shared


def _embedding(teacher: Outputs) -> Tensor:
    value = teacher.layers[0] if len(teacher.layers) == 1 else teacher.embedding
    if value is None or value.dim() < 2 or len(value) != len(teacher.logits):
        raise InputError(
            f"BAKE compares the teacher's embeddings (B, D) of {len(teacher.logits)} samples, but it gives "
            f"{'none' if value is None else tuple(value.shape)}: its last layer must be linear, or tap one layer."
        )
    return value.flatten(1)
