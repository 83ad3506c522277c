"""How one target is made out of several members' logits, against section K's numbers and slow searches."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab import CoTrainer, InputError, Knowledge
from kdlab.losses import SoftTargets
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Average, Consensus, Ensemble, General, Linear, MinLogit, MovingAverage, Naive, PeerEnsemble
from tests.modules.cotraining import cotrainer, one_batch, peers, steps
from tests.modules.tiny import digits, network, sgd, trainer


def logits(members: int, batch: int = 6, classes: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(members)]


LABELS = torch.tensor([0, 4, 2, 1, 3, 0])


def test_the_least_of_the_shifted_logits() -> None:
    """The numbers of section K."""
    t, s = torch.tensor([[3.0, 1.0, 0.5, -1.0]]), torch.tensor([[1.5, -1.0, 2.0, -0.5]])
    z = MinLogit()([t, s], torch.tensor([0]))
    assert z.tolist() == [[0.0, -2.5, -2.5, -4.0]]
    assert z.softmax(1)[0].tolist() == pytest.approx([0.845676, 0.069417, 0.069417, 0.015489], abs=5e-7)


def test_the_best_member_sample_by_sample() -> None:
    z = logits(3)
    got = Naive()(z, LABELS)
    for b, label in enumerate(LABELS.tolist()):
        losses = [-math.log(each[b].softmax(0)[label]) for each in z]
        assert torch.equal(got[b], z[losses.index(min(losses))][b])


@pytest.mark.parametrize("members", [2, 3])
def test_the_best_combination_is_found(members: int) -> None:
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


def test_shares_from_held_out_errors() -> None:
    z = logits(3)
    rule = General()
    assert torch.equal(rule(z, LABELS), torch.stack(z).mean(0))  # until something is known
    for part in (slice(0, 2), slice(2, 6)):
        rule.examine([each[part] for each in z], LABELS[part])
    rule.conclude()
    errors = [each.softmax(1) - F.one_hot(LABELS, 5) for each in z]
    c = [[float((a * b).sum(1).mean()) for b in errors] for a in errors]
    solved = torch.linalg.solve(torch.tensor(c, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    expected = solved / solved.sum()
    assert rule.shares.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    torch.testing.assert_close(rule(z, LABELS), sum(w * each for w, each in zip(rule.shares.double(), z, strict=True)))
    again = General()
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.shares, rule.shares)


def test_members_that_always_agree_share_alike() -> None:
    (z,) = logits(1)
    rule = General()
    rule.examine([z, z.clone()], LABELS)
    rule.conclude()
    assert rule.shares.tolist() == pytest.approx([0.5, 0.5], abs=1e-4)


def test_a_run_renews_the_shares_after_each_validation() -> None:
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


def test_the_target_carries_no_gradient() -> None:
    for rule in (Average(), Naive(), MinLogit(), Linear(), General()):
        outputs = {name: Outputs(z.requires_grad_()) for name, z in zip("abc", logits(3), strict=True)}
        for lesson in Consensus(rule).lessons(outputs, Batch(torch.empty(0), LABELS)):
            assert not lesson.teacher.logits.requires_grad


def test_averages_are_moved_by_optimiser_steps_alone() -> None:
    teaching = MovingAverage(0.9)
    module = CoTrainer({"net": network()}, {"soft": Knowledge(SoftTargets(2.0))}, teaching, optimizer=sgd)
    trainer(2, accumulate_grad_batches=2, gradient_clip_val=0.5, precision="bf16-mixed").fit(module, digits())
    assert module.trainer.global_step == 6  # three in each epoch of five batches
    assert teaching.updates == 6


@pytest.mark.parametrize(
    ("make", "says"), [(lambda: Linear(0), "at least 1 step"), (lambda: PeerEnsemble(2.0), "below 1")]
)
def test_wrong_numbers_are_refused(make, says) -> None:
    with pytest.raises(InputError, match=says):
        make()


def test_collaborative_learning_leaves_the_learner_out() -> None:
    module = cotrainer(peers(3), teaching=Consensus(others=True))
    steps(module, 1)
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    torch.testing.assert_close(lessons["a"], (outputs["b"].logits + outputs["c"].logits).detach() / 2)


def test_the_mean_of_the_others_probabilities() -> None:
    module = cotrainer(peers(3), teaching=Consensus(Average(Ensemble()), others=True))
    steps(module, 1)
    _, outputs, batch = one_batch(module)
    lessons = {x.learner: x.teacher.logits for x in module.lessons(outputs, batch)}
    expected = (outputs["b"].logits.softmax(1) + outputs["c"].logits.softmax(1)).detach() / 2
    torch.testing.assert_close(lessons["a"].softmax(1), expected)


def test_every_network_sees_its_own_augmentation() -> None:
    module = cotrainer(teaching=Consensus(own_views=True))
    data = digits(padding=1)
    trainer(max_steps=1).fit(module, data)
    batch = data.prepare(next(iter(data.train_dataloader())), 0)
    inputs = module.teaching.views(batch, ["a", "b"])
    assert inputs["a"] is batch.inputs
    assert inputs["b"].shape == inputs["a"].shape
    assert not torch.equal(inputs["a"], inputs["b"])
