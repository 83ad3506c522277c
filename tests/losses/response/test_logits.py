"""What losses on class scores share: values sample by sample, and what they refuse."""

import pytest
import torch

from kdlab import losses
from kdlab.errors import InputError
from kdlab.losses.response.logits import divergence, kinds_of, needs_of, soft_cross_entropy, split, views_of
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import ALL_KINDS, CLASSES, bernoulli_kl
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([0, 4, 2, 1, 3, 0])
BY_SAMPLE = [
    losses.SoftTargets(),
    losses.DKD(),
    losses.NKD(),
    losses.TTM(),
    losses.WTTM(),
    losses.WSLD(),
    losses.RLD(),
    losses.OFA(gamma=1.5),
    losses.Labels(),
    losses.HardLabels(),
    losses.Consistency(),
    losses.LabelSmoothing(),
    losses.SoftLabels(),
    losses.VirtualTeacher(),
    losses.LogitStandardization(),
    losses.LogitStandardization(losses.DKD()),
    losses.ForwardKL(),
    losses.ReverseKL(),
    losses.SkewKL(),
    losses.GeneralizedJSD(),
    losses.TopK(3),
    losses.SequenceKD(),
    losses.DistillKL(),
    losses.MarginMSE(),
]


def test_every_loss_with_values_of_samples_is_here():
    kinds = {getattr(losses, name) for name in losses.__all__}
    of_features = {losses.CosineSmoothL1, losses.Standardized}
    assert {kind for kind in kinds if hasattr(kind, "per_sample")} - of_features == set(map(type, BY_SAMPLE))


@pytest.mark.parametrize("loss", BY_SAMPLE, ids=lambda loss: type(loss).__name__)
def test_per_sample_equals_batches_of_one(loss):
    student, teacher = draw(6, 5, seed=1, scale=3), draw(6, 5, seed=2, scale=3)
    each = loss.per_sample(Outputs(student), Outputs(teacher), LABELS)
    alone = [loss(Outputs(student[i : i + 1]), Outputs(teacher[i : i + 1]), LABELS[i : i + 1]).item() for i in range(6)]
    assert each.tolist() == pytest.approx(alone, rel=1e-11)
    assert loss(Outputs(student), Outputs(teacher), LABELS).item() == pytest.approx(each.mean().item(), rel=1e-12)


@pytest.mark.parametrize("loss", BY_SAMPLE, ids=lambda loss: type(loss).__name__)
def test_values_of_samples_are_computed_in_full_precision(loss):
    student, teacher = (Outputs(draw(6, 5, seed=seed).bfloat16()) for seed in (1, 2))
    assert loss.per_sample(student, teacher, LABELS).dtype is torch.float32


@pytest.mark.parametrize("loss", BY_SAMPLE, ids=lambda loss: type(loss).__name__)
def test_values_of_samples_are_of_whole_samples(loss):
    tokens = Outputs(draw(6, 3, 5, seed=1))
    with pytest.raises(InputError, match=r"\(B, K\)"):
        loss.per_sample(tokens, tokens, LABELS)


def test_divergences():
    student, teacher = draw(3, 4, seed=1), draw(3, 4, seed=2)
    rows = list(zip(student.tolist(), teacher.tolist(), strict=True))
    expected = [kl(softmax(t, 0.7), softmax(s, 0.7)) for s, t in rows]
    assert divergence(student, teacher, 0.7).tolist() == pytest.approx(expected, rel=1e-11)
    of_itself = divergence(teacher, teacher, 0.7)
    entropy = soft_cross_entropy(teacher, teacher, 0.7)
    assert of_itself.abs().max() < 1e-14
    assert soft_cross_entropy(student, teacher, 0.7).tolist() == pytest.approx(
        (entropy + divergence(student, teacher, 0.7)).tolist(), rel=1e-11
    )


def test_log_odds_and_the_others():
    logits, labels = draw(4, 3, seed=1), torch.tensor([2, 0, 1, 1])
    odds, others = split(logits, labels)
    for row, label, odd, rest in zip(logits.tolist(), labels.tolist(), odds.tolist(), others.tolist(), strict=True):
        p = softmax(row)[label]
        assert torch.tensor(odd).sigmoid().item() == pytest.approx(p, rel=1e-6)
        assert rest == [value for k, value in enumerate(row) if k != label]


def test_one_of_two_classes_has_one_other():
    odds, others = split(torch.tensor([[3.0, 1.0]]), torch.tensor([1]))
    assert (odds.tolist(), others.tolist()) == ([-2.0], [[3.0]])


@pytest.mark.parametrize("loss", [loss for loss in BY_SAMPLE if "tokens" not in type(loss).__module__])
def test_two_classes_are_the_fewest(loss):
    """Over rows; one class has probability 1 whatever its logit."""
    two, one = (Outputs(draw(4, classes, seed=1)) for classes in (2, 1))
    assert loss.per_sample(two, two, LABELS[:4].clamp(max=1)).shape == (4,)
    with pytest.raises(InputError, match="at least 2 classes"):
        loss.per_sample(one, one, torch.zeros(4, dtype=torch.int64))


def test_wrappers_declare_what_their_loss_does():
    inner = losses.SoftTargets(2.0)
    for wrapped in (losses.CurriculumTemperature(inner), losses.OnView(inner)):
        assert kinds_of(wrapped) == inner.kinds == ALL_KINDS[:-1]
    assert kinds_of(losses.OnView()) == kinds_of(losses.Labels()) == CLASSES
    assert kinds_of(losses.Hint()) == ALL_KINDS
    wrapped = losses.OnView(inner, view="strong")
    for outer in (losses.CurriculumTemperature, losses.LogitStandardization, losses.OnView):
        assert views_of(outer(wrapped))[-1] == "strong"
        assert set(needs_of(outer(wrapped))) == {"logits", "views"}
    assert views_of(losses.Standardized(losses.Hint())) == ()
    assert needs_of(losses.Standardized(losses.Hint())) == ("layers",)


def test_sure_decisions_have_a_finite_divergence():
    odds = torch.tensor([300.0, -300.0], requires_grad=True)
    value = bernoulli_kl(odds, torch.tensor([-300.0, 300.0]))
    value.sum().backward()
    assert value.tolist() == [300.0, 300.0]
    assert odds.grad.tolist() == [1.0, -1.0]
