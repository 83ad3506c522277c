"""MixSKD against a slow reference."""

import math
from dataclasses import replace

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import MixSKD
from kdlab.outputs import Mix, Outputs
from tests.losses.feature.test_frskd import normal, positive, windows
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([3, 0, 1, 0])
MIX = Mix(torch.tensor([2, 0, 1, 3]), torch.tensor([0.3, 0.9, 0.55, 0.0], dtype=torch.float64))
SHAPES = {
    "halves": ([(2, 4, 4), (3, 2, 2)], [2]),
    "others": ([(2, 6, 5), (3, 3, 3), (2, 2, 2)], [2, 1]),
    "same": ([(3, 3, 3), (3, 3, 3)], [1]),
    "one": ([(2, 3, 3)], []),
}


def network(shapes, seed=1, mix=MIX):
    plain, mixed = (
        Outputs(
            draw(4, 5, seed=first, scale=2),
            tuple(draw(4, *shape, seed=first + 1 + i) for i, shape in enumerate(shapes)),
        )
        for first in (seed, seed + 10)
    )
    return replace(plain, views={"mixed": replace(mixed, mix=mix)})


def sized(student, **options):
    torch.manual_seed(0)
    loss = MixSKD(**options)
    loss(student, student, LABELS)
    with torch.no_grad():  # the normalizations have something to say too
        for number, (name, value) in enumerate(loss.named_parameters()):
            if "norm" in name:
                value.copy_((draw(len(value), seed=40 + number) + 0.5).float())
    return loss


def convolved(x, weight, stride):
    reach = weight.shape[2] // 2
    around, (height, width) = torch.nn.functional.pad(x, (reach,) * 4), x.shape[2:]
    return sum(
        torch.einsum("oi,bihw->bohw", weight[:, :, i, j], around[:, :, i : i + height, j : j + width])[
            :, :, ::stride, ::stride
        ]
        for i in range(weight.shape[2])
        for j in range(weight.shape[2])
    )


def block(x, part, stride):
    inner = positive(normal(convolved(x, part.conv1.weight, stride), part.norm1))
    outer = normal(convolved(inner, part.conv2.weight, 1), part.norm2)
    if len(part.shortcut):
        x = normal(convolved(x, part.shortcut[0].weight, stride), part.shortcut[1])
    return positive(outer + x)


def averaged(x, size):
    rows = [
        torch.stack([x[:, :, a:b, c:d].mean((2, 3)) for c, d in windows(x.shape[3], size[1], False)], -1)
        for a, b in windows(x.shape[2], size[0], False)
    ]
    return torch.stack(rows, 2)


def read_out(x, linear):
    return torch.einsum("kc,bc->bk", linear.weight, x.flatten(2).mean(2)) + linear.bias


def joined(x, mix):
    rows = zip(mix.partner.tolist(), mix.share.tolist(), strict=True)
    return torch.stack([share * x[b] + (1 - share) * x[partner] for b, (partner, share) in enumerate(rows)])


def entropy(scores, labels, weights):
    rows = zip(scores.tolist(), labels.tolist(), weights, strict=True)
    return -sum(weight * math.log(softmax(z)[y]) for z, y, weight in rows) / len(labels)


def divergence(scores, held, t):
    pairs = zip(scores.tolist(), held.tolist(), strict=True)
    return t**2 * sum(kl(softmax(goal, t), softmax(z, t)) for z, goal in pairs) / len(scores)


def told(judge, ours, theirs):
    """Binary cross-entropies of both numbers, which are 1 and 0 for the first kind."""
    found = []
    for kind, maps in enumerate((ours, theirs)):
        for x in maps.flatten(2).mean(2):
            hidden = positive(judge[0].weight @ x + judge[0].bias)
            for place, score in enumerate((judge[2].weight @ hidden + judge[2].bias).tolist()):
                truth = 1.0 if place == kind else 0.0
                says = 1 / (1 + math.exp(-score))
                found.append(-truth * math.log(says) - (1 - truth) * math.log(1 - says))
    return sum(found) / len(found)


