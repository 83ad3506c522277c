"""BAKE: soft targets ensembled over the similar samples of a batch (Ge et al. 2021)."""

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
    r"""Divergence from the teacher's probabilities, propagated among the similar samples of the batch.

    .. math:: L = \frac{T^2}{B} \sum_b \mathrm{KL}\big( Q_b \,\|\, \mathrm{softmax}(z^s_b / T) \big), \qquad
              Q = (1 - \omega) (I - \omega A)^{-1} P, \qquad P_b = \mathrm{softmax}(z^t_b / T)

    with :math:`A_{bj} = \mathrm{softmax}_j(\cos(x_b, x_j))` over the other samples, :math:`A_{bb} = 0`, and x the
    teacher's embedding with a norm of at least 10^-12. Q is the fixed point of
    :math:`Q \leftarrow \omega A Q + (1 - \omega) P`; its rows sum to 1. It is a target without gradient. In a batch of
    one Q = P; omega = 0 gives :class:`SoftTargets`. The network is usually its own teacher, with its
    outputs of the same step. Computed in float32, or in float64 for float64 inputs.

    Recipe: weight 1 beside weight 1 on the labels, T = 4; CIFAR-100 omega = 0.5 and 3 more images of the class of each
    in a batch of 128; TinyImageNet omega = 0.9 and 1 more.

    Args:
        temperature: T, positive.
        omega: weight of the other samples, at least 0 and below 1.

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
    minimum: ClassVar[float | None] = None  # the ensembled targets differ from the student
    couples_samples: ClassVar[bool] = True

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
        # Finite, so that the softmax of a batch of one gives 1 and Q = P.
        affinity = (directions @ directions.T).masked_fill(identity.bool(), -1e9).softmax(1)
        probabilities = F.softmax(logits / self.temperature, 1)
        # Exact values are not negative; rounding may leave a tiny negative one, without a logarithm.
        shared: Tensor = torch.linalg.solve(identity - self.omega * affinity, probabilities).clamp(min=0)
        return (1 - self.omega) * shared


def _embedding(teacher: Outputs) -> Tensor:
    value = teacher.layers[0] if len(teacher.layers) == 1 else teacher.embedding
    if value is None or value.dim() < 2 or len(value) != len(teacher.logits):
        raise InputError(
            f"BAKE compares the teacher's embeddings (B, D) of {len(teacher.logits)} samples, but it gives "
            f"{'none' if value is None else tuple(value.shape)}: use a linear last layer or tap one layer."
        )
    return value.flatten(1)
