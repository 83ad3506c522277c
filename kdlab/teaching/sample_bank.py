"""Networks taught by their own earlier outputs: of the last epoch, some epochs ago, or on the last batch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
from torch import nn

from kdlab.data import LastBatch
from kdlab.errors import InputError, check_word
from kdlab.members.bank import Bank
from kdlab.members.member import Learner
from kdlab.outputs import Batch, Outputs
from kdlab.teaching.plan import Edge, Plan, Teaching, Way, heads_of_all


class BankTeaching(Teaching):
    """A teaching with a bank of outputs, of type ``dtype``, for each student, kept in checkpoints."""

    def __init__(self, dtype: Literal["float32", "float16"] = "float32") -> None:
        super().__init__()
        check_word("dtype", dtype, ("float32", "float16"))
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.tables = nn.ModuleDict()

    def register(self, banks: Mapping[str, Bank]) -> dict[str, Bank]:
        """Register the bank of each student; return them as members, by their names."""
        self.tables = nn.ModuleDict(banks)
        return {bank.name: bank for bank in banks.values()}


class PreviousEpoch(BankTeaching):
    r"""Networks that are taught by their own outputs on the same sample in an earlier epoch (PS-KD, LWR).

    The teacher's logits of sample n are those that the student gave, in training, at its last visit in an epoch e with
    :math:`(e + 1) \bmod every = 0`. A sample that has none yet is taught by its label alone: probability 1, so that
    cross-entropy and KL are the cross-entropy with the label. With ``wait`` no edge counts before the first such epoch
    is over.

    Recipe: PS-KD ``every=1`` with :class:`~kdlab.losses.SoftLabels`, weight :math:`\alpha_e = 0.8 (e + 1) / E` and task
    weight :math:`1 - \alpha_e`; LWR ``every=5, wait=True`` with :class:`~kdlab.losses.SoftTargets`.

    Papers: K. Kim, B. Ji, D. Yoon, S. Hwang, "Self-Knowledge Distillation with Progressive Refinement of Targets", ICCV
    2021, arXiv 2006.12000. X. Deng, Z. Zhang, "Learning with Retrospection", AAAI 2021, arXiv 2012.13098.

    Args:
        every: epochs from one recording to the next.
        wait: whether nothing is taught before the first one.
        dtype: of the bank.

    Raises:
        InputError: ``every`` below 1; before the first step, loaders without sample index.
    """

    ways = (
        Way("Progressive refinement of targets (PS-KD)", "Kim et al. 2021", ("ps_kd",)),
        Way("Learning with retrospection (LWR)", "Deng and Zhang 2021", ("lwr",)),
    )

    def __init__(self, every: int = 1, wait: bool = False, dtype: Literal["float32", "float16"] = "float32") -> None:
        super().__init__(dtype)
        if every < 1:
            raise InputError(f"A bank records every 1 or more epochs, not {every}.")
        self.every, self.wait = every, wait

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student to its bank."""
        students = heads_of_all(networks)
        recording = (self.dtype, self.every, self.wait)
        banks = self.register({n: Bank(f"{n}@past", n, n, *recording, label_unknown=True) for n in students})
        edges = [Edge(name, f"{name}@past") for name in students]
        return Plan({**networks, **banks}, edges, dict.fromkeys(students, 1.0))


class LastMiniBatch(BankTeaching):
    r"""Networks that see the last batch again, augmented anew, taught by their own outputs of then (DLB).

    At step t the network runs batch t and, in the same forward, batch t - 1 under another augmentation. Labels count
    for both, as one batch; the edge is on batch t - 1, with its logits of step t - 1. The first step of a training
    has none. With gradient accumulation a step is a batch.

    Recipe: :class:`~kdlab.losses.SoftTargets` with T = 3.

    Paper: Y. Shen, L. Xu, Y. Yang, Y. Li, Y. Guo, "Self-Distillation from the Last Mini-Batch for Consistency
    Regularization", CVPR 2022, arXiv 2203.16172, whose code makes two forwards of them.
    """

    ways = (Way("The last mini-batch (DLB)", "Shen et al. 2022", ("dlb",)),)
    view = "last_batch"

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return a plan with an edge from each student on the last batch to its bank."""
        for learner in networks.values():
            learner.views = (self.view,)
        students = heads_of_all(networks)
        seen_again = {name: f"{name}@{self.view}" for name in students}
        banks = self.register({name: Bank(f"{name}@past", name, seen_again[name], self.dtype) for name in students})
        edges = [Edge(again, f"{name}@past") for name, again in seen_again.items()]
        supervision = {of: partial(_share, of, pair) for pair in seen_again.items() for of in pair}
        return Plan({**networks, **banks}, edges, supervision, {self.view: LastBatch()})


def _share(of: str, names: tuple[str, str], seen: Mapping[str, Outputs], batch: Batch) -> float:
    """Return the share of one of two outputs in the number of their samples: labels count for both as one batch."""
    return len(seen[of].logits) / sum(len(seen[name].logits) for name in names)
