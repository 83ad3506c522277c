"""The online methods of the oracle file: networks, branches, exits and views as teachers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import losses
from kdlab.knowledge import Knowledge
from kdlab.outputs import Batch, Head, Outputs
from kdlab.teaching import Classmate, Consensus, DeepestExit, Gated, LastMiniBatch, Peers, Teaching, TwoViews
from tests.oracle_methods.method import Arrays, Method


class Taught(nn.Module):
    """The losses of a step on given outputs: those on the labels, and those of the lessons."""

    def __init__(self, teaching: Teaching, **knowledge: Knowledge) -> None:
        super().__init__()
        self.teaching, self.knowledge = teaching, knowledge
        self.losses = nn.ModuleDict({name: each.loss for name, each in knowledge.items()})

    def labels(self, outputs: dict[str, Outputs], target: Tensor) -> Tensor:
        answers = self.teaching.answers(outputs, Batch(torch.empty(0), target))
        return sum(x.weight * F.cross_entropy(x.logits, x.target) for x in answers)

    def lessons(self, outputs: dict[str, Outputs], target: Tensor, of: str | None = None) -> Tensor:
        total = torch.zeros((), dtype=target.dtype if target.is_floating_point() else torch.float64)
        for x in self.teaching.lessons(outputs, Batch(torch.empty(0), target)):
            if of in (None, x.learner):
                student = outputs[x.learner] if x.student is None else x.student
                for each in self.knowledge.values():
                    total = total + each.weight * x.weight * each.compare(student, x.teacher, target)
        return total


class TwoHeads(nn.Module):
    """Stands for a network with that many exits."""

    def __init__(self, exits: int) -> None:
        super().__init__()
        self.heads = {name: Head(None, str) for name in ["", *(f"exit{i + 1}" for i in range(exits))]}


def soft(temperature: float, **options: float) -> Knowledge:
    return Knowledge(losses.SoftTargets(temperature, **options))


def dml(loss: Taught, arrays: Arrays) -> Tensor:
    outputs = {"a": Outputs(arrays["student_logits"]), "b": Outputs(arrays["teacher_logits"])}
    return loss.lessons(outputs, torch.zeros(1), of="a")


def kdcl(loss: Taught, arrays: Arrays) -> Tensor:
    outputs = {name: Outputs(z) for name, z in arrays.items() if name.startswith("member")}
    return loss.lessons(outputs, arrays["labels"])


def one(loss: Taught, arrays: Arrays) -> Tensor:
    branches = {name: Outputs(z) for name, z in arrays.items() if name.startswith("branch_logits")}
    first = next(iter(branches))
    branches[first] = Outputs(branches[first].logits, (arrays["gate_input"],), names=("trunk",))
    loss.teaching._trunk = first
    target = arrays["labels"]
    outputs = loss.teaching.gather(branches, Batch(torch.empty(0), target))
    return loss.labels(outputs, target) + loss.lessons(outputs, target)


def viewed(view: str, loss: Taught, arrays: Arrays) -> Tensor:
    """The student on the batch, with its logits on another view as the teacher."""
    seen = Outputs(arrays["student_logits"], views={view: Outputs(arrays["teacher_logits"])})
    return loss.lessons({"net": seen}, torch.zeros(1))


def dlb(loss: Taught, arrays: Arrays) -> Tensor:
    """The student on the last batch again, with its earlier logits as the teacher."""
    teaching, said = loss.teaching, Outputs(arrays["teacher_logits"])
    index = torch.arange(len(said.logits))
    before = Batch(torch.empty(0), torch.zeros(len(index)), index)
    first = Outputs(said.logits, index=index)
    teaching.adopt({"net": nn.Identity()}, ["net"])
    teaching.dtype = said.logits.dtype
    teaching.adopt({"net": nn.Identity()}, ["net"])
    teaching.prepare({"net": first}, len(index))
    teaching.remember({"net": first}, before)
    again = Outputs(arrays["student_logits"], index=index)
    return loss.lessons({"net": Outputs(said.logits.detach(), views={"last_batch": again})}, torch.zeros(1))


def ddgsd(loss: Taught, arrays: Arrays) -> Tensor:
    sides = [Outputs(arrays[f"logits_view{i}"], embedding=arrays[f"embedding_view{i}"]) for i in (1, 2)]
    seen = {"net": Outputs(sides[0].logits, embedding=sides[0].embedding, views={"second": sides[1]})}
    # Self-KD-Lib halves the mean over both views once more.
    return 0.5 * loss.labels(seen, arrays["labels"]) + loss.lessons(seen, arrays["labels"])


def byot(loss: Taught, arrays: Arrays) -> Tensor:
    exits = sorted(name for name in arrays if name.startswith("logits"))
    names = ["net", *(f"net_exit{i}" for i in range(1, len(exits)))]
    outputs = {
        name: Outputs(arrays[z], (arrays[z.replace("logits", "feature")],), names=("feature",))
        for name, z in zip(names, exits, strict=True)
    }
    loss.teaching.adopt({"net": TwoHeads(len(exits) - 1)}, names)
    return loss.labels(outputs, arrays["labels"]) + loss.lessons(outputs, arrays["labels"])


GATE = {"weight": "linear.weight", "bias": "linear.bias", "bn_weight": "norm.weight", "bn_bias": "norm.bias"}
METHODS: dict[str, Method] = {
    "DML-pair": Method(lambda h: Taught(Peers(), soft=soft(1.0)), compute=dml),
    "KDCL": Method(lambda h: Taught(Consensus(), soft=soft(h["T"])), compute=kdcl),
    "ONE": Method(
        lambda h: Taught(Gated("trunk"), soft=Knowledge(losses.SoftTargets(h["T"], floor=1e-7), h["ramp"])),
        {f"gate_{name}": f"teaching.gate.{own}" for name, own in GATE.items()},
        compute=one,
    ),
    "CS-KD": Method(
        lambda h: Taught(Classmate(), soft=soft(h["T"])),
        compute=lambda loss, arrays: viewed("classmate", loss, arrays),
    ),
    "DLB": Method(lambda h: Taught(LastMiniBatch(), soft=soft(h["T"])), compute=dlb),
    "DDGSD": Method(
        # The difference of means has gradient on both sides in each of two lessons, so each counts half.
        lambda h: Taught(
            TwoViews(detach=False),
            soft=soft(h["T"]),
            mean=Knowledge(losses.MeanDifference(teacher_gradient=True), 2.5e-4),
        ),
        compute=ddgsd,
    ),
    "BYOT": Method(
        lambda h: Taught(
            DeepestExit(),
            soft=soft(h["T"]),
            hint=Knowledge(losses.Hint(None), 0.05, student_layers=["feature"]),
        ),
        compute=byot,
    ),
}
