"""TTM: divergence from the teacher's power-transformed class probabilities (Zheng and Yang 2024)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import PerSample, divergence, sample_logits
from kdlab.outputs import Outputs


class TTM(PerSample):
    r"""Kullback-Leibler divergence from the teacher's power-transformed to the student's plain class probabilities.

    .. math:: L = \frac{1}{B} \sum_b \mathrm{KL}(\tilde p_b \| q_b), \qquad
              \tilde p_k = \frac{p_k^l}{\sum_j p_j^l}, \quad p = \mathrm{softmax}(z^t), \quad q = \mathrm{softmax}(z^s)

    which softens the teacher with temperature 1 / l and leaves the student at 1; there is no factor T^2. 0 where the
    student gives the softened probabilities, so equal networks are no minimum unless l = 1. Computed in float32,
    or in float64 for float64 logits, from ``softmax(l z)``, which keeps the tail that a power of a float32 softmax
    loses.

    Recipe: CIFAR-100 (authors, vgg13 to vgg8) l = 0.1, weight 45 with weight 1 on the labels; weights depend on the
    pair (about 76 for wrn_40_2 to wrn_40_1).

    Args:
        power: l, positive; a temperature T is 1 / T.

    Shapes:
        logits: (B, K), the same for both networks.
        target: not used.

    Raises:
        InputError: a power out of range, networks that differ in classes or batch, an empty batch.

    Paper: K. Zheng, E.-H. Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv
    2402.11148. This gives the value of the authors' code.

    >>> import torch
    >>> student, teacher = Outputs(torch.tensor([[2.0, 0.0]])), Outputs(torch.tensor([[0.0, 2.0]]))
    >>> TTM(power=0.5)(student, teacher, torch.tensor([0]))
    tensor(1.0068)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 45.0
    minimum: ClassVar[float | None] = None

    def __init__(self, power: float = 0.1) -> None:
        super().__init__()
        self.power = at_least("power", power, 0, strictly=True)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the divergence for every sample, (B,)."""
        student_logits, teacher_logits = sample_logits(student, teacher)
        return divergence(student_logits, teacher_logits * self.power)
