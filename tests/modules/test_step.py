"""One training step: edges and their weights, whose samples and labels, turns, and what a module keeps between fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import CoTrainer, FrozenTeacher, Knowledge
from kdlab.losses import SoftTargets
from kdlab.members.member import Learner, Member, Seen
from kdlab.models import WithExits
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Classmates, LastMiniBatch, Peers
from kdlab.teaching.plan import Plan
from tests.losses.slow import kl, softmax
from tests.modules.cotraining import cotrainer, image_net, peers, soft
from tests.modules.tiny import Logged, digits, distiller, network, pairs, same, sgd, trainer, weights


class Halved(FrozenTeacher):
    """Edges as a user's own teaching may draw them: of half weight, from a member that gives no sample index."""

    def plan(self, networks: dict[str, Learner]) -> Plan:
        plan = super().plan(networks)
        bare = Bare(plan.members["teacher"])
        members = {name: bare if name == "teacher" else member for name, member in plan.members.items()}
        edges = [edge._replace(weight=edge.weight / 2) for edge in plan.edges]  # type: ignore[operator]
        return dataclasses.replace(plan, members=members, edges=edges)


class Bare(Member):
    """A member's logits without their sample index."""

    def __init__(self, member: Member) -> None:
        super().__init__(member.name)
        self.__dict__["member"] = member

    def forward(self, batch: Batch, seen: Seen) -> dict[str, Outputs]:
        return {self.name: Outputs(self.member(batch, seen)[self.name].logits)}


def test_an_edge_counts_with_its_own_weight() -> None:
    values = []
    for teaching in (FrozenTeacher, Halved):
        knowledge = {"soft": Knowledge(SoftTargets(4.0), 3.0)}
        module = CoTrainer({"net": network()}, knowledge, teaching([network(1)]), optimizer=sgd)
        run = trainer()
        run.fit(module, pairs(8, 8))
        assert module.dry_run is not None
        seen = run.callback_metrics
        assert torch.allclose(seen["loss/total"], seen["loss/task"] + 3 * seen["loss/soft"])
        values.append((float(seen["loss/soft"]), module.dry_run.terms["soft"]))
    (step, dry), halves = values
    assert halves == pytest.approx((step / 2, dry / 2), rel=1e-6)


@pytest.mark.parametrize("teaching", [FrozenTeacher, Halved])
def test_both_sides_know_which_samples_they_are_of(teaching: type[FrozenTeacher]) -> None:
    class Indexed(nn.Module):
        needs: ClassVar[tuple[str, ...]] = ("logits", "index")

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            assert student.index is not None
            assert teacher.index is not None
            assert torch.equal(student.index, teacher.index)
            self.seen.append(student.index)
            return (student.logits - teacher.logits).square().mean()

    loss = Indexed()
    module = CoTrainer({"net": network()}, {"indexed": Knowledge(loss)}, teaching([network(1)]), optimizer=sgd)
    trainer().fit(module, digits())
    assert torch.cat(loss.seen[1:]).unique().numel() == 160  # the first is the dry run's


def test_another_fit_of_one_module_draws_by_its_own_seed() -> None:
    module = distiller(student=network(hidden=(200,), dropout=0.5))
    masks: list[Tensor] = []
    module.student.dropout.register_forward_hook(  # type: ignore[union-attr]
        lambda net, args, output: masks.append(output == 0)
    )
    fits = []
    for seed in (1, 2, 1):
        with torch.no_grad():  # the same start for each: no unit is at 0 but by dropout
            for own, start in zip(module.student.parameters(), network(hidden=(200,)).parameters(), strict=True):
                own.copy_(start)
        pl.seed_everything(seed, verbose=False)
        masks.clear()
        trainer(max_steps=1).fit(module, pairs())
        fits.append(masks[-1])
    assert torch.equal(fits[0], fits[2])
    assert not torch.equal(fits[0], fits[1])


class ReadsLabels(nn.Module):
    """Cross-entropy, as a knowledge."""

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return F.cross_entropy(student.logits, target)


