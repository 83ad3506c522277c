"""Graphs of frozen teachers and peers, written in YAML, against plain loops and hand-written losses."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import Hint, SoftTargets
from kdlab.members import Frozen
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from kdlab.teaching import Graph
from kdlab.teaching.graph import correct as correct_gate
from tests.losses.slow import draw
from tests.modules.tiny import digits, network, pairs, same, sgd, trainer, weights
from tests.teaching.graphs import GRAPH, graph_module, parsed
from tests.teaching.step import Given, Kept, compared, seen_by


def kl(student: Tensor, teacher: Tensor, temperature: float = 2.0) -> Tensor:
    """The softened KL divergence of each sample, (B,), times T squared."""
    log_q, p = F.log_softmax(student / temperature, 1), (teacher.detach() / temperature).softmax(1)
    return F.kl_div(log_q, p, reduction="none").sum(1) * temperature**2


def plain_loop(teacher: nn.Module, update: str, count: int) -> dict[str, nn.Module]:
    """The graph by hand: own forwards, one optimizer a network."""
    nets = {"a": network(0), "b": network(1)}
    optimizers = {name: sgd(net.parameters()) for name, net in nets.items()}
    data = digits()
    data.setup()
    for step, raw in zip(range(count), data.train_dataloader(), strict=False):
        batch = data.prepare(raw, 0)
        with torch.no_grad():
            big = teacher(batch.inputs)
        correct = (big.argmax(1) == batch.target).float()
        for turn in ("a", "b") if update == "sequential" else ("ab",):
            a, b = (net(batch.inputs) for net in nets.values())
            losses = {
                "a": F.cross_entropy(a, batch.target) + 0.7 * (0.5 * kl(a, big) + (step + 1) / count * kl(a, b)).mean(),
                "b": 0.5 * F.cross_entropy(b, batch.target) + 0.7 * (2 * correct * kl(b, big) + kl(b, a) / 4).mean(),
            }
            for name in turn:
                optimizers[name].zero_grad()
                losses[name].backward()
            for name in turn:
                optimizers[name].step()
    return nets


def trained(net: nn.Module) -> dict[str, Tensor]:
    """The weights after one epoch, so that some samples are classified correctly and some are not."""
    net, data = copy.deepcopy(net).requires_grad_(True), digits()
    optimizer = sgd(net.parameters())
    data.setup()
    correct = torch.zeros(0)
    for raw in data.train_dataloader():
        batch = data.prepare(raw, 0)
        optimizer.zero_grad()
        logits = net(batch.inputs)
        F.cross_entropy(logits, batch.target).backward()
        optimizer.step()
        correct = torch.cat([correct, (logits.argmax(1) == batch.target).float()])
    assert 0.1 < float(correct[-64:].mean()) < 0.9
    return weights(net)


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_written_graph_equals_a_plain_loop(update: Any) -> None:
    graph = parsed(update=update)
    teacher = graph.teachers["big"].network
    assert isinstance(teacher, nn.Module)
    teacher.load_state_dict(trained(teacher))
    before = weights(teacher)
    expected = plain_loop(copy.deepcopy(teacher), update, 4)
    module = graph_module(graph)
    run = trainer(max_steps=4)
    run.fit(module, digits())
    assert run.global_step == 4
    for name, net in module.networks.items():
        for key, value in weights(net).items():
            assert float((value - expected[name].state_dict()[key]).abs().max()) < 1e-6, (name, key)
    assert same(weights(teacher), before)
    assert {key.split(".")[0] for key in module.state_dict()} == {"networks"}


def fixed(edges: list[dict[str, Any]], knowledge: dict[str, Knowledge] | None = None, **options: Any) -> CoTrainer:
    """Two peers and a frozen teacher with given logits, and the given edges."""
    nets: dict[str, nn.Module] = {"a": Given(draw(4, 3)), "b": Given(draw(4, 3, seed=1))}
    graph = Graph(edges, {"big": Given(draw(4, 3, seed=2))}, **options)
    return CoTrainer(nets, knowledge or {"soft": Knowledge(SoftTargets(2.0))}, graph)


BATCH = Batch(torch.empty(4, 1), torch.tensor([0, 1, 2, 0]))
LOGITS = {name: draw(4, 3, seed=seed) for seed, name in enumerate(("a", "b", "big"))}


@pytest.mark.parametrize("teacher", ["b", "big"])
@pytest.mark.parametrize(
    ("gate", "step"), [("through", 0), ("linear", 0), ("linear", 3), ("linear", 7), ("correct", 3)]
)
def test_gates_weigh_an_edge(gate: str, step: int, teacher: str) -> None:
    module = fixed([{"student": "a", "teacher": teacher, "weight": 1.5, "gate": gate}])
    seen, batch = seen_by(module, BATCH, Progress(0, step, 8))
    value = compared(module, seen, batch)["a", teacher]
    each = kl(LOGITS["a"], LOGITS[teacher])
    correct = LOGITS[teacher].argmax(1) == BATCH.target
    expected = {
        "through": 1.5 * each.mean(),
        "linear": 1.5 * (step + 1) / 8 * each.mean(),
        "correct": 1.5 * sum(each[b] for b in range(4) if correct[b]) / 4,
    }[gate]
    assert value is not None
    assert value.item() == pytest.approx(float(expected), rel=1e-12)
    assert 0 < correct.sum() < 4


def test_cutoff_and_weight_zero_remove_an_edge() -> None:
    through = {"student": "a", "teacher": "big"}
    module = fixed([{**through, "gate": "cutoff"}, {**through, "weight": 0}, {"student": "b", "teacher": "big"}])
    assert [edge[:2] for edge, _ in module.knowledge["soft"].edges] == [("b", "big")]


@pytest.mark.parametrize("detach", [True, False])
def test_detach_cuts_the_teachers_side(detach: bool) -> None:
    module = fixed([{"student": "a", "teacher": "b", "detach": detach}], {"soft": Knowledge(Kept())})
    (value,) = compared(module, *seen_by(module, BATCH)).values()
    assert value is not None
    value.backward()
    gradient = module.networks["b"].logits[0].grad
    assert gradient is None if detach else gradient.any()


def test_knowledge_uses_the_edges_of_its_teachers() -> None:
    """Different losses for different edges."""
    edges = [{"student": s, "teacher": t} for s, t in (("a", "big"), ("b", "big"), ("a", "b"), ("b", "a"))]
    knowledge = {
        "from_big": Knowledge(SoftTargets(4.0), teachers=["big"]),
        "from_peers": Knowledge(SoftTargets(1.0), teachers=["a", "b"]),
        "from_all": Knowledge(Kept()),
    }
    module = fixed(edges, knowledge)
    seen, batch = seen_by(module, BATCH)
    found = {name: compared(module, seen, batch, name) for name in knowledge}
    assert [*found["from_big"]] == [("a", "big"), ("b", "big")]
    assert [*found["from_peers"]] == [("a", "b"), ("b", "a")]
    assert len(found["from_all"]) == 4
    for name, temperature in (("from_big", 4.0), ("from_peers", 1.0)):
        for (student, teacher), value in found[name].items():
            assert value is not None
            expected = kl(LOGITS[student], LOGITS[teacher], temperature).mean()
            assert value.item() == pytest.approx(float(expected), rel=1e-12)


def test_trained_losses_have_a_copy_for_each_edge_they_use() -> None:
    hint = Knowledge(Hint("1x1"), student_layers=["hidden.0"], teachers=["a", "b"])
    module = graph_module(knowledge={"soft": Knowledge(SoftTargets(2.0)), "hint": hint})
    trainer(max_steps=1).fit(module, digits())
    copies = {key.split(".")[2] for key in module.state_dict() if key.startswith("losses.hint")}
    assert copies == {"a_from_b", "b_from_a"}


def test_members_take_the_options_of_frozen() -> None:
    text = GRAPH.replace("class_path: kdlab.models.mlp, init_args: ", "class_path: kdlab.members.Frozen, init_args: ")
    net = "{class_path: kdlab.models.mlp, init_args: {in_features: 64, hidden: [24], num_classes: 10}}"
    text = text.replace("{in_features: 64, hidden: [24], num_classes: 10}", f"{{network: {net}, batchnorm: batch}}")
    module = graph_module(parsed(text))
    (big,) = module.plan.frozen
    assert isinstance(big, Frozen)
    assert (big.name, big.batchnorm) == ("big", "batch")
    trainer(max_steps=1).fit(module, digits())


def test_supervision_left_out_has_no_labels() -> None:
    module = fixed([{"student": "b", "teacher": "big"}], supervision={"a": 0.5, "b": 0})
    seen, batch = seen_by(module, BATCH)
    labels = module.supervised(seen, batch)
    assert labels is not None
    assert labels.item() == pytest.approx(0.5 * float(F.cross_entropy(LOGITS["a"], BATCH.target)), rel=1e-12)


GOOD = {"student": "a", "teacher": "big"}


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ({"student": "a"}, r"edges\[1\] is a mapping with 'student' and 'teacher'"),
        ("a <- big", r"edges\[1\] is a mapping with 'student' and 'teacher', not 'a <- big'"),
        ({**GOOD, "wieght": 1}, r"edges\[1\] has no key 'wieght'; the nearest are 'weight'"),
        ({**GOOD, "gate": "open"}, r"edges\[1\].gate is 'through' or 'cutoff' or 'linear' or 'correct', not 'open'"),
        ({**GOOD, "weight": -1}, r"edges\[1\].weight is a finite number of at least 0, not -1"),
        ({**GOOD, "weight": float("inf")}, r"edges\[1\].weight .* not inf"),
        ({**GOOD, "weight": float("nan")}, r"edges\[1\].weight .* not nan"),
        ({**GOOD, "weight": "much"}, r"edges\[1\].weight .* not 'much'"),
        ({**GOOD, "weight": True}, r"edges\[1\].weight .* not True"),
        ({**GOOD, "detach": "no"}, r"edges\[1\].detach is true or false, not 'no'"),
        ({**GOOD, "teacher": "bgi"}, "No member gives an output 'bgi'; the nearest names are 'big'"),
        ({**GOOD, "student": "c"}, "No member gives an output 'c'; the nearest names are"),
        ({"student": "a", "teacher": "a"}, r"edges\[1\] leads from 'a' to itself"),
        ({**GOOD, "weight": 2}, r"edges\[1\] has the student and the teacher of edges\[0\]"),
        ({"student": "big", "teacher": "a"}, "the frozen member 'big' as its student"),
    ],
)
def test_wrong_edges_raise(edge: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fixed([GOOD, edge])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fixed([GOOD], update="both"), "update is 'simultaneous' or 'sequential', not 'both'"),
        (lambda: fixed([GOOD], supervision={"aa": 1}), "supervision names 'aa'; the nearest names are 'a'"),
        (lambda: fixed([GOOD], supervision={"a": -1}), "supervision of 'a' is a finite number of at least 0, not -1"),
        (lambda: graph_module(Graph([GOOD], {"b": network(3), "big": network(4)})), "'b' is both a network and a"),
        (
            lambda: fixed([GOOD], {"soft": Knowledge(SoftTargets(), teachers=["bgi"])}),
            "no edge has the teacher 'bgi'; the nearest are 'big'",
        ),
    ],
)
def test_wrong_graphs_raise(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_network_cannot_teach_itself_as_frozen() -> None:
    nets = {"a": network(0), "b": network(1)}
    graph = Graph([GOOD], {"big": nets["b"]})
    with pytest.raises(InputError, match="The member 'big' and the network 'b' share parameters"):
        CoTrainer(nets, teaching=graph)


def test_linear_gate_needs_a_known_length() -> None:
    module = graph_module()
    with pytest.raises(InputError, match="'linear' needs a run of known length"):
        trainer(-1, max_time="00:00:10:00").fit(module, digits())


def test_correct_gate_needs_a_loss_per_sample() -> None:
    module = fixed([{**GOOD, "gate": "correct"}], {"soft": Knowledge(Kept())})
    with pytest.raises(InputError, match=r"Kept gives one number a batch.*per_sample"):
        compared(module, *seen_by(module, BATCH))


class Mean(nn.Module):
    """Keeps the mean of the first logit of its own teacher over the training set."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def precompute(self, batches: Iterable[tuple[Outputs, Tensor]]) -> None:
        self.mean.copy_(torch.cat([outputs.logits[:, 0] for outputs, _ in batches]).mean())

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return ((student.logits[:, 0] - self.mean) ** 2).mean()


