"""Shared parts of the losses on token logits: base class, positions that count, log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.losses.checks import one_of, same_logits
from kdlab.losses.context import Context
from kdlab.losses.functional import full_precision
from kdlab.losses.response.logits import sample_logits
from kdlab.losses.tokens.chunked import chunked_sum
from kdlab.outputs import Outputs
from kdlab.outputs.factored import FactoredLogits
from kdlab.outputs.task_format import TaskFormat

Positions = Literal["labeled", "attended"]

CAUSAL = TaskFormat("classes", -1, -100)
"""Logits (B, L, V) of language models and their labels (B, L): position by position, nothing is shifted."""


class TokenLoss(nn.Module):
    """A loss on logits (N, V) that is the mean of one value for each position that counts.

    Every position is compared with itself: labels of causal language models are shifted once, by the data, so that
    ``labels[:, t]`` is the token after ``t`` (see :func:`~kdlab.losses.tokens.next_token_labels`).

    Args:
        positions: ``"labeled"`` counts positions whose label is not ignored and whose mask is 1; ``"attended"`` those
            whose mask is 1, whatever their label.
        chunk_size: positions that are projected and compared at a time where the network gives hidden states and its
            head (:class:`~kdlab.outputs.factored.FactoredLogits`), as kdlab's training does with this argument set;
            ``None`` for all at once.
    """

    def __init__(self, positions: Positions = "labeled", chunk_size: int | None = None) -> None:
        super().__init__()
        self.positions: Positions = one_of("positions", positions, ("labeled", "attended"))
        self.chunk_size = checked_chunk_size(chunk_size)
        self.ignore_index: int | None = CAUSAL.ignore_index

    def setup(self, context: Context) -> None:
        """Take the ignored label from the task."""
        self.ignore_index = context.form.ignore_index

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean over the positions that count, 0 if none does: a scalar; gradient to the student only."""
        same_logits(student, teacher)
        ignored = self.ignore_index if self.positions == "labeled" else None
        form = CAUSAL._replace(ignore_index=ignored)
        student, teacher, target = form.select(student, teacher, target)
        logits, teacher_logits = student.logits, teacher.logits.detach()

        def compute(part: Tensor, rows: slice) -> Tensor:
            return self.per_row(part, teacher_logits[rows], target[rows]).sum()

        def gradient(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            return self.row_gradient(part, own_copy(teacher_logits[rows]), target[rows])

        fast = gradient if type(self).row_gradient is not TokenLoss.row_gradient else None
        # A trained temperature needs a gradient of its own.
        size = None if isinstance(getattr(self, "temperature", None), Tensor) else self.chunk_size
        return chunked_sum(compute, logits, size, fast) / max(len(logits), 1)

    @full_precision
    def per_sample(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the value for every row of logits (B, K), (B,)."""
        logits, teacher_logits = sample_logits(student, replace(teacher, logits=teacher.logits.detach()), least=1)
        return self.per_row(logits, teacher_logits, target)

    def per_row(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the value (n,) of rows of logits (n, V) and their labels; no gradient goes to the teacher's."""
        raise NotImplementedError(f"{type(self).__name__} must define per_row().")

    def row_gradient(self, student: Tensor, teacher: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of :meth:`per_row` and its gradient (n, V), both logits overwritten.

        A subclass may define it, for chunks that take less memory and time than with autograd.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gradient of its own.")


def checked_chunk_size(size: int | None) -> int | None:
    """Return ``size`` if it is ``None`` or a whole number of at least 1.

    Raises:
        InputError: it is not.
    """
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise InputError(f"chunk_size must be a whole number of positions of at least 1, or null, not {size!r}.")
    return size


def log_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log-softmax over the last axis, finite where a logit is -inf (a padded vocabulary): 0 times it is 0."""
    logits = logits if isinstance(temperature, (int, float)) and temperature == 1 else logits / temperature
    values = F.log_softmax(logits, -1)
    least = torch.finfo(values.dtype).min / 4
    return values.clamp(min=least) if values.requires_grad else values.clamp_(min=least)


def own_copy(logits: Tensor) -> Tensor:
    """Return logits that nobody else reads."""
    return logits.dense() if isinstance(logits, FactoredLogits) and logits.computed is None else logits.clone()


def normalize_(logits: Tensor, temperature: float) -> Tensor:
    """Make :func:`log_probabilities` of logits (n, V) in place."""
    logits = logits if temperature == 1 else logits.div_(temperature)
    logits = logits.sub_(logits.amax(-1, keepdim=True))  # logsumexp copies the logits twice
    return logits.sub_(logits.exp().sum(-1, keepdim=True).log_()).clamp_(min=torch.finfo(logits.dtype).min / 4)


def dots(left: Tensor, right: Tensor) -> Tensor:
    """Return the scalar products (n, 1) of rows (n, V), without their elementwise product."""
    return torch.bmm(left[:, None], right[:, :, None])[:, 0]


def kl_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence of rows of log-probabilities, p first: (n,)."""
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
