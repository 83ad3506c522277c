"""Arguments of teachings, and the plans that they draw: defaults, limits, weights of edges and labels."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from kdlab import InputError
from kdlab.members import Fast, Learner, Stored, TeacherCache
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import (
    EBKD,
    Alone,
    Average,
    Classmate,
    Classmates,
    Consensus,
    DeepestExit,
    Edge,
    Ensemble,
    FrozenTeacher,
    Gated,
    General,
    Graph,
    LastMiniBatch,
    Leader,
    Linear,
    MovingAverage,
    OnPolicy,
    PeerEnsemble,
    Peers,
    Plan,
    PreviousEpoch,
    Stale,
    TwoViews,
)
from kdlab.teaching.on_policy import positions_of
from kdlab.teaching.plan import Supervised, weight_at_least_zero
from tests.modules.cotraining import branched

DEFAULTS: dict[Any, dict[str, object]] = {
    Average: {"of": None},
    Classmates: {"count": 3},
    Consensus: {"rule": None, "others": False, "own_views": False},
    DeepestExit: {"exit_labels": 1.0},
    Edge: {"weight": 1.0, "detach": True},
    FrozenTeacher: {"weights": None, "batchnorm": "frozen", "ensemble": None, "fast": Fast(), "cache": None}
    | {"preprocessing": None},
    Graph: {"members": None, "supervision": None, "update": "simultaneous"},
    LastMiniBatch: {"dtype": "float32"},
    Leader: {"leader": None, "factor": 8},
    Linear: {"steps": 50},
    MovingAverage: {"decay": 0.999, "buffers": "average", "batchnorm": "batch", "second_view": False},
    OnPolicy: {"share": 0.5, "schedule": None, "generator": "student", "temperature": 1.0, "max_new_tokens": 64}
    | {"stop_tokens": None, "prompt_tokens": None, "cache": "dynamic", "fast": Fast()},
    PeerEnsemble: {"decay": 0.999},
    Peers: {"update": "simultaneous"},
    PreviousEpoch: {"every": 1, "wait": False, "dtype": "float32"},
    Stale: {"unit": "step", "of": "others", "batchnorm": "frozen"},
    TwoViews: {"detach": True},
}


@pytest.mark.parametrize("call", DEFAULTS)
def test_defaults_are_those_of_the_table(call: Any) -> None:
    """Change both, with a line in CHANGELOG.md."""
    parameters = inspect.signature(call).parameters.values()
    assert {one.name: one.default for one in parameters if one.default is not one.empty} == DEFAULTS[call]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def learners(names: str) -> dict[str, Learner]:
    return {name: Learner(name, net(seed)) for seed, name in enumerate(names)}


def of_branches(branches: int, **options: Any) -> dict[str, Learner]:
    return {"net": Learner("net", branched(branches=branches, **options))}


CASES: dict[str, tuple[Any, Any, str, str, str]] = {
    # teaching, networks, "student<teacher*weight" (! keeps the graph), supervision, views and taps
    "supervised": (Supervised, lambda: learners("ab"), "", "a b", ""),
    "alone": (Alone, lambda: learners("ab"), "a<a b<b", "a b", ""),
    "two peers": (Peers, lambda: learners("ab"), "a<b b<a", "a b", ""),
    "three peers": (Peers, lambda: learners("abc"), "a<b*.5 a<c*.5 b<a*.5 b<c*.5 c<a*.5 c<b*.5", "a b c", ""),
    "exits": (lambda: DeepestExit(0.25), lambda: of_branches(2), "net_branch1<net", "net net_branch1*.25", ""),
    "unlabeled exits": (lambda: DeepestExit(0), lambda: of_branches(2), "net_branch1<net", "net", ""),
    "consensus": (Consensus, lambda: learners("abc"), "a<consensus b<consensus c<consensus", "a b c", ""),
    "others": (
        lambda: Consensus(others=True, own_views=True),
        lambda: learners("ab"),
        "a<consensus@a b<consensus@b",
        "a b",
        "view1",
    ),
    "average": (MovingAverage, lambda: learners("ab"), "a<average_a b<average_b", "a b", ""),
    "second view": (lambda: MovingAverage(second_view=True), lambda: learners("a"), "a<average_a", "a", "second"),
    "codistillation": (lambda: Stale(1), lambda: learners("ab"), "a<stale@b b<stale@a", "a b", ""),
    "three": (
        lambda: Stale(1),
        lambda: learners("abc"),
        "a<stale@others_of_a b<stale@others_of_b c<stale@others_of_c",
        "a b c",
        "",
    ),
    "snapshots": (lambda: Stale(1, of="self"), lambda: learners("ab"), "a<stale@a b<stale@b", "a b", ""),
    "snapshot": (lambda: Stale(1, of="self"), lambda: learners("a"), "a<stale@a", "a", ""),
    "past": (PreviousEpoch, lambda: learners("ab"), "a<a@past b<b@past", "a b", ""),
    "two views": (TwoViews, lambda: learners("a"), "a<a@second a@second<a", "a*.5 a@second*.5", "second"),
    "joint views": (
        lambda: TwoViews(False),
        lambda: learners("a"),
        "a<a@second! a@second<a!",
        "a*.5 a@second*.5",
        "second",
    ),
    "classmate": (Classmate, lambda: learners("ab"), "a<a@classmate b<b@classmate", "a b", "classmate"),
    "classmates": (Classmates, lambda: learners("a"), "a@all<a@all", "a*.25 a@classmates*.75", "classmates"),
    "one classmate": (
        lambda: Classmates(1),
        lambda: learners("a"),
        "a@all<a@all",
        "a*.5 a@classmates*.5",
        "classmates",
    ),
    "gate": (
        lambda: Gated("layer2"),
        lambda: of_branches(2),
        "net<ensemble net_branch1<ensemble",
        "net net_branch1 ensemble",
        "layer2",
    ),
    "leader": (Leader, lambda: learners("abc"), "a<group@a! b<group@b! c<group!", "a b c", ""),
    "first leads": (lambda: Leader("a", 1), lambda: learners("abc"), "b<group@b! c<group@c! a<group!", "a b c", ""),
    "pcl": (
        PeerEnsemble,
        lambda: learners("abc"),
        "a<ensemble b<ensemble c<ensemble a<average_b*.5 a<average_c*.5 b<average_a*.5 b<average_c*.5 "
        "c<average_a*.5 c<average_b*.5",
        "a b c ensemble",
        "view1 view2",
    ),
    "teacher": (lambda: FrozenTeacher([net(7)]), lambda: learners("ab"), "a<teacher! b<teacher!", "a b", ""),
    "ensemble": (
        lambda: FrozenTeacher([net(7), net(8)]),
        lambda: learners("ab"),
        "a<teacher! b<teacher@b!",
        "a b",
        "",
    ),
    "teachers by name": (
        lambda: FrozenTeacher({"x": net(7), "y": net(8)}, [0.5, 1.5]),
        lambda: learners("ab"),
        "a<x*.25! b<x*.25! a<y*.75! b<y*.75!",
        "a b",
        "",
    ),
}


def edge(text: str) -> Edge:
    student, teacher = text.rstrip("!").split("<")
    teacher, _, weight = teacher.partition("*")
    return Edge(student, teacher, float(weight or 1), not text.endswith("!"))


@pytest.mark.parametrize("name", CASES)
def test_plan_of_a_teaching(name: str) -> None:
    make, networks, edges, labels, views = CASES[name]
    nets = networks()
    plan = make().plan(nets)
    assert [*plan.edges] == [edge(text) for text in edges.split()]
    supervision = {text.partition("*")[0]: float(text.partition("*")[2] or 1) for text in labels.split()}
    assert dict(plan.supervision) == supervision
    assert [*plan.views, *plan.student_taps] == views.split()
    assert {*nets} <= plan.members.keys()
    assert not any(f"{derived}=" in repr(plan) for derived in ("owners", "students", "turns"))
    with pytest.raises(AttributeError):
        plan.edges = []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(0), "at least 1 step"),
        (lambda: PreviousEpoch(0), "every 1 or more epochs, not 0"),
        (lambda: PreviousEpoch(dtype="float64"), "dtype"),  # type: ignore[arg-type]
        (lambda: Classmates(0), "at least 1 further image"),
        (lambda: Leader(factor=0), "at least 1, not 0"),
        (lambda: Leader().plan(learners("ab")), "two peers at least beside the leader"),
        (lambda: Leader("x").plan(learners("abc")), "No student is named 'x', to be the leader, only a, b, c"),
        (lambda: DeepestExit(-0.1), "exit_labels must be a finite number of at least 0"),
        (lambda: DeepestExit().plan(learners("a")), "Network 'a' has one output alone"),
        (lambda: Peers().plan(learners("a")), "Peers needs at least two students"),
        (lambda: Peers("sequential").plan(of_branches(2)), "cannot be updated one after another"),
        (lambda: Consensus(General(), others=True), "fitted to the logits of all students"),
        (lambda: Consensus(own_views=True).plan(of_branches(2)), "own_views is for networks that each make a forward"),
        (lambda: PeerEnsemble().plan(of_branches(2)), r"Branched\(own_inputs=True\)"),
        (lambda: Stale(1).plan(learners("a")), "at least two networks"),
        (lambda: FrozenTeacher([net()], [-1.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([net()], [1.0, 1.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher([net(), net(1)], [1.0]), "one positive number per teacher"),
        (lambda: FrozenTeacher({"a": net()}, ensemble=Ensemble()), "stay apart"),
        (lambda: FrozenTeacher([net()], [1.0], ensemble=EBKD()), "finds the teachers' weights itself"),
        *(
            (lambda name=name: FrozenTeacher({name: net()}), "cannot be named")
            for name in ("", "student", "a.b", "a@b")
        ),
        (lambda: FrozenTeacher([Stored("x.npy")], cache=TeacherCache("x")), "a stored teacher is a file: drop it"),
        (lambda: FrozenTeacher([Stored("x.npy")]).observe(torch.zeros(1, 4)), "The teacher is a file"),
        (lambda: FrozenTeacher([net(), net(1)]).observe(torch.zeros(1, 4)), "There are several teachers"),
        *(
            (lambda weight=weight: weight_at_least_zero(weight, "x"), "x must be")
            for weight in (-1e-9, float("inf"), float("nan"))
        ),
        *(
            (lambda options=options: OnPolicy(net(), **options), words)
            for options, words in (
                ({"share": -0.1}, "from 0 to 1"),
                ({"share": 1.1}, "from 0 to 1"),
                ({"temperature": -0.1}, "at least 0"),
                ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
                ({"prompt_tokens": 0}, "prompt_tokens must be at least 1"),
            )
        ),
    ],
)
def test_one_beyond_the_limit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_limits_themselves_are_taken() -> None:
    assert weight_at_least_zero(0, "x") == 0.0
    assert Linear(1).steps == PreviousEpoch(1).every == Classmates(1).count == Leader(factor=1).factor == 1
    Consensus(General())
    Consensus().plan(of_branches(2))
    Consensus(others=True).plan(of_branches(2))
    PeerEnsemble().plan(of_branches(2, own_inputs=True))
    Peers("sequential").plan(learners("ab"))
    FrozenTeacher([net()], [1.0], cache=TeacherCache("x"))
    FrozenTeacher({"a": net()})
    FrozenTeacher([net(), net(1)], ensemble=EBKD())
    for share in (0, 1):
        OnPolicy(net(), share=share, max_new_tokens=1, prompt_tokens=1)


@pytest.mark.parametrize(
    ("teachers", "answers"),
    [
        (lambda: [net()], True),
        (lambda: [net(), net(1)], True),
        (lambda: {"a": net()}, False),
        (lambda: [Stored("x.npy")], False),
        (lambda: [net(), Stored("x.npy")], False),
    ],
)
def test_who_answers_in_evaluation(teachers: Any, answers: bool) -> None:
    assert FrozenTeacher(teachers()).in_evaluation == answers


def test_sampling_options_follow_the_temperature() -> None:
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 1.0}
    assert OnPolicy(net(), temperature=0.7).options == sampled
    assert OnPolicy(net(), temperature=0, cache="static").options == {
        "do_sample": False,
        "cache_implementation": "static",
    }


class Positions(nn.Module):
    """A network with learned positions, or a config that says how many there are."""

    def __init__(self, name: str = "", padding: int | None = None, limit: object = None) -> None:
        super().__init__()
        self.words = nn.Embedding(99, 2)
        if name:
            self.add_module(name, nn.Embedding(10, 2, padding))
        self.config = type("Config", (), {"max_position_embeddings": limit})()


@pytest.mark.parametrize(
    ("network", "limit"),
    [
        (Positions("wpe"), 10),
        (Positions("position_embeddings"), 10),
        (Positions("position_embeddings", 1), 8),
        (Positions("position_embeddings", 0), 9),
        (Positions("token_types"), None),
        (Positions(limit=20), 20),
        (Positions(limit=1), 1),
        (Positions(limit=0), None),
        (Positions(limit=-1), None),
        (Positions(limit="20"), None),
        (nn.Linear(2, 2), None),
    ],
)
def test_positions_of_a_network(network: nn.Module, limit: int | None) -> None:
    assert positions_of(network) == limit


def test_general_waits_for_finite_errors() -> None:
    rule, z, labels = General(), [torch.eye(3).requires_grad_(), torch.ones(3, 3)], torch.arange(3)
    assert len(rule.shares) == 0
    rule(z, labels)
    assert rule.shares.tolist() == [0.0, 0.0]  # sized in the dry run
    rule.on_validation_end()
    rule.record([z[0], z[1] * torch.nan], labels)
    rule.on_validation_end()
    torch.testing.assert_close(rule(z, labels), (torch.eye(3) + 1) / 2)
    rule.record(z, labels)
    assert not rule.products.requires_grad


def test_the_mean_of_three_is_of_thirds() -> None:
    z = [torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)]
    torch.testing.assert_close(Average()(z, torch.arange(3)), (torch.eye(3) + 1) / 3)
    mean = Average(Ensemble())(z, torch.arange(3))
    torch.testing.assert_close(mean.exp(), (z[0].softmax(1) + 2 / 3) / 3)


def test_linear_is_near_the_best_in_few_steps() -> None:
    """Two students, of whom a mixture is best."""
    z = [torch.tensor([[2.0, 0.0, 4.0]], dtype=torch.float64), torch.tensor([[2.0, 3.0, 0.0]], dtype=torch.float64)]
    label, grid = torch.tensor([0]), torch.linspace(0, 1, 2001, dtype=torch.float64)
    losses = [float(nn.functional.cross_entropy(a * z[0] + (1 - a) * z[1], label)) for a in grid]
    result = float(nn.functional.cross_entropy(Linear(20)(z, label), label))
    assert result - min(losses) < 1e-6


def test_plans_name_outputs_and_run_them() -> None:
    """A batch without progress is evaluation: no member of the past answers."""
    plan = PreviousEpoch().plan(learners("a"))
    assert isinstance(plan, Plan)
    batch = Batch(torch.zeros(2, 4), torch.zeros(2).long())
    assert plan.members["a@past"](batch, {"a": Outputs(torch.zeros(2, 3))}) == {}
