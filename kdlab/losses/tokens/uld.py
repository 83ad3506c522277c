"""ULD: sorted probabilities of different vocabularies (Boizard et al. 2024)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.context import Context
from kdlab.losses.functional import full_precision
from kdlab.losses.tokens.token_loss import CAUSAL
from kdlab.outputs import Outputs


class ULD(nn.Module):
    r"""L1 distance of the sorted token probabilities, for networks with different tokenizers and vocabularies.

    .. math:: L = \frac{1}{B} \sum_b \frac{1}{N_b} \sum_{n=1}^{N_b} \sum_v \left| p^{\downarrow}_{bnv} -
              q^{\downarrow}_{bnv} \right|

    Each row is sorted from the largest probability down, and the shorter one is filled with zeros: the Wasserstein
    distance where all tokens are equally far apart. The n-th position that counts of the student is compared with the
    n-th of the teacher, up to the fewer of both; a sample without one does not count. It does not know which token is
    which. Computed in float32, or in float64 for float64 logits.

    Recipe: weight 1.5 beside weight 1 on the labels (the paper's language models; UNVERIFIED); none for images.

    Args:
        student_temperature: of the student's probabilities, positive.
        teacher_temperature: of the teacher's probabilities, positive.

    Shapes:
        logits: (B, Ls, Vs) and (B, Lt, Vt), or (B, K) for one position a sample.
        target: labels of the student (B, Ls), those of the teacher in its outputs' ``target`` (B, Lt), shifted once, as
            :class:`~kdlab.members.Retokenized` gives them for a teacher with its own tokenizer;
            positions with the ignored label do not count, nor do those with mask 0. Without labels of its own the
            teacher has the student's, where the lengths are the same.

    Raises:
        InputError: a number out of range; other numbers of samples or axes.

    Paper: N. Boizard, K. El Haddad, C. Hudelot, P. Colombo, "Towards Cross-Tokenizer Distillation: the Universal Logit
    Distillation Loss for LLMs", 2024, arXiv 2402.12030. Follows the authors' code (llm-recipes): mean over positions,
    then over the batch.

    >>> student, teacher = Outputs(torch.tensor([[0.0, 0.0]])), Outputs(torch.tensor([[0.0, 0.0, 0.0]]))
    >>> ULD()(student, teacher, torch.tensor([0]))
    tensor(0.6667)
    """

    needs: ClassVar[tuple[str, ...]] = ("logits",)
    recipe_weight: ClassVar[float] = 1.5
    reads_sequences: ClassVar[bool] = True

    def __init__(self, student_temperature: float = 1.0, teacher_temperature: float = 1.0) -> None:
        super().__init__()
        self.student_temperature = at_least("student_temperature", student_temperature, 0, strictly=True)
        self.teacher_temperature = at_least("teacher_temperature", teacher_temperature, 0, strictly=True)
        self.ignore_index: int | None = CAUSAL.ignore_index

    def setup(self, context: Context) -> None:
        """Take the ignored label from the task."""
        self.ignore_index = context.form.ignore_index

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over samples, 0 if none counts: a scalar; gradient to the student only."""
        shapes = [tuple(each.logits.shape) for each in (student, teacher)]
        if len(shapes[0]) not in (2, 3) or len(shapes[0]) != len(shapes[1]) or shapes[0][0] != shapes[1][0]:
            raise InputError(f"ULD compares logits (B, L, V) of the same samples, not {shapes[0]} and {shapes[1]}.")
        sides = [
            self._sequences(student, target, self.student_temperature),
            self._sequences(teacher, target if teacher.target is None else teacher.target, self.teacher_temperature),
        ]
        values = []
        for ours, theirs in zip(*sides, strict=True):
            count, width = min(len(ours), len(theirs)), max(ours.shape[1], theirs.shape[1])
            if count:
                both = [_sorted(x[:count], width) for x in (ours, theirs.detach())]
                values.append((both[0] - both[1]).abs().sum(1).mean())
        return torch.stack(values).mean() if values else student.logits[:0].sum()

    def _sequences(self, outputs: Outputs, labels: Tensor, temperature: float) -> list[Tensor]:
        """Return the tempered logits (n, V) of the positions that count, for each sample."""
        logits = outputs.logits[:, None] if outputs.logits.dim() == 2 else outputs.logits
        logits = logits / temperature
        counted = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
        if labels.numel() == counted.numel() and self.ignore_index is not None:
            counted &= labels.reshape(counted.shape) != self.ignore_index
        if outputs.mask is not None and outputs.mask.numel() == counted.numel():
            counted &= outputs.mask.reshape(counted.shape).bool()
        return [row[chosen] for row, chosen in zip(logits, counted, strict=True)]


def _sorted(logits: Tensor, width: int) -> Tensor:
    """Return the probabilities (n, width), the largest first, filled with zeros."""
    return F.pad(logits.softmax(-1).sort(-1, descending=True).values, (0, width - logits.shape[-1]))
