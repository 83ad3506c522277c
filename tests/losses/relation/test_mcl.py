"""MCL against plain loops over both networks."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import MCL
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, kl, softmax

LABELS = torch.tensor([2, 0, 2, 1, 0, 2])  # the fourth has nobody of its class
WEIGHTS = ("vanilla", "interactive", "soft_vanilla", "soft_interactive")


def side(embedding):
    return Outputs(draw(len(embedding), 4, seed=99), embedding=embedding)


def sized(ours, theirs, **options):
    torch.manual_seed(0)
    loss = MCL(width=3, **options)
    loss(side(ours), side(theirs), LABELS[: len(ours)])
    return loss


def vectors(head, rows):
    """The head and the division by the length, in loops."""
    found = []
    for row in rows:
        first, last = head[0], head[2]
        hidden = [max(dot(w, row) + c, 0.0) for w, c in zip(first.weight.tolist(), first.bias.tolist(), strict=True)]
        out = [dot(w, hidden) + c for w, c in zip(last.weight.tolist(), last.bias.tolist(), strict=True)]
        length = math.sqrt(dot(out, out))
        found.append([value / length for value in out])
    return found


def tables(nets, tau):
    """All similarities, by the pair of networks."""
    return {(n, m): [[dot(x, y) / tau for y in nets[m]] for x in nets[n]] for n in nets for m in nets}


def slow_contrast(scores, labels):
    """Cross-entropy of the others of one's class, without the sample itself; samples that have none are left out."""
    values = []
    for b, row in enumerate(scores):
        others = [j for j in range(len(row)) if j != b]
        same = [j for j in others if labels[j] == labels[b]]
        if same:
            total = math.log(sum(math.exp(row[i]) for i in others))
            values.append(-sum(row[j] - total for j in same) / len(same))
    return sum(values) / len(values) if values else 0.0


def slow_divergence(scores, held, temperature):
    rows = [kl(softmax(r, temperature), softmax(s, temperature)) for s, r in zip(scores, held, strict=True)]
    return temperature**2 * sum(rows) / len(rows)


def slow(loss, heads, embeddings, labels, held=None):
    """The four parts of the released loss of two networks; ``held`` are the tables the divergences aim at."""
    s = tables({n: vectors(heads[n], embeddings[n]) for n in "ab"}, loss.temperature)
    held, labels, t = held or s, labels.tolist(), loss.soft_temperature
    return [
        slow_contrast(s["a", "a"], labels) + slow_contrast(s["b", "b"], labels),
        slow_contrast(s["a", "b"], labels) + slow_contrast(s["b", "a"], labels),
        slow_divergence(s["a", "a"], held["b", "b"], t) + slow_divergence(s["b", "b"], held["a", "a"], t),
        slow_divergence(s["a", "b"], held["b", "a"], t) + slow_divergence(s["b", "a"], held["a", "b"], t),
    ], s


def total(loss, *rest):
    parts, _ = slow(loss, *rest)
    return sum(getattr(loss, name) * part for name, part in zip(WEIGHTS, parts, strict=True))


def both(loss):
    return {"a": loss.student_head, "b": loss.teacher_head}


@pytest.mark.parametrize("options", [dict.fromkeys(WEIGHTS, 0.0) | {name: 0.7} for name in WEIGHTS] + [{}])
@pytest.mark.parametrize("temperatures", [(0.07, 3.0), (0.5, 1.0)])
def test_value(options, temperatures):
    ours, theirs = draw(6, 4, seed=1), draw(6, 5, seed=2)
    loss = sized(ours, theirs, temperature=temperatures[0], soft_temperature=temperatures[1], **options)
    expected = total(loss, both(loss), {"a": ours.tolist(), "b": theirs.tolist()}, LABELS)
    assert expected > 0
    assert loss(side(ours), side(theirs), LABELS).item() == pytest.approx(expected, rel=1e-9)