@torch.no_grad()
def slow(loss, student, strides, held=None):
    """The three parts, and the answers that the divergences hold."""
    view, count, t = student.views["mixed"], len(LABELS), loss.temperature
    stages = [torch.cat(pair) for pair in zip(student.layers, view.layers, strict=True)]
    maps, scores = [], []
    for number, head in enumerate(loss.heads):
        x = stages[number]
        for stage, stride in zip(head.stages, strides[number:], strict=True):
            for place, part in enumerate(stage):
                x = block(x, part, 1 if place else stride)
        maps.append(averaged(x, stages[-1].shape[2:]))
        scores.append(read_out(maps[-1], head.classifier))
    maps.append(stages[-1])
    scores.append(torch.cat([student.logits, view.logits]))
    bar_maps, tilde_maps = [joined(x[:count], view.mix) for x in maps], [x[count:] for x in maps]
    bar, tilde = [joined(x[:count], view.mix) for x in scores], [x[count:] for x in scores]
    taught = []
    for of_all in (bar_maps, tilde_maps):
        fused = torch.einsum("oi,bihw->bohw", loss.self_teacher.conv.weight[:, :, 0, 0], torch.cat(of_all, 1))
        taught.append(read_out(fused, loss.self_teacher.classifier))
    found = (bar, tilde, taught)
    bar_held, tilde_held, taught_held = held or found

    share = view.mix.share.tolist()
    labels = sum(entropy(z[:count], LABELS, [1.0] * count) for z in scores[:-1])
    for z in [*tilde, *taught]:
        labels += entropy(z, LABELS, share) + entropy(z, LABELS[view.mix.partner], [1 - s for s in share])
    for i in range(len(scores) - 1):
        labels += divergence(bar[i], tilde_held[i], t) + divergence(tilde[i], bar_held[i], t)
    labels += divergence(bar[-1], taught_held[1], t) + divergence(tilde[-1], taught_held[0], t)
    apart = sum((x - y).square().sum().item() / x.numel() for x, y in zip(bar_maps, tilde_maps, strict=True))
    judged = sum(told(*each) for each in zip(loss.discriminators, bar_maps, tilde_maps, strict=True))
    return (labels, loss.features * apart, loss.adversarial * judged), found


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize(
    "options", [{}, {"features": 0.0, "adversarial": 0.0}, {"temperature": 1.0, "features": 0.3, "adversarial": 7.0}]
)
def test_value(shapes, options):
    shapes, strides = SHAPES[shapes]
    student = network(shapes)
    loss = sized(student, **options)
    parts, _ = slow(loss, student, strides)
    assert loss(student, student, LABELS).item() == pytest.approx(sum(parts), rel=1e-9)


@pytest.mark.parametrize("blocks", [1, 3])
def test_the_number_of_blocks(blocks):
    shapes, strides = SHAPES["others"]
    student = network(shapes)
    loss = sized(student, blocks=blocks)
    assert [[len(stage) for stage in head.stages] for head in loss.heads] == [[blocks] * 2, [blocks]]
    assert loss(student, student, LABELS).item() == pytest.approx(sum(slow(loss, student, strides)[0]), rel=1e-9)


def test_the_defaults_are_the_recipe():
    loss = MixSKD()
    assert (loss.temperature, loss.blocks, loss.features, loss.adversarial) == (3.0, 2, 1.0, 1.0)


def learners(loss, student):
    view = student.views["mixed"]
    return {
        "logits": [student.logits],
        "mixed logits": [view.logits],
        "layers": student.layers,
        "mixed layers": view.layers,
        "heads": list(loss.heads.parameters()),
        "self_teacher": list(loss.self_teacher.parameters()),
        "discriminators": list(loss.discriminators.parameters()),
    }


