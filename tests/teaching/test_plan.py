"""Plans: members, edges and supervision are checked once, and name what a step needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kdlab import InputError
from kdlab.members import Frozen, Learner, Member
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Edge, Plan, Teaching
from kdlab.teaching.plan import Supervised, source_of
from tests.modules.cotraining import branched
from tests.modules.tiny import network


class Source(Member):
    """A mixture that learns from labels, and a variant of it."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, f"{self.name}@other")

    def forward(self, batch: Batch, seen: Any) -> dict[str, Outputs]:
        return {name: Outputs(torch.zeros(len(batch.target), 10)) for name in self.names}


def members() -> dict[str, Member]:
    """Two learners, one of them with two branches, a frozen teacher and a mixture."""
    return {
        "net": Learner("net", branched(branches=2)),
        "b": Learner("b", network()),
        "big": Frozen(network(1), "big"),
        "mixed": Source("mixed"),
    }


def plan(edges: Any = (), supervision: Any = None, **options: Any) -> Plan:
    return Plan(members(), edges, supervision or {}, **options)


def test_every_output_has_its_member() -> None:
    made = plan()
    owners = {name: member.name for name, member in made.owners.items()}
    names = {"net": "net", "net_branch1": "net", "b": "b", "big": "big", "mixed": "mixed", "mixed@other": "mixed"}
    assert owners == names
    assert [*made.learners] == ["net", "b"]
    assert [member.name for member in made.frozen] == ["big"]


def test_students_are_heads_and_supervised_mixtures() -> None:
    assert plan().students == ("net", "net_branch1", "b")
    made = plan(supervision={"b": 1.0, "mixed": 1.0, "mixed@other": 0.5})
    assert made.students == ("net", "net_branch1", "b", "mixed")


def test_turns_are_the_learners_of_a_sequential_update() -> None:
    assert plan().turns == (None,)
    assert plan(update="sequential").turns == ("net", "b")


def test_networks_of_an_output_and_its_head() -> None:
    made = plan()
    net = made.learners["net"].network
    assert made.networks_of("net") == ((net, ""),)
    assert made.networks_of("net_branch1") == ((net, "branch1"),)
    assert made.networks_of("mixed") == ()
    assert made.networks_of("nobody") == ()


def test_source_is_the_name_before_the_variant() -> None:
    assert (source_of("net"), source_of("net@second")) == ("net", "net")


def test_a_learners_views_are_outputs() -> None:
    learner = Learner("net", branched(branches=2))
    learner.views = ("second",)
    edges = [Edge("net", "net@second"), Edge("net_branch1@second", "net")]
    assert [*Plan({"net": learner}, edges, {}).owners] == ["net", "net_branch1", "net@second", "net_branch1@second"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edges": [Edge("b", "bgi")]}, "No member gives an output 'bgi'; the nearest names are 'big'"),
        ({"edges": [Edge("net_branch2", "big")]}, "output 'net_branch2'; the nearest names are 'net_branch1'"),
        ({"supervision": {"mixd": 1.0}}, "No member gives an output 'mixd'; the nearest names are 'mixed'"),
    ],
)
def test_unknown_names_raise_with_the_nearest(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(**options)


def test_two_members_cannot_give_one_name() -> None:
    clash: dict[str, Member] = {"net": Learner("net", branched(branches=2)), "other": Source("net_branch1")}
    with pytest.raises(InputError, match="Two members give outputs named 'net_branch1': rename one"):
        Plan(clash, [], {})


def test_supervised_plan_has_no_edges() -> None:
    made = Supervised().plan({"net": Learner("net", branched(branches=2)), "b": Learner("b", network())})
    assert [*made.edges] == []
    assert made.supervision == {"net": 1.0, "net_branch1": 1.0, "b": 1.0}


def test_a_teaching_must_define_its_plan() -> None:
    with pytest.raises(NotImplementedError, match=r"Teaching must define plan\(\)"):
        Teaching().plan({})
