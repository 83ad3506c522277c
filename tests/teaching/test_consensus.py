"""Targets made of several students' logits, against published numbers and slow searches."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import SoftTargets
from kdlab.outputs import Batch, Outputs, inputs_of
from kdlab.schedules import Progress
from kdlab.teaching import Average, Consensus, Ensemble, General, Linear, MinLogit, Naive, PeerEnsemble, Rule
from kdlab.teaching.consensus import ConsensusTarget
from tests.modules.cotraining import cotrainer, peers
from tests.modules.tiny import digits, network, sgd, trainer
from tests.teaching.step import first_batch_of, seen_by, teachers


def logits(members: int, batch: int = 6, classes: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(members)]


LABELS = torch.tensor([0, 4, 2, 1, 3, 0])


def test_minlogit_takes_the_least_shifted_logits() -> None:
    """The numbers of section K."""
    t, s = torch.tensor([[3.0, 1.0, 0.5, -1.0]]), torch.tensor([[1.5, -1.0, 2.0, -0.5]])
    z = MinLogit()([t, s], torch.tensor([0]))
    assert z.tolist() == [[0.0, -2.5, -2.5, -4.0]]
    assert z.softmax(1)[0].tolist() == pytest.approx([0.845676, 0.069417, 0.069417, 0.015489], abs=5e-7)


def test_naive_takes_the_best_student_of_each_sample() -> None:
    z = logits(3)
    got = Naive()(z, LABELS)
    for b, label in enumerate(LABELS.tolist()):
        losses = [-math.log(each[b].softmax(0)[label]) for each in z]
        assert torch.equal(got[b], z[losses.index(min(losses))][b])


@pytest.mark.parametrize("members", [2, 3])
def test_linear_finds_the_best_combination(members: int) -> None:
    """No point of a fine grid on the simplex is better, and it is on the simplex."""
    z = logits(members)
    rule = Linear(200)
    shares = rule.shares(z, LABELS)
    assert torch.allclose(shares.sum(1), torch.ones(6, dtype=torch.float64))
    assert float(shares.min()) >= 0
    got = F.cross_entropy(rule(z, LABELS), LABELS, reduction="none")
    steps = 50
    best = torch.full((6,), math.inf, dtype=torch.float64)
    for point in itertools.product(range(steps + 1), repeat=members - 1):
        if sum(point) <= steps:
            share = [*(each / steps for each in point), 1 - sum(point) / steps]
            mixed = sum(a * each for a, each in zip(share, z, strict=True))
            best = torch.minimum(best, F.cross_entropy(mixed, LABELS, reduction="none"))
    assert float((got - best).max()) < 1e-4


def test_general_fits_shares_to_held_out_errors() -> None:
    z = logits(3)
    rule = General()
    assert torch.equal(rule(z, LABELS), torch.stack(z).mean(0))  # until something is known
    for part in (slice(0, 2), slice(2, 6)):
        rule.record([each[part] for each in z], LABELS[part])
    rule.on_validation_end()
    errors = [each.softmax(1) - F.one_hot(LABELS, 5) for each in z]
    c = [[float((a * b).sum(1).mean()) for b in errors] for a in errors]
    solved = torch.linalg.solve(torch.tensor(c, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    expected = solved / solved.sum()
    assert rule.shares.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    torch.testing.assert_close(rule(z, LABELS), sum(w * each for w, each in zip(rule.shares.double(), z, strict=True)))
    again = General()
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.shares, rule.shares)


def test_general_shares_do_not_depend_on_the_size_of_errors() -> None:
    products = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    for size in (1.0, 1e-10, 1e10):
        rule = General()
        rule.products = size * products
        rule.on_validation_end()
        assert rule.shares.tolist() == pytest.approx([0.25, 0.75], rel=1e-6)  # (1 - 0.5, 2 - 0.5) / 2


def test_general_gives_students_without_error_equal_shares() -> None:
    rule = General()
    rule.products = torch.zeros(2, 2, dtype=torch.float64)
    rule.on_validation_end()
    assert rule.shares.tolist() == [0.5, 0.5]


def test_general_forgets_earlier_validations() -> None:
    rule, fresh = General(), General()
    for z in (logits(3, seed=1), logits(3)):
        rule.record(z, LABELS)
        rule.on_validation_end()
    fresh.record(logits(3), LABELS)
    fresh.on_validation_end()
    assert torch.equal(rule.shares, fresh.shares)


def test_a_rule_is_shown_validation_batches_alone() -> None:
    rule = General()
    target = ConsensusTarget("consensus", ["a", "b"], rule)
    outputs = {name: Outputs(z) for name, z in zip("ab", logits(2), strict=True)}
    target.record(Batch(torch.empty(0), LABELS, progress=Progress(0, 0)), outputs)
    assert not len(rule.products)
    target.record(Batch(torch.empty(0), LABELS), outputs)
    assert rule.products.shape == (2, 2)


def test_general_gives_equal_students_equal_shares() -> None:
    (z,) = logits(1)
    rule = General()
    rule.record([z, z.clone()], LABELS)
    rule.on_validation_end()
    assert rule.shares.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_general_renews_shares_after_each_validation() -> None:
    rule = General()
    module = CoTrainer(
        {"a": network(0), "b": network(1)},
        {"soft": Knowledge(SoftTargets(2.0))},
        Consensus(rule),
        optimizer=sgd,
    )
    trainer(2, limit_val_batches=1.0, num_sanity_val_steps=2).fit(module, digits(validation=100))
    assert rule.shares.shape == (2,)
    assert float(rule.shares.sum()) == pytest.approx(1.0)
    assert not torch.equal(rule.shares, torch.full((2,), 0.5))


@pytest.mark.parametrize("rule", [Average(), Naive(), MinLogit(), Linear(), General()])
def test_target_carries_no_gradient(rule: Rule) -> None:
    outputs = {name: Outputs(z.requires_grad_()) for name, z in zip("abc", logits(3), strict=True)}
    target = ConsensusTarget("consensus", [*outputs], rule)(Batch(torch.empty(0), LABELS), outputs)["consensus"]
    assert not target.logits.requires_grad


@pytest.mark.parametrize(
    ("make", "message"), [(lambda: Linear(0), "at least 1 step"), (lambda: PeerEnsemble(2.0), "below 1")]
)
def test_wrong_numbers_raise(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_others_leaves_the_student_out_of_its_target() -> None:
    module = cotrainer(peers(3), teaching=Consensus(others=True))
    seen, _ = seen_by(module)
    expected = (seen["b"].logits + seen["c"].logits).detach() / 2
    torch.testing.assert_close(teachers(module, seen)["a"], expected)


def test_mean_of_the_others_probabilities() -> None:
    module = cotrainer(peers(3), teaching=Consensus(Average(Ensemble()), others=True))
    seen, _ = seen_by(module)
    expected = (seen["b"].logits.softmax(1) + seen["c"].logits.softmax(1)).detach() / 2
    torch.testing.assert_close(teachers(module, seen)["a"].softmax(1), expected)


def test_each_network_sees_its_own_augmentation() -> None:
    module = cotrainer(teaching=Consensus(own_views=True))
    data = digits(padding=1)
    trainer(max_steps=1).fit(module, data)
    seen, batch = seen_by(module, first_batch_of(data))
    second = inputs_of(batch.view("view1"))
    assert second.shape == batch.inputs.shape
    assert not torch.equal(second, batch.inputs)
    torch.testing.assert_close(seen["a"].logits, module.networks["a"](batch.inputs))
    torch.testing.assert_close(seen["b"].logits, module.networks["b"](second))
