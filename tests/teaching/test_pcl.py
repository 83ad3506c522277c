"""Peers on views of their own, taught by their joint classifier and by the others' averages (PCL)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import SoftTargets
from kdlab.models import Branched
from kdlab.outputs import inputs_of
from kdlab.teaching import PeerEnsemble
from tests.modules.cotraining import cotrainer, steps
from tests.modules.tiny import digits, network, sgd, trainer
from tests.teaching.step import compared, first_batch_of, seen_by


class Fixed(nn.Module):
    """Gives this embedding through a linear classifier."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images.flatten(1)))
        return logits


def test_pcl_follows_its_formula() -> None:
    """Ensemble and the others' averages teach each peer; the ensemble classifies the features side by side."""
    nets = {name: Fixed(seed) for seed, name in enumerate("abc")}
    teaching = PeerEnsemble(0.9)
    module = CoTrainer(dict(nets), {"soft": Knowledge(SoftTargets(3.0))}, teaching, optimizer=sgd, deploy="average_a")
    data = digits(padding=1)
    trainer(max_steps=3).fit(module, data)
    seen, batch = seen_by(module, first_batch_of(data))
    inputs = dict(zip("abc", [batch.inputs, *(inputs_of(batch.view(f"view{n}")) for n in (1, 2))], strict=True))
    h = torch.cat([net.body(inputs[name].flatten(1)) for name, net in nets.items()], 1)
    together = teaching.classifier.classifier(h)
    torch.testing.assert_close(seen["ensemble"].logits, together)
    values = compared(module, seen, batch)
    assert len(values) == 3 + 6
    assert all(edge.detach for edge in module.plan.edges)
    averages = {name: copy(inputs[name]).detach() for name, copy in teaching.copies.networks.items()}
    for (student, teacher), value in values.items():
        logits, share = together.detach(), 1.0
        if teacher != "ensemble":
            other = teacher.removeprefix("average_")
            assert other != student
            logits, share = averages[other], 0.5
            torch.testing.assert_close(seen[teacher].logits, logits)
        kl = F.kl_div(F.log_softmax(seen[student].logits / 3, 1), (logits / 3).softmax(1), reduction="batchmean")
        torch.testing.assert_close(value, share * 9 * kl)
    labels = [seen[name].logits for name in (*"abc", "ensemble")]
    expected = sum(F.cross_entropy(z, batch.target) for z in labels)
    torch.testing.assert_close(module.supervised(seen, batch), expected)
    assert torch.equal(module(batch.inputs), teaching.copies.networks["a"](batch.inputs))


def test_every_branch_and_network_sees_its_own_view() -> None:
    """Two branches of one network, and a network beside them; averages see what their learners see."""
    nets = {"net": Branched(Fixed(0), "head", branches=2, own_inputs=True), "b": Fixed(1)}
    teaching = PeerEnsemble(0.5)
    module, data = cotrainer(dict(nets), teaching=teaching), digits(padding=1)
    trainer(max_steps=2).fit(module, data)
    batch = first_batch_of(data)
    views = [batch.inputs, *(inputs_of(batch.view(f"view{n}")) for n in (1, 2))]
    assert not any(torch.equal(*pair) for pair in itertools.combinations(views, 2))
    inputs = dict(zip(("net", "net_branch1", "b"), views, strict=True))
    seen, batch = seen_by(module, batch)
    for name, logits in alone(nets, inputs).items():
        torch.testing.assert_close(seen[name].logits, logits)
    for name, logits in alone(teaching.copies.networks, inputs).items():
        torch.testing.assert_close(seen[f"average_{name}"].logits, logits)
    assert {edge[:2] for edge in module.plan.edges} == {
        *((name, "ensemble") for name in inputs),
        *((a, f"average_{b}") for a, b in itertools.permutations(inputs, 2)),
    }
    assert not any(part.training for part in teaching.copies.modules())  # again, after the step


def alone(nets: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the two branches and the network give, each as a plain network, on its own view."""
    plain = {"net": nets["net"].alone(), "net_branch1": nets["net"].alone("branch1"), "b": nets["b"]}
    return {name: net(inputs[name]).detach() for name, net in plain.items()}


def test_features_learn_from_the_ensembles_labels() -> None:
    nets = {name: Fixed(seed) for seed, name in enumerate("ab")}
    module, data = cotrainer(dict(nets), teaching=PeerEnsemble()), digits()
    trainer(max_steps=1).fit(module, data)
    seen, batch = seen_by(module, first_batch_of(data))
    got = seen["ensemble"].logits[:, 3].sum()
    weight = nets["b"].body.weight
    (gradient,) = torch.autograd.grad(got, weight)
    images = inputs_of(batch.view("view1")).flatten(1)
    row = module.teaching.classifier.classifier.weight[3, 8:]  # of the second peer's features
    torch.testing.assert_close(gradient, torch.outer(row, images.sum(0)).detach())


def headless(seed: int) -> nn.Module:
    """A network without a linear classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 10, 8), nn.Flatten())


@pytest.mark.parametrize(
    ("nets", "message"),
    [
        (lambda: {"a": network()}, "at least two students"),
        (lambda: {"a": headless(0), "b": headless(1)}, "but 'a' has no linear classifier"),
    ],
)
def test_networks_that_cannot_collaborate_raise(nets: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steps(cotrainer(nets(), teaching=PeerEnsemble()))
