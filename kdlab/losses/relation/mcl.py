"""Mutual contrastive learning (MCL): contrastive losses within and across two networks (Yang et al. 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, embeddings
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision, kl_divergence
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class MCL(Lazy):
    r"""Contrastive losses within each network and across both, and divergences between their similarities.

    .. math:: L = w_v \sum_{n} C(S^{nn}) + w_i \sum_{n \ne m} C(S^{nm})
              + w_{sv} \sum_{n \ne m} D(S^{nn} \| S^{mm}) + w_{si} \sum_{n \ne m} D(S^{nm} \| S^{mn}), \qquad
              S^{nm}_{bj} = \frac{v^n_b \cdot v^m_j}{\tau}

    over the networks n, m in {student, teacher}, with :math:`v^n_b` the network's embedding after its own trained head
    (linear, ReLU, linear to ``width`` features), divided by its norm (at least 10^-12), and

    .. math:: C(S) = -\frac{1}{|A|} \sum_{b \in A} \frac{1}{|P_b|} \sum_{j \in P_b} \Big( S_{bj}
              - \log \sum_{i \ne b} e^{S_{bi}} \Big), \qquad
              D(S \| R) = \frac{T^2}{B} \sum_b \mathrm{KL}\big( \mathrm{softmax}(R_b / T) \,\|\,
              \mathrm{softmax}(S_b / T) \big)

    :math:`P_b` holds the other samples of the class of b, A the samples that have any; without one C is 0. R is
    detached. The paper's names are VCL, ICL, soft VCL and soft ICL, in this order.

    The teacher's embedding is detached before its head. So the student and both heads of this loss get the gradient of
    the released, symmetric loss, which has one sum over both networks; the teacher gets its gradient from the opposite
    edge, where it is the student, and both edges together give both networks the gradient of the released code. The
    differences: each edge has its two heads where the code has one for each network, and the logged value is that of
    the sum, once for each edge. With more than two networks, every pair is an edge, so C within the student counts once
    for each of its teachers. There is no memory bank. Computed in float32, or in float64 if an input or weight
    is float64.

    Recipe: CIFAR-100 weight 1 for every edge beside weight 1 on the labels, the defaults as here (tau = 0.07 is
    that of the released code); batches of 128 with 2 samples of a class.

    Args:
        temperature: tau, positive.
        width: features of a vector, at least 1.
        vanilla: w_v, not negative.
        interactive: w_i, not negative.
        soft_vanilla: w_sv, not negative.
        soft_interactive: w_si, not negative.
        soft_temperature: T, positive.

    Shapes:
        embedding: (B, Ds) and (B, Dt), or one tapped layer of each network, flattened.
        target: (B,) integer class labels.

    Raises:
        InputError: a number out of range; no embedding, or of different batches; fewer than 2 samples; labels that are
            not class indices.

    Paper: C. Yang, Z. An, L. Cai, Y. Xu, "Mutual Contrastive Learning for Visual Representation Learning", AAAI 2022,
    arXiv 2104.12565. Follows the authors' code for CIFAR-100, which excludes the sample itself from C across both
    networks too, but not from D, and is undefined for a sample without another one of its class. The memory bank of the
    ImageNet code is not implemented.

    >>> student = Outputs(torch.zeros(4, 2), embedding=torch.rand(4, 3))
    >>> teacher = Outputs(torch.zeros(4, 2), embedding=torch.rand(4, 5))
    >>> loss = MCL(width=8)
    >>> loss(student, teacher, torch.tensor([0, 0, 1, 1])).shape
    torch.Size([])
    >>> loss.teacher_head
    Sequential(
      (0): Linear(in_features=5, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=8, bias=True)
    )
    """

    needs: ClassVar[tuple[str, ...]] = ("embedding", "classes")
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the two heads differ
    true_gradient: ClassVar[bool] = False  # the targets of the divergences are detached
    couples_samples: ClassVar[bool] = True

    def __init__(
        self,
        temperature: float = 0.07,
        width: int = 128,
        vanilla: float = 0.1,
        interactive: float = 0.1,
        soft_vanilla: float = 1.0,
        soft_interactive: float = 1.0,
        soft_temperature: float = 3.0,
    ) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.width = whole_number("width", width)
        self.vanilla = at_least("vanilla", vanilla, 0)
        self.interactive = at_least("interactive", interactive, 0)
        self.soft_vanilla = at_least("soft_vanilla", soft_vanilla, 0)
        self.soft_interactive = at_least("soft_interactive", soft_interactive, 0)
        self.soft_temperature = at_least("soft_temperature", soft_temperature, 0, strictly=True)

    def build(self, student: int, teacher: int) -> None:
        """Build both heads."""
        self.student_head, self.teacher_head = _head(student, self.width), _head(teacher, self.width)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; gradient to the student and to both heads."""
        student_embedding, teacher_embedding = embeddings(student, teacher)
        labels = class_labels(target, student.logits)
        if len(student_embedding) < 2 or len(student_embedding) != len(labels):
            raise InputError(
                "MCL contrasts the samples of a batch and needs at least 2, with one embedding for each label, not "
                f"{len(student_embedding)} embeddings and {len(labels)} labels."
            )
        self.materialize(student_embedding, student_embedding.shape[1], teacher_embedding.shape[1])
        a = F.normalize(self.student_head(student_embedding), eps=1e-12)
        b = F.normalize(self.teacher_head(teacher_embedding.detach()), eps=1e-12)
        within = [a @ a.T / self.temperature, b @ b.T / self.temperature]
        across = a @ b.T / self.temperature
        value = self.vanilla * (contrast(within[0], labels) + contrast(within[1], labels))
        value = value + self.interactive * (contrast(across, labels) + contrast(across.T, labels))
        value = value + self.soft_vanilla * self._mutual(*within)
        return value + self.soft_interactive * self._mutual(across, across.T)

    def _mutual(self, one: Tensor, other: Tensor) -> Tensor:
        """Return both divergences of two similarity matrices (B, B), each towards the other, detached."""
        pairs = ((one, other.detach()), (other, one.detach()))
        return torch.stack([kl_divergence(x, y, self.soft_temperature) for x, y in pairs]).sum()


def contrast(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a sample's class among all other samples, from scores (B, B).

    >>> contrast(torch.zeros(3, 3), torch.tensor([0, 0, 1]))  # one positive of two, none for the third
    tensor(0.6931)
    """
    diagonal = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    same = (labels[:, None] == labels[None, :]) & ~diagonal
    log_p = F.log_softmax(scores.masked_fill(diagonal, -torch.inf), 1).masked_fill(~same, 0)
    count = same.sum(1)
    return -(log_p.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


def _head(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