def test_each_copy_of_a_loss_precomputes_on_its_own_teacher() -> None:
    teachers: dict[str, nn.Module] = {"one": network(7), "two": network(8)}
    edges = [{"student": "a", "teacher": name} for name in teachers]
    module = CoTrainer({"a": network(0)}, {"mean": Knowledge(Mean())}, Graph(edges, teachers), optimizer=sgd)
    data = pairs()
    trainer(max_steps=1).fit(module, data)
    x = torch.cat([batch[0] for batch in data])
    for name, teacher in teachers.items():
        expected = teacher(x)[:, 0].mean()
        assert torch.allclose(module.losses["mean"].get_submodule(f"a_from_{name}").get_buffer("mean"), expected)


def test_correct_gate_reads_the_labels_of_a_view() -> None:
    """A teacher on other images is correct where it gives their labels, not those of the batch."""
    logits, own = torch.eye(3, dtype=torch.float64), torch.tensor([0, 1, 0])
    outputs = {"net@other": Outputs(logits, target=own)}
    weights = correct_gate(1.5, "net@other", outputs, Batch(torch.empty(3, 1), torch.tensor([1, 1, 2])))
    assert weights.tolist() == [1.5, 1.5, 0.0]


def test_in_turns_no_gradient_reaches_the_others() -> None:
    ends = []
    for detach in (True, False):
        edges = [{"student": "a", "teacher": "b", "detach": detach}, {"student": "b", "teacher": "a", "detach": detach}]
        module = graph_module(Graph(edges, update="sequential"), {"kept": Knowledge(Kept(), 0.01)})
        trainer(max_steps=2).fit(module, digits())
        ends.append(weights(module))
    assert same(*ends)