@pytest.mark.parametrize("who", learners(sized(network(SHAPES["one"][0])), network(SHAPES["one"][0])))
def test_targets_are_detached_and_discriminators_adversarial(who):
    shapes, strides = SHAPES["others"]
    student = network(shapes).map(lambda x: x.requires_grad_())
    loss = sized(student, features=0.5, adversarial=3.0)
    loss(student, student.detach(), LABELS).backward()
    _, held = slow(loss, student, strides)
    moved = learners(loss, student)[who]
    ways = [draw(*x.shape, seed=70 + i) for i, x in enumerate(moved)]
    values = []
    for step in (1e-6, -1e-6):
        for back in (1, -1):
            with torch.no_grad():
                for x, way in zip(moved, ways, strict=True):
                    x.add_(way, alpha=back * step)
            if back == 1:
                labels, apart, judged = slow(loss, student, strides, held)[0]
                values.append(labels + apart + (judged if who == "discriminators" else -judged))
    slope = sum((x.grad * way).sum().item() for x, way in zip(moved, ways, strict=True))
    assert abs(slope) > 1e-3
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_the_divergences_teach_the_self_teacher_nothing():
    student = network(SHAPES["halves"][0])
    grads = []
    for temperature in (1.0, 5.0):  # only the divergences have one
        loss = sized(student, temperature=temperature)
        loss(student, student, LABELS).backward()
        grads.append([parameter.grad for parameter in loss.self_teacher.parameters()])
    assert all(torch.allclose(*pair, rtol=1e-12) for pair in zip(*grads, strict=True))


def test_value_does_not_depend_on_order_for_equal_partners():
    student = network(SHAPES["others"][0])
    loss, order = sized(student), torch.tensor([2, 3, 1, 0])
    place = torch.empty_like(order).scatter_(0, order, torch.arange(4))
    turned = student.map(lambda x: x[order])
    mix = Mix(place[MIX.partner[order]], MIX.share[order])
    turned = replace(turned, views={"mixed": replace(turned.views["mixed"], mix=mix)})
    expected = loss(student, student, LABELS).item()
    assert loss(turned, turned, LABELS[order]).item() == pytest.approx(expected, rel=1e-12)


def test_the_teacher_is_not_read():
    student = network(SHAPES["halves"][0])
    loss = sized(student)
    assert loss(student, Outputs(draw(4, 5, seed=50)), LABELS) == loss(student, student, LABELS)


def test_the_parts_are_remembered():
    student = network(SHAPES["others"][0])
    old, new = sized(student), MixSKD()
    new.load_state_dict(old.state_dict(), strict=True)
    new.double()
    assert new(student, student, LABELS) == old(student, student, LABELS)
    with pytest.raises(InputError, match="MixSKD was set up for sizes"):
        new(network(SHAPES["halves"][0]), student, LABELS)


def of(student, layer):
    view = replace(student.views["mixed"], layers=(layer,))
    return replace(student, layers=(layer,), views={"mixed": view})


def test_invalid_inputs_raise_input_error():
    student = network(SHAPES["halves"][0])
    view = student.views["mixed"]
    fewer, more = Mix(MIX.partner[:3], MIX.share), Mix(MIX.partner, MIX.share.repeat(2))
    for wrong, words in (
        (replace(student, views={}), "reads the view 'mixed'"),
        (replace(student, views={"mixed": replace(view, mix=None)}), "with its mix"),
        (replace(student, views={"mixed": replace(view, mix=fewer)}), r"partners \(3,\)"),
        (replace(student, views={"mixed": replace(view, mix=more)}), r"lambdas \(8,\)"),
        (replace(student, views={"mixed": replace(view, logits=draw(8, 5))}), "one mixed image for each of 4"),
        (replace(student, layers=()), "none is tapped"),
        (replace(student, layers=view.layers[:1]), "plain and mixed alike"),
        (replace(student, layers=(draw(4, 2, 5, 5), view.layers[1])), "plain and mixed alike"),
        (of(student, draw(4, 3)), r"give \[\(4, 3\)\] and"),
        (of(student, draw(3, 2, 2, 2)), "a batch of 4"),
    ):
        with pytest.raises(InputError, match=words):
            MixSKD()(wrong, student, LABELS)
    with pytest.raises(InputError, match="blocks must be a whole number"):
        MixSKD(blocks=1.5)
