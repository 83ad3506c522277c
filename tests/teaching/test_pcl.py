"""Peers on views of their own, taught by a classifier of all their features and by the others' averages (PCL)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import SoftTargets
from kdlab.models import Branched
from kdlab.teaching import PeerEnsemble
from tests.modules.cotraining import cotrainer, steps
from tests.modules.tiny import digits, network, sgd, trainer


class Fixed(nn.Module):
    """Gives this embedding through a linear classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits


def test_peer_collaboration_is_its_formula() -> None:
    """Ensemble and the others' averages teach each peer; the ensemble classifies the features side by side."""
    nets = {name: Fixed(seed) for seed, name in enumerate("abc")}
    teaching = PeerEnsemble(0.9)
    module = CoTrainer(dict(nets), {"soft": Knowledge(SoftTargets(3.0))}, teaching, optimizer=sgd, deploy="average_a")
    data = digits(padding=1)
    trainer(max_steps=3).fit(module, data)
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    assert batch.views is not None
    seen = [batch.inputs, *(batch.views[f"view{n}"].inputs for n in (1, 2))]
    outputs = module.observe(batch)
    h = torch.cat([net.body(x.flatten(1)) for net, x in zip(nets.values(), seen, strict=True)], 1)
    together = teaching.classifier.classifier(h)
    torch.testing.assert_close(outputs["ensemble"].logits, together)
    lessons = module.lessons(outputs, batch)
    assert len(lessons) == 3 + 6
    for lesson in lessons:
        assert not lesson.teacher.logits.requires_grad
        if lesson.source == "ensemble":
            assert lesson.weight == 1
            torch.testing.assert_close(lesson.teacher.logits, together.detach())
        else:
            name = lesson.source.removeprefix("average_")
            assert name != lesson.learner
            assert lesson.weight == 0.5
            copy = teaching.deployable[lesson.source]
            torch.testing.assert_close(lesson.teacher.logits, copy(seen["abc".index(name)]).detach())
    assert {answer.learner for answer in module.answers(outputs, batch)} == {*"abc", "ensemble"}
    assert torch.equal(module(batch.inputs), teaching.deployable["average_a"](batch.inputs))


def test_every_branch_and_network_has_a_view_of_its_own() -> None:
    """Two branches of one network, and a network beside them; averages see what their learners see."""
    nets = {"net": Branched(Fixed(0), "head", branches=2, own_inputs=True), "b": Fixed(1)}
    teaching = PeerEnsemble(0.5)
    module, data = cotrainer(dict(nets), teaching=teaching), digits(padding=1)
    trainer(max_steps=2).fit(module, data)
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    assert batch.views is not None
    views = [batch.inputs, *(batch.views[f"view{n}"].inputs for n in (1, 2))]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(views, 2))
    seen = dict(zip(("net", "net_branch1", "b"), views, strict=True))
    module.train()
    outputs = module.observe(batch)
    for name, logits in alone(nets, seen).items():
        torch.testing.assert_close(outputs[name].logits, logits)
    lessons = module.lessons(outputs, batch)
    averages = alone(teaching.copies.networks, seen)
    for lesson in lessons:
        if lesson.source != "ensemble":
            torch.testing.assert_close(lesson.teacher.logits, averages[lesson.source.removeprefix("average_")])
    assert {(each.learner, each.source) for each in lessons} == {*teaching.pairs(module.names)}
    assert not any(each.training for each in teaching.copies.modules())  # again, after the lessons


def alone(nets: Any, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the two branches and the network give, each as a plain network, on its own view."""
    plain = {"net": nets["net"].alone(), "net_branch1": nets["net"].alone("branch1"), "b": nets["b"]}
    return {name: net(seen[name]).detach() for name, net in plain.items()}


def test_features_learn_from_the_labels_of_the_ensemble() -> None:
    nets = {name: Fixed(seed) for seed, name in enumerate("ab")}
    module, data = cotrainer(dict(nets), teaching=PeerEnsemble()), digits()
    trainer(max_steps=1).fit(module, data)
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    got = module.observe(batch)["ensemble"].logits[:, 3].sum()
    weight = nets["b"].body.weight
    (gradient,) = torch.autograd.grad(got, weight)
    assert batch.views is not None
    images = batch.views["view1"].inputs.flatten(1)
    row = module.teaching.classifier.classifier.weight[3, 8:]  # of the second peer's features
    torch.testing.assert_close(gradient, torch.outer(row, images.sum(0)).detach())


def headless(seed: int) -> nn.Module:
    """A network without a linear classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("nets", "says"),
    [
        (lambda: {"a": network()}, "at least two learners"),
        (lambda: {"a": headless(0), "b": headless(1)}, "peer 'a' has no linear classifier"),
    ],
)
def test_what_cannot_collaborate_is_refused(nets: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        steps(cotrainer(nets(), teaching=PeerEnsemble()))