@pytest.mark.parametrize("name", ["ensemble", "deployed", "big.1", "pop", "b@x"])
def test_member_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="A member's name must be a plain word"):
        Graph([{"student": "a", "teacher": name}], {name: network(3)})


def test_one_network_under_two_names_is_refused() -> None:
    big = network(3)
    with pytest.raises(InputError, match="are one object"):
        Graph([{"student": "a", "teacher": "one"}], {"one": big, "two": big})


def test_a_network_that_learns_from_nothing_is_refused() -> None:
    graph = Graph([{"student": "a", "teacher": "b"}], supervision={"a": 1.0})
    with pytest.raises(InputError, match="The network 'b' learns from nothing"):
        graph_module(graph)


def test_a_cut_off_teacher_is_known_and_never_counts() -> None:
    edges = [{"student": "a", "teacher": "big", "gate": "cutoff"}, {"student": "b", "teacher": "a"}]
    graph = Graph(edges, {"big": network(3)})
    soft = {name: Knowledge(SoftTargets(2.0), teachers=[teacher]) for name, teacher in (("off", "big"), ("on", "a"))}
    module = graph_module(graph, soft)
    trainer(max_steps=1).fit(module, digits())
    assert list(module.dry_run.terms) == ["task", "on"]
    with pytest.raises(InputError, match="No member gives an output 'bgi'"):
        graph_module(Graph([{"student": "a", "teacher": "bgi", "gate": "cutoff"}], {"big": network(3)}))


def test_the_linear_gate_counts_at_the_first_step_in_turns() -> None:
    graph = Graph([{"student": "a", "teacher": "b", "gate": "linear"}], supervision={"b": 1.0}, update="sequential")
    module = graph_module(graph)
    before = weights(module.networks["a"])
    trainer(max_steps=1).fit(module, digits())
    assert not same(before, weights(module.networks["a"]))


def test_correct_gate_refuses_soft_labels() -> None:
    graph = Graph([{"student": "a", "teacher": "big", "gate": "correct"}], {"big": network(3)})
    module = graph_module(graph)
    batch = Batch(torch.rand(4, 64), torch.rand(4, 10), progress=Progress(0, 0, 1))
    with pytest.raises(InputError, match="needs class indices"):
        compared(module, module.observe(batch), batch)
