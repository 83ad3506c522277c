"""FRSKD and its pyramid against a slow reference."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import FRSKD
from kdlab.losses.feature.bifpn import pooled
from kdlab.outputs import Outputs
from tests.losses.slow import draw, kl, softmax

LABELS = torch.tensor([3, 0, 1])
SHAPES = {
    "halves": [(2, 6, 6), (3, 3, 3), (2, 2, 2)],
    "others": [(2, 4, 5), (1, 4, 4), (3, 3, 1)],
    "two": [(2, 4, 4), (3, 2, 2)],
}


def network(shapes, seed=1):
    layers = tuple(draw(3, *shape, seed=seed + i) for i, shape in enumerate(shapes))
    return Outputs(draw(3, 5, seed=seed + 9, scale=2), layers)


def sized(student, **options):
    torch.manual_seed(0)
    loss = FRSKD(**options)
    loss(student, student, LABELS)
    with torch.no_grad():  # not all alike, and one that does not count
        for number, (name, value) in enumerate(loss.named_parameters()):
            if value.dim() == 1 and "classifier" not in name:
                value.copy_((draw(len(value), seed=20 + number) + 0.5).float())
        loss.self_teacher.weights_up[0][-1] = 1.0
        loss.self_teacher.weights_up[0][0] = -1.0
    return loss


def across(x, convolution):
    return torch.einsum("oi,bihw->bohw", convolution.weight[:, :, 0, 0], x)


def normal(x, norm):
    spread = (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return weight * (x - x.mean((0, 2, 3), keepdim=True)) / spread + bias


def positive(x):
    return x * (x > 0)


def pointwise(x, part):
    return positive(normal(across(x, part[0]), part[1]))


def separable(x, part, depth):
    (height, width), step = x.shape[2:], 4
    for number in range(depth):
        x = positive(x) if number else x
        around = torch.nn.functional.pad(x, (1, 1, 1, 1))
        weight = part[step * number].weight
        x = sum(
            weight[:, 0, i, j][:, None, None] * around[:, :, i : i + height, j : j + width]
            for i in range(3)
            for j in range(3)
        )
        x = normal(across(x, part[step * number + 1]), part[step * number + 2])
    return x


def enlarged(x, size):
    rows = [i * x.shape[2] // size[0] for i in range(size[0])]
    columns = [j * x.shape[3] // size[1] for j in range(size[1])]
    return x[:, :, rows][:, :, :, columns]


def windows(before, after, halves):
    """From where to where each window reaches."""
    if halves:
        starts = [2 * i - before % 2 for i in range(after)]
        return [(max(start, 0), min(start + 3, before)) for start in starts]
    return [(i * before // after, -(-(i + 1) * before // after)) for i in range(after)]


def shrunk(x, size):
    (height, width) = x.shape[2:]
    halves = (math.ceil(height / 2), math.ceil(width / 2)) == tuple(size)
    rows = [
        torch.stack([x[:, :, a:b, c:d].amax((2, 3)) for c, d in windows(width, size[1], halves)], -1)
        for a, b in windows(height, size[0], halves)
    ]
    return torch.stack(rows, 2)


def joined(weights, parts):
    weights = [max(weight, 0.0) for weight in weights.tolist()]
    return sum(weight / (sum(weights) + 1e-6) * part for weight, part in zip(weights, parts, strict=True))


def slow_pyramid(net, layers, depth):
    stages = [positive(x) for x in layers]
    size, last = [x.shape[2:] for x in stages], len(stages) - 1
    first = [pointwise(x, part) for x, part in zip(stages, net.enter, strict=True)]
    down = {last: first[last]}
    for i in range(last - 1, -1, -1):
        deeper = pointwise(enlarged(positive(down[i + 1]), size[i]), net.from_deeper[i])
        down[i] = separable(joined(net.weights_down[i], [first[i], deeper]), net.refine_down[i], depth)
    out = {0: down[0]}
    for i in range(1, last + 1):
        parts = [pointwise(stages[i], net.skip[i - 1])]
        parts += [positive(down[i])] if i < last else []
        parts += [pointwise(shrunk(positive(out[i - 1]), size[i]), net.from_shallower[i - 1])]
        out[i] = separable(joined(net.weights_up[i - 1], parts), net.refine_up[i - 1], depth)
    refined = [positive(out[i]) for i in range(last + 1)]
    means = refined[-1].flatten(2).mean(2)
    return refined, torch.einsum("kc,bc->bk", net.classifier.weight, means) + net.classifier.bias


def activity(sample):
    """Sums of squares of the channels, by position, and of length 1 in all."""
    squares = [sum(v * v for v in values) for values in sample.flatten(1).T.tolist()]
    return [square / math.sqrt(sum(s * s for s in squares)) for square in squares]


@torch.no_grad()
def slow(loss, student, held=None):
    """The value, and what it holds."""
    found = slow_pyramid(loss.self_teacher, student.layers, loss.depth)
    refined, goal = held or found
    scores = found[1]
    ours, t = [softmax(z, loss.temperature) for z in student.logits.tolist()], loss.temperature
    of_labels = -sum(math.log(softmax(z)[y]) for z, y in zip(scores.tolist(), LABELS.tolist(), strict=True))
    goals = (goal if loss.detach_target else scores).tolist()
    apart = t**2 * sum(kl(softmax(z, t), q) for z, q in zip(goals, ours, strict=True))
    active = 0.0
    for x, y in zip(student.layers, refined, strict=True):
        for a, b in zip(positive(x), y, strict=True):
            pairs = zip(activity(a), activity(b), strict=True)
            active += sum((p - q) ** 2 for p, q in pairs) / x[0, 0].numel()
    return (of_labels + loss.alpha * apart + loss.beta * active) / 3, found


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("options", [{}, {"width": 1, "depth": 1}, {"width": 3, "depth": 3, "temperature": 1.5}])
def test_value(shapes, options):
    student = network(SHAPES[shapes])
    loss = sized(student, **options)
    assert loss(student, student, LABELS).item() == pytest.approx(slow(loss, student)[0], rel=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_a_part_alone(alpha, beta):
    student = network(SHAPES["halves"])
    loss = sized(student, alpha=alpha, beta=beta)
    assert loss(student, student, LABELS).item() == pytest.approx(slow(loss, student)[0], rel=1e-9)


def test_the_defaults_are_the_recipe():
    loss = FRSKD()
    assert (loss.alpha, loss.beta, loss.temperature, loss.width, loss.depth) == (2.0, 100.0, 4.0, 2, 2)
    assert loss.detach_target


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("of", ["logits", "layers", "self_teacher"])
def test_self_teacher_targets_are_detached(of, detach):
    student = network(SHAPES["halves"]).map(lambda x: x.requires_grad_())
    loss = sized(student, detach_target=detach)
    loss(student, student.detach(), LABELS).backward()
    _, held = slow(loss, student)
    moved = {"logits": [student.logits], "layers": student.layers, "self_teacher": list(loss.parameters())}[of]
    ways = [draw(*x.shape, seed=30 + i) for i, x in enumerate(moved)]
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            for x, way in zip(moved, ways, strict=True):
                x.add_(way, alpha=step)
        values.append(slow(loss, student, held)[0])
        with torch.no_grad():
            for x, way in zip(moved, ways, strict=True):
                x.add_(way, alpha=-step)
    slope = sum((x.grad * way).sum().item() for x, way in zip(moved, ways, strict=True))
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_detach_target_keeps_gradient_from_self_teacher():
    student = network(SHAPES["two"])
    grads = []
    for alpha, detach in ((0.0, True), (5.0, True), (5.0, False)):
        loss = sized(student, alpha=alpha, beta=0.0, detach_target=detach)
        loss(student, student, LABELS).backward()
        grads.append(loss.self_teacher.classifier.weight.grad)
    assert torch.allclose(grads[0], grads[1], rtol=1e-12)
    assert not torch.allclose(grads[0], grads[2], rtol=1e-3)


def test_the_teacher_is_not_read():
    student = network(SHAPES["two"])
    loss = sized(student)
    other = network([(7, 1, 1)], seed=50)
    assert loss(student, other, LABELS) == loss(student, student, LABELS)


@pytest.mark.parametrize(("before", "after"), [((4, 6), (2, 3)), ((5, 7), (3, 4)), ((4, 4), (3, 3)), ((3, 3), (3, 3))])
def test_pooling(before, after):
    x = positive(draw(2, 3, *before, seed=4))
    assert torch.equal(pooled(x, after), shrunk(x, after))


def test_the_parts_are_remembered():
    student = network(SHAPES["halves"])
    old, new = sized(student), FRSKD()
    new.load_state_dict(old.state_dict(), strict=True)
    new.double()
    assert new(student, student, LABELS) == old(student, student, LABELS)
    assert new.self_teacher.classifier.weight.shape == (5, 4)
    with pytest.raises(InputError, match="FRSKD was set up for sizes"):
        new(network(SHAPES["two"]), student, LABELS)


def test_evaluation_uses_running_statistics():
    student = network(SHAPES["two"])
    loss = sized(student).eval()
    before = {name: value.clone() for name, value in loss.self_teacher.named_buffers()}
    alone = student.map(lambda x: x[:1])
    assert loss(alone, alone, LABELS[:1]).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in loss.self_teacher.named_buffers())


def test_invalid_inputs_raise_input_error():
    student = network(SHAPES["two"])
    for wrong, words in (
        (Outputs(student.logits, student.layers[:1]), "1 layers are tapped"),
        (Outputs(student.logits), "0 layers are tapped"),
        (Outputs(student.logits, (student.layers[0], draw(3, 4))), r"not \(3, 2, 4, 4\), \(3, 4\)"),
        (Outputs(student.logits, tuple(x[:2] for x in student.layers)), "a batch of 3"),
    ):
        with pytest.raises(InputError, match=words):
            FRSKD()(wrong, student, LABELS)
    for name in ("width", "depth"):
        with pytest.raises(InputError, match=f"{name} must be a whole number"):
            FRSKD(**{name: 1.5})
