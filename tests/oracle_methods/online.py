"""The online methods of the oracle file: networks, branches, exits and views as teachers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import losses
from kdlab.knowledge import Knowledge
from kdlab.members.member import Learner
from kdlab.outputs import Batch, Head, Outputs
from kdlab.schedules import Progress
from kdlab.teaching import Classmate, Consensus, DeepestExit, Gated, LastMiniBatch, Peers, Teaching, TwoViews
from kdlab.teaching.plan import Plan
from tests.oracle_methods.method import Arrays, Method


class StandIn(nn.Module):
    """Stands for a network with these further heads, whose outputs are given."""

    def __init__(self, *heads: str) -> None:
        super().__init__()
        self.heads = {name: Head(None, str) for name in ("", *heads)}
        self.weight = nn.Parameter(torch.rand(4))  # networks that start alike are refused


class Taught(nn.Module):
    """The losses of a step on given outputs: those on the labels, and those of the edges."""

    def __init__(self, teaching: Teaching, **knowledge: Knowledge) -> None:
        super().__init__()
        self.teaching, self.knowledge = teaching, knowledge
        self.losses = nn.ModuleDict({name: each.loss for name, each in knowledge.items()})
        self.plan: Plan | None = None

    def draw(self, networks: Mapping[str, nn.Module]) -> Plan:
        """The plan for these networks, drawn once."""
        if self.plan is None:
            self.plan = self.teaching.plan({name: Learner(name, network) for name, network in networks.items()})
        return self.plan

    def seen(self, plan: Plan, outputs: Mapping[str, Outputs], target: Tensor) -> dict[str, Outputs]:
        """The outputs of all members, with those of learners given."""
        seen, batch = {**outputs}, batch_of(target)
        for member in plan.members.values():
            if not isinstance(member, Learner):
                seen |= member(batch, seen)
        return seen

    def labels(self, plan: Plan, seen: Mapping[str, Outputs], target: Tensor) -> Tensor:
        batch = batch_of(target)
        values = [
            float(weight(seen, batch) if callable(weight) else weight)
            * F.cross_entropy(seen[name].logits, seen[name].targets(batch))
            for name, weight in plan.supervision.items()
        ]
        return torch.stack(values).sum()

    def edges(self, plan: Plan, seen: Mapping[str, Outputs], target: Tensor, of: str | None = None) -> Tensor:
        values = [
            each.weight * value
            for edge in plan.edges
            for each in self.knowledge.values()
            if of in (None, edge.student)
            and (value := each.compare(edge, each.loss, seen, batch_of(target))) is not None
        ]
        return torch.stack(values).sum()


def batch_of(target: Tensor, index: Tensor | None = None) -> Batch:
    return Batch(torch.empty(0), target, index, progress=Progress(0, 0))


def soft(temperature: float, **options: float) -> Knowledge:
    return Knowledge(losses.SoftTargets(temperature, **options))


def dml(loss: Taught, arrays: Arrays) -> Tensor:
    seen = {"a": Outputs(arrays["student_logits"]), "b": Outputs(arrays["teacher_logits"])}
    return loss.edges(loss.draw({name: StandIn() for name in seen}), seen, torch.zeros(1), of="a")


def kdcl(loss: Taught, arrays: Arrays) -> Tensor:
    outputs = {name: Outputs(z) for name, z in arrays.items() if name.startswith("member")}
    plan, target = loss.draw({name: StandIn() for name in outputs}), arrays["labels"]
    return loss.edges(plan, loss.seen(plan, outputs, target), target)


def one(loss: Taught, arrays: Arrays) -> Tensor:
    main, *branches = [z for name, z in arrays.items() if name.startswith("branch_logits")]
    outputs = {"net": Outputs(main, (arrays["gate_input"],), names=("trunk",))}
    outputs |= {f"net_branch{number}": Outputs(z) for number, z in enumerate(branches, 1)}
    plan = loss.draw({"net": StandIn(*(f"branch{number}" for number in range(1, len(outputs))))})
    target = arrays["labels"]
    seen = loss.seen(plan, outputs, target)
    return loss.labels(plan, seen, target) + loss.edges(plan, seen, target)


def viewed(view: str, loss: Taught, arrays: Arrays) -> Tensor:
    """The student on the batch, with its logits on another view as the teacher."""
    seen = {"net": Outputs(arrays["student_logits"]), f"net@{view}": Outputs(arrays["teacher_logits"])}
    return loss.edges(loss.draw({"net": StandIn()}), seen, torch.zeros(1))


def dlb(loss: Taught, arrays: Arrays) -> Tensor:
    """The student on the last batch again, with its earlier logits as the teacher."""
    logits = arrays["teacher_logits"].detach()
    index = torch.arange(len(logits))
    batch = batch_of(torch.zeros(len(index)), index)
    loss.teaching.dtype = logits.dtype
    plan = loss.draw({"net": StandIn()})
    bank = plan.members["net@past"]
    bank.setup(len(index))
    before = {"net": Outputs(logits, index=index), "net@last_batch": Outputs(logits, index=index)}
    bank.is_dry_run = True
    bank(batch, before)
    bank.is_dry_run = False
    bank.record(batch, before)
    again = {"net": before["net"], "net@last_batch": Outputs(arrays["student_logits"], index=index)}
    return loss.edges(plan, {**again, **bank(batch, again)}, batch.target)


def ddgsd(loss: Taught, arrays: Arrays) -> Tensor:
    sides = [Outputs(arrays[f"logits_view{i}"], embedding=arrays[f"embedding_view{i}"]) for i in (1, 2)]
    seen, plan = dict(zip(("net", "net@second"), sides, strict=True)), loss.draw({"net": StandIn()})
    # Self-KD-Lib halves the mean over both views once more.
    return 0.5 * loss.labels(plan, seen, arrays["labels"]) + loss.edges(plan, seen, arrays["labels"])


def byot(loss: Taught, arrays: Arrays) -> Tensor:
    logits = sorted(name for name in arrays if name.startswith("logits"))
    exits = [f"exit{i}" for i in range(1, len(logits))]
    seen = {
        name: Outputs(arrays[z], (arrays[z.replace("logits", "feature")],), names=("feature",))
        for name, z in zip(["net", *(f"net_{name}" for name in exits)], logits, strict=True)
    }
    plan = loss.draw({"net": StandIn(*exits)})
    return loss.labels(plan, seen, arrays["labels"]) + loss.edges(plan, seen, arrays["labels"])


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
        # The difference of means has gradient on both sides of each of two edges, so each counts half.
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