def test_the_defaults():
    loss = MCL()
    assert [getattr(loss, name) for name in WEIGHTS] == [0.1, 0.1, 1.0, 1.0]
    assert (loss.temperature, loss.width, loss.soft_temperature) == (0.07, 128, 3.0)


def slope(loss, heads, embeddings, net, held, step=1e-6):
    """What the released loss changes by, for every number of one network's embedding."""
    found = []
    for row in embeddings[net]:
        for place, value in enumerate(row):
            values = []
            for moved in (value + step, value - step):
                row[place] = moved
                values.append(total(loss, heads, embeddings, LABELS, held))
            row[place] = value
            found.append((values[0] - values[1]) / (2 * step))
    return found


def test_both_edges_give_the_gradient_of_the_released_loss():
    a, b = draw(6, 4, seed=1).requires_grad_(), draw(6, 5, seed=2).requires_grad_()
    one, other = (sized(x.detach(), y.detach(), temperature=0.5) for x, y in ((a, b), (b, a)))
    other.student_head.load_state_dict(one.teacher_head.state_dict())
    other.teacher_head.load_state_dict(one.student_head.state_dict())
    embeddings, heads = {"a": a.tolist(), "b": b.tolist()}, both(one)
    _, held = slow(one, heads, embeddings, LABELS)
    one(side(a), side(b), LABELS).backward()
    assert b.grad is None
    first = a.grad.clone()
    other(side(b), side(a), LABELS).backward()
    assert torch.equal(a.grad, first)
    assert a.grad.flatten().tolist() == pytest.approx(slope(one, heads, embeddings, "a", held), rel=1e-5, abs=1e-8)
    assert b.grad.flatten().tolist() == pytest.approx(slope(one, heads, embeddings, "b", held), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("head", ["student_head", "teacher_head"])
def test_the_heads_learn_from_the_whole_loss(head):
    ours, theirs = draw(6, 4, seed=1), draw(6, 5, seed=2)
    loss = sized(ours, theirs, temperature=0.5)
    rest = both(loss), {"a": ours.tolist(), "b": theirs.tolist()}, LABELS
    _, held = slow(loss, *rest)
    loss(side(ours), side(theirs), LABELS).backward()
    for parameter in getattr(loss, head).parameters():
        flat, grads = parameter.data.view(-1), parameter.grad.flatten().tolist()
        for place, (value, grad) in enumerate(zip(flat.tolist(), grads, strict=True)):
            values = []
            for moved in (value + 1e-6, value - 1e-6):
                flat[place] = moved
                values.append(total(loss, *rest, held))
            flat[place] = value
            assert grad == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_without_a_second_of_a_class_only_the_soft_parts_count():
    ours, theirs = draw(3, 4, seed=1), draw(3, 5, seed=2)
    loss = sized(ours, theirs, soft_vanilla=0.0, soft_interactive=0.0)
    assert loss(side(ours), side(theirs), torch.arange(3)).item() == 0
    assert sized(ours, theirs)(side(ours), side(theirs), torch.arange(3)).item() > 0


def test_the_heads_sizes_are_remembered():
    ours, theirs = draw(6, 4, seed=1), draw(6, 5, seed=2)
    old, new = sized(ours, theirs), MCL(width=3)
    new.load_state_dict(old.state_dict(), strict=True)
    new.double()
    assert (new.student_head[0].in_features, new.teacher_head[0].in_features) == (4, 5)
    assert new(side(ours), side(theirs), LABELS) == old(side(ours), side(theirs), LABELS)
    with pytest.raises(InputError, match="MCL was set up for sizes"):
        new(side(theirs), side(ours), LABELS)


def test_invalid_inputs_raise_input_error():
    with pytest.raises(InputError, match="width must be a whole number"):
        MCL(width=2.5)
    one = side(draw(1, 4))
    with pytest.raises(InputError, match="at least 2"):
        MCL()(one, one, LABELS[:1])
    uneven = Outputs(draw(5, 4), embedding=draw(6, 4))
    with pytest.raises(InputError, match="6 embeddings and 5 labels"):
        MCL()(uneven, uneven, LABELS[:5])
