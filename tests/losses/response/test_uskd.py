"""USKD against plain loops, and its weak head."""

import math
from dataclasses import replace

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import USKD
from kdlab.outputs import Outputs
from tests.losses.slow import draw, softmax

LABELS = torch.tensor([0, 4, 2, 1])
OTHER = Outputs(draw(4, 5, seed=9))


def seen(seed=1, layer=None):
    layer = draw(4, 3, 2, 3, seed=seed + 1) if layer is None else layer
    return Outputs(draw(4, 5, seed=seed, scale=2), (layer,), names=("layer3",))


def sized(*weights):
    torch.manual_seed(0)
    loss = USKD(*weights)
    loss(seen(), OTHER, LABELS)
    with torch.no_grad():
        loss.weak_head.weight.mul_(4)  # so that it has something to say in the ranking
    return loss


def slow_weak(layer, head):
    """The weak head's probabilities of every sample."""
    weight, bias, rows = head.weight.tolist(), head.bias.tolist(), []
    for sample in layer.tolist():
        pooled = [sum(sum(row) for row in channel) / sum(len(row) for row in channel) for channel in sample]
        logits = [sum(a * b for a, b in zip(w, pooled, strict=True)) + c for w, c in zip(weight, bias, strict=True)]
        rows.append(softmax(logits))
    return rows


def slow_places(q, w, y, logarithm=True):
    """1 for the class of the highest score, 2 for the next, ..."""
    said = [math.log(v) for v in q] if logarithm else q
    scores = [w[k] / (1 - w[y] + 1e-6) + said[k] / (1 - said[y] + 1e-6) for k in range(len(q))]
    order = sorted(range(len(q)), key=lambda k: -scores[k])
    return [order.index(k) + 1 for k in range(len(q))]


def slow(student, labels, head, held=None, logarithm=True):
    """The three parts; ``held`` are the weights of the label where they are to stay as they were."""
    answers, weak = [softmax(z) for z in student.logits.tolist()], slow_weak(student.layers[0], head)
    labels, count = labels.tolist(), len(labels)
    squares = [q[y] ** 2 for q, y in zip(answers, labels, strict=True)]
    weights = held or [square + 1 - sum(squares) / count for square in squares]
    of_label = of_others = of_weak = 0.0
    for z, q, w, y, weight in zip(student.logits.tolist(), answers, weak, labels, weights, strict=True):
        of_label -= weight * math.log(q[y])
        others = [k for k in range(len(z)) if k != y]
        places = slow_places(q, w, y, logarithm)
        zipf = [1 / places[k] for k in others]
        normal = softmax([z[k] for k in others])
        of_others -= sum(a / sum(zipf) * math.log(b) for a, b in zip(zipf, normal, strict=True))
        of_weak -= sum((0.9 * (k == y) + 0.1 / len(w)) * math.log(w[k]) for k in range(len(w)))
    return [part / count for part in (of_label, of_others, of_weak)], weights


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.3, 0.7, 0.2)])
def test_value(weights):
    loss = sized(*weights)
    parts, _ = slow(seen(), LABELS, loss.weak_head)
    expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    assert loss(seen(), OTHER, LABELS).item() == pytest.approx(expected, rel=1e-11)


def test_the_weights_of_the_label_have_the_mean_one():
    _, weights = slow(seen(), LABELS, sized().weak_head)
    assert sum(weights) / 4 == pytest.approx(1)
    assert max(weights) > 1.01


def test_the_ranking_asks_both_heads_and_the_logarithm():
    found = {"both": 0, "logarithm": 0}
    loss = sized(0.0, 1.0, 0.0)
    for seed in range(20):
        student = seen(seed)
        (_, value, _), _ = slow(student, LABELS, loss.weak_head)
        (_, plain, _), _ = slow(student, LABELS, loss.weak_head, logarithm=False)
        assert loss(student, OTHER, LABELS).item() == pytest.approx(value, rel=1e-11)
        found["logarithm"] += abs(plain - value) > 1e-3
        for z, w, y in zip(student.logits, slow_weak(student.layers[0], loss.weak_head), LABELS.tolist(), strict=True):
            q = softmax(z.tolist())
            alone = sorted(range(5), key=lambda k: -q[k])
            found["both"] += [alone.index(k) + 1 for k in range(5)] != slow_places(q, w, y)
    assert all(found.values())


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.3, 0.7, 0.2)])
def test_the_gradient_holds_the_targets(weights):
    loss, student = sized(*weights), seen().map(lambda x: x.requires_grad_())
    loss(student, OTHER, LABELS).backward()
    _, held = slow(seen(), LABELS, loss.weak_head)
    step = 1e-6
    for b, k in [(0, 0), (0, 3), (2, 2), (3, 4)]:
        around = []
        for sign in (1, -1):
            logits = seen().logits
            logits[b, k] += sign * step
            parts, _ = slow(replace(seen(), logits=logits), LABELS, loss.weak_head, held)
            around.append(sum(weight * part for weight, part in zip(weights, parts, strict=True)))
        assert student.logits.grad[b, k].item() == pytest.approx((around[0] - around[1]) / (2 * step), abs=1e-8)


def test_only_the_weak_term_trains_the_weak_head():
    for weights, trained in [((1.0, 1.0, 0.0), False), ((0.0, 0.0, 1.0), True)]:
        loss, student = sized(*weights), seen().map(lambda x: x.requires_grad_())
        loss.zero_grad()
        loss(student, OTHER, LABELS).backward()
        assert bool(loss.weak_head.weight.grad.any()) is trained
        assert bool(student.layers[0].grad.any()) is trained


def test_a_vector_is_read_as_it_is():
    loss, maps = sized(), seen().layers[0]
    flat = loss(seen(layer=maps.mean((2, 3))), OTHER, LABELS)
    assert flat.item() == pytest.approx(loss(seen(), OTHER, LABELS).item(), rel=1e-12)


def test_the_weak_head_survives_saving():
    old, new = sized(), USKD()
    new.load_state_dict(old.state_dict())
    assert new(seen(), OTHER, LABELS) == old(seen(), OTHER, LABELS)
    with pytest.raises(InputError, match="USKD was set up for sizes"):
        new(seen(layer=draw(4, 7)), OTHER, LABELS)


def test_equal_scores_are_ranked_by_class():
    even = Outputs(torch.zeros(1, 4, dtype=torch.float64, requires_grad=True), (torch.zeros(1, 2).double(),))
    loss = USKD(0.0, 1.0, 0.0)
    loss(even, even, torch.tensor([1]))
    with torch.no_grad():
        loss.weak_head.bias.zero_()
    loss(even, even, torch.tensor([1])).backward()
    weights = [1, 1 / 3, 1 / 4]
    expected = [1 / 3 - weight / sum(weights) for weight in weights]
    assert even.logits.grad[0, [0, 2, 3]].tolist() == pytest.approx(expected)


def test_invalid_inputs_raise_input_error():
    one = Outputs(torch.zeros(2, 1), (torch.zeros(2, 3),))
    with pytest.raises(InputError, match="at least 2 classes"):
        USKD()(one, one, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match="set student_layers"):
        USKD()(replace(seen(), layers=()), OTHER, LABELS)
    for layers in [(draw(4, 3), draw(4, 3)), (draw(3, 3),), (draw(4, 2, 3),)]:
        with pytest.raises(InputError, match="reads one map"):
            USKD()(replace(seen(), layers=layers), OTHER, LABELS)
