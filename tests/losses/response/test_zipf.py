"""Zipf's label smoothing against plain loops: ranks of logits, and ranks by votes of positions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import ZipfLabelSmoothing
from kdlab.losses.context import Context
from kdlab.losses.response.zipf import smallest_ranks
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([0, 4, 2, 1, 3])
LOGITS = draw(5, 5, seed=1, scale=2)
MAPS = draw(5, 3, 4, 3, seed=3)
OTHER = Outputs(draw(5, 5, seed=2))


def network(bias=True, classes=5, width=3):
    torch.manual_seed(0)
    return nn.Linear(width, classes, bias).double()


def ready(classifier, **given):
    loss = ZipfLabelSmoothing(**given)
    loss.setup(Context(classifier, (), ("last",)))
    return loss


def with_map(logits=LOGITS, maps=MAPS):
    return Outputs(logits, (maps,), names=("last",))


def slow_rank(scores, k, among):
    return 1 + sum(scores[j] > scores[k] for j in among)


def slow_votes(maps, classifier):
    weight, bias = classifier.weight.tolist(), [0.0] * classifier.out_features
    if classifier.bias is not None:
        bias = classifier.bias.tolist()
    counted = []
    for sample in maps.tolist():
        votes = [0] * len(weight)
        for row in range(len(sample[0])):
            for column in range(len(sample[0][0])):
                here = [channel[row][column] for channel in sample]
                said = [sum(a * b for a, b in zip(w, here, strict=True)) + c for w, c in zip(weight, bias, strict=True)]
                votes[said.index(max(said))] += 1
        counted.append(votes)
    return counted


def slow(logits, scores, labels, power=1.0, ranks="all"):
    rows = []
    for z, score, y in zip(logits.tolist(), scores, labels.tolist(), strict=True):
        others = [k for k in range(len(z)) if k != y]
        among = range(len(z)) if ranks == "all" else others
        weights = [slow_rank(score, k, among) ** -power for k in others]
        rows.append(kl([w / sum(weights) for w in weights], softmax([z[k] for k in others])))
    return rows


@pytest.mark.parametrize("ranks", ["all", "others"])
@pytest.mark.parametrize("power", [0.0, 1.0, 2.5])
def test_value(power, ranks):
    rows = slow(LOGITS, LOGITS.tolist(), LABELS, power, ranks)
    loss = ZipfLabelSmoothing(power, ranks)(Outputs(LOGITS), OTHER, LABELS)
    assert loss.item() == pytest.approx(sum(rows) / 5, rel=1e-11)


def test_the_label_takes_a_rank_or_not():
    sure = torch.tensor([[9.0, 3.0, 2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    # The gradient of the divergence is q - zipf among the others: with 1, 1/2, 1/3 they are the three numbers below.
    for ranks, expected in (("others", [0.545455, 0.272727, 0.181818]), ("all", [0.461538, 0.307692, 0.230769])):
        sure.grad = None
        ZipfLabelSmoothing(ranks=ranks)(Outputs(sure), Outputs(sure), torch.tensor([0])).backward()
        zipf = torch.tensor(softmax([3.0, 2.0, 1.0]), dtype=torch.float64) - sure.grad[0, 1:]
        assert zipf.tolist() == pytest.approx(expected, abs=5e-7)
        assert sure.grad[0, 0] == 0


def test_equal_scores_share_the_smallest_rank():
    scores = torch.tensor([[4.0, 3.0, 3.0, 2.0, 1.0], [0.0, 0.0, 5.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert smallest_ranks(scores).tolist() == [[1, 2, 2, 4, 5], [2, 2, 1, 2, 2], [1, 1, 1, 1, 1]]


@pytest.mark.parametrize("ranks", ["all", "others"])
@pytest.mark.parametrize("bias", [True, False])
def test_value_with_votes(ranks, bias):
    classifier = network(bias)
    votes = slow_votes(MAPS, classifier)
    assert len({tuple(each) for each in votes}) > 1
    assert any(0 in each for each in votes)
    rows = slow(LOGITS, votes, LABELS, 1.0, ranks)
    assert rows != slow(LOGITS, LOGITS.tolist(), LABELS, 1.0, ranks)
    loss = ready(classifier, ranks=ranks)
    assert loss.votes(with_map()).tolist() == votes
    assert loss(with_map(), OTHER, LABELS).item() == pytest.approx(sum(rows) / 5, rel=1e-11)


def test_the_bias_votes_too():
    classifier = network()
    with torch.no_grad():
        classifier.bias[2] = 100.0
    assert ready(classifier).votes(with_map())[:, 2].tolist() == [12.0] * 5


def test_a_map_is_enlarged_before_the_vote():
    classifier = network()
    larger = F.interpolate(MAPS, scale_factor=2, mode="bilinear", align_corners=False)
    votes = ready(classifier, enlarge=2).votes(with_map())
    assert votes.tolist() == slow_votes(larger, classifier)
    assert votes.sum(1).tolist() == [48.0] * 5


def test_votes_pass_no_gradient():
    classifier, logits, maps = network(), LOGITS.clone().requires_grad_(), MAPS.clone().requires_grad_()
    loss = ready(classifier)
    loss(with_map(logits, maps), OTHER, LABELS).backward()
    assert logits.grad.any()
    assert maps.grad is None
    assert classifier.weight.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_the_classifier_votes_as_it_is_now():
    classifier = network()
    loss = ready(classifier)
    before = loss.votes(with_map())
    with torch.no_grad():
        classifier.weight.neg_()
    assert not torch.equal(loss.votes(with_map()), before)


def test_votes_in_half_precision():
    classifier, seen = network(), with_map().map(torch.Tensor.bfloat16)
    loss = ready(classifier.bfloat16())
    value = loss(seen, seen, LABELS)
    assert value.dtype is torch.float32
    expected = slow(seen.logits, slow_votes(seen.layers[0], classifier), LABELS)
    assert value.item() == pytest.approx(sum(expected) / 5, rel=1e-5)


def test_only_correct_samples():
    logits = LOGITS.clone()
    logits[0, 0] = logits[3, 1] = 20.0
    correct = [b for b, (z, y) in enumerate(zip(logits.tolist(), LABELS.tolist(), strict=True)) if max(z) == z[y]]
    assert 0 < len(correct) < 5
    rows = slow(logits, logits.tolist(), LABELS)
    loss = ZipfLabelSmoothing(only_correct=True)(Outputs(logits), OTHER, LABELS)
    assert loss.item() == pytest.approx(sum(rows[b] for b in correct) / len(correct), rel=1e-11)


def test_no_correct_sample_gives_zero_and_no_gradient():
    logits = LOGITS.clone()
    logits[torch.arange(5), LABELS] = -20.0
    logits.requires_grad_()
    loss = ZipfLabelSmoothing(only_correct=True)(Outputs(logits), OTHER, LABELS)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_a_large_power_is_finite():
    logits = LOGITS.clone().requires_grad_()
    loss = ZipfLabelSmoothing(2000.0)(Outputs(logits), OTHER, LABELS)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_invalid_inputs_raise_input_error():
    loss, one = ready(network()), Outputs(torch.zeros(2, 1))
    with pytest.raises(InputError, match="at least 2 classes"):
        ZipfLabelSmoothing()(one, one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="call setup"):
        ZipfLabelSmoothing()(with_map(), OTHER, LABELS)
    with pytest.raises(InputError, match=r"one map \(B, C, H, W\) of the batch, not of \(5, 3, 4, 3\), \(5, 3, 4, 3\)"):
        loss(replace(with_map(), layers=(MAPS, MAPS), names=("one", "two")), OTHER, LABELS)
    with pytest.raises(InputError, match="one map"):
        loss(with_map(maps=MAPS[:4]), OTHER, LABELS)
    with pytest.raises(InputError, match="one map"):
        loss(with_map(maps=MAPS[:, :, 0, 0]), OTHER, LABELS)
    with pytest.raises(InputError, match="classifier reads 3 channels, but layer 'last' has 2"):
        loss(with_map(maps=MAPS[:, :2]), OTHER, LABELS)
    with pytest.raises(InputError, match="classifier has 4 classes and its logits 5"):
        ready(network(classes=4))(with_map(), OTHER, LABELS)
    with pytest.raises(InputError, match="ranks must be 'all' or 'others', not 'wrong'"):
        ZipfLabelSmoothing(ranks="wrong")
    with pytest.raises(InputError, match="enlarge must be a whole number"):
        ZipfLabelSmoothing(enlarge=1.5)