@pytest.mark.parametrize("teaching", [LastMiniBatch(), Classmates(3)], ids=["DLB", "BAKE"])
def test_an_edge_on_other_samples_has_their_labels(teaching: Any) -> None:
    expected: list[float] = []
    got: list[float] = []

    class Watch(pl.Callback):
        before: list[int] | None = None

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, number: int) -> None:
            assert batch.views is not None
            own, shown = batch.target.tolist(), batch.views[teaching.view].inputs
            if isinstance(teaching, Classmates):  # the batch, and three images of each sample's class, side by side
                inputs, labels = torch.cat([batch.inputs, shown]), [*own, *(y for y in own for _ in range(3))]
            else:  # the batch before alone
                inputs, labels = shown, self.before
            if labels:
                rows = zip(module.networks["net"](inputs).tolist(), labels, strict=True)
                expected.append(sum(-math.log(softmax(row)[label]) for row, label in rows) / len(labels))
            self.before = own

        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if "loss/labels" in trainer.callback_metrics:
                got.append(float(trainer.callback_metrics["loss/labels"]))

    module = cotrainer({"net": network()}, knowledge={"labels": Knowledge(ReadsLabels())}, teaching=teaching)
    trainer(max_steps=4, callbacks=[Watch()]).fit(module, digits(padding=1))
    assert len(got) == (4 if isinstance(teaching, Classmates) else 3)
    assert got == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_a_step_logs_the_sum_over_its_turns(update: Any) -> None:
    module = cotrainer(task_weight=0.25, knowledge=soft(2.0, 0.9), teaching=Peers(update))
    trainer(logger=(logged := Logged())).fit(module, pairs(16, 8))
    rows = [row for _, row in logged.rows if "loss/task" in row]
    assert len(rows) == 2
    for row, expected in zip(rows, by_hand(update == "sequential"), strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert row["loss/task_weighted"] == pytest.approx(0.25 * expected["loss/task"], rel=1e-5)
        assert row["loss/soft_weighted"] == pytest.approx(0.9 * expected["loss/soft"], rel=1e-5)
        assert (row["weight/task"], row["weight/soft"]) == (0.25, pytest.approx(0.9))


def by_hand(sequential: bool) -> list[dict[str, float]]:
    """Deep mutual learning of two networks in plain loops: the sums of each step."""
    nets, rows = peers(), []
    optimizers = {name: sgd(net.parameters()) for name, net in nets.items()}
    for x, y in pairs(16, 8):
        before = {name: net(x) for name, net in nets.items()}
        row = dict.fromkeys(("loss/task", "loss/soft", "loss/total"), 0.0)
        row |= {f"train/{name}_accuracy": float((z.argmax(1) == y).float().mean()) for name, z in before.items()}
        for name, net in nets.items():
            other = "b" if name == "a" else "a"
            teacher = (nets[other](x) if sequential else before[other]).detach()
            student = net(x)
            task = F.cross_entropy(student, y)
            divergences = [
                kl(softmax(p, 2.0), softmax(q, 2.0)) for p, q in zip(teacher.tolist(), student.tolist(), strict=True)
            ]
            row["loss/task"] += float(task.detach())
            row["loss/soft"] += 4 * sum(divergences) / len(divergences)
            distance = F.kl_div(F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1), reduction="batchmean")
            optimizers[name].zero_grad()
            (0.25 * task + 0.9 * 4 * distance).backward()
            if sequential:
                optimizers[name].step()
        if not sequential:
            for optimizer in optimizers.values():
                optimizer.step()
        row["loss/total"] = 0.25 * row["loss/task"] + 0.9 * row["loss/soft"]
        rows.append(row)
    return rows


@pytest.mark.parametrize("exits", [False, True])
def test_a_network_named_like_a_head_has_a_turn_of_its_own(exits: bool) -> None:
    first = {True: lambda: WithExits(image_net(), ["layer1", "layer2"], "layer3", image=[1, 8, 8]), False: image_net}

    def trained(*names: str) -> tuple[list[dict[str, Tensor]], list[dict[str, float]]]:
        nets = dict(zip(names, [first[exits](), network(1)], strict=True))
        module = cotrainer(nets, teaching=Peers("sequential"))
        trainer(max_steps=2, logger=(logged := Logged())).fit(module, digits())
        rows = [{key: row[key] for key in ("loss/task", "loss/soft", "loss/total")} for _, row in logged.rows]
        return [weights(net) for net in module.networks.values()], rows

    (ends, rows), (others, other_rows) = trained("a", "a_b"), trained("x", "y")
    assert all(same(one, other) for one, other in zip(ends, others, strict=True))
    assert rows == other_rows


def test_every_edge_and_label_counts_in_one_turn() -> None:
    taken: list[tuple[str | None, str]] = []

    class Note(nn.Module):
        def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            names = {id(value): name for name, value in outputs.items()}
            if module._turn is not None:
                taken.append((module._turn, names[id(student.logits)]))
                assert student.logits.requires_grad
                assert not teacher.logits.requires_grad
            return (student.logits - teacher.logits).square().mean()

    class NoteLabels(nn.Module):
        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            if module._turn is not None:
                taken.append((module._turn, next(name for name, value in outputs.items() if value is logits)))
                assert logits.requires_grad
            return F.cross_entropy(logits, target)

    outputs: dict[str, Tensor] = {}
    nets = {"a": network(0), "a_b": network(1)}
    module = cotrainer(nets, knowledge={"note": Knowledge(Note())}, teaching=Peers("sequential"), task=NoteLabels())
    observe = module.observe

    def noted(batch: Batch, members: Any = None) -> Mapping[str, Outputs]:
        seen = observe(batch, members)
        outputs.update({name: value.logits for name, value in seen.items()})
        return seen

    module.observe = noted  # type: ignore[method-assign]
    trainer(max_steps=1).fit(module, pairs())
    assert taken == [("a", "a"), ("a", "a"), ("a_b", "a_b"), ("a_b", "a_b")]


class Drawing(nn.Module):
    """A loss that notes a random number at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[float] = []

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        self.drawn.append(float(torch.rand(())))
        return (student.logits - teacher.logits).square().mean()


def test_every_step_of_every_epoch_draws_other_numbers() -> None:
    module = distiller(knowledge={"drawing": Knowledge(loss := Drawing())})
    trainer(3).fit(module, pairs(16, 8))
    _, *drawn = loss.drawn  # the first is the dry run's
    assert len(set(drawn)) == len(drawn) == 6


def test_weights_of_supervision_are_computed_in_their_turn() -> None:
    module, turns = cotrainer(teaching=Peers("sequential")), list[str | None]()

    def weight(seen: Mapping[str, Outputs], batch: Batch) -> float:
        turns.append(module._turn)
        return 1.0

    module.plan.supervision["a"] = weight
    trainer(max_steps=2).fit(module, digits())
    assert turns[:2] == [None, "a"]  # the dry run, then the first step
    assert "b" not in turns
