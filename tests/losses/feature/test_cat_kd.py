"""CAT-KD against plain loops."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.losses import CATKD
from kdlab.losses.context import Context
from kdlab.models import resnet8, without_bias
from kdlab.outputs import observe
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)


def heads(student: int = 3, teacher: int = 4, classes: int = 5) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    return nn.Linear(student, classes).double(), nn.Linear(teacher, classes).double()


def ready(*networks: nn.Module, **given: object) -> CATKD:
    loss = CATKD(**given)
    loss.setup(Context(networks[0], networks[1:]))
    return loss


def slow_maps(maps, weight, size):
    """One pooled map a class, position by position; map sides are multiples of ``size``."""
    step, out = maps.shape[2] // size, {}
    for b in range(len(maps)):
        for k in range(len(weight)):
            for row in range(size):
                for column in range(size):
                    values = [
                        sum(
                            weight[k, c].item() * maps[b, c, row * step + i, column * step + j].item() for c in range(3)
                        )
                        for i in range(step)
                        for j in range(step)
                    ]
                    out[b, k, row, column] = sum(values) / len(values)
    return out


@pytest.mark.parametrize(("resolution", "normalize"), [(1, False), (2, False), (2, True), (4, True)])
def test_value(resolution, normalize):
    ours, theirs, networks = draw(2, 3, 4, 4, seed=1), draw(2, 3, 8, 8, seed=2), heads(3, 3)
    loss = ready(*networks, resolution=resolution, normalize=normalize)
    sides = [slow_maps(maps, net.weight, resolution) for maps, net in zip((ours, theirs), networks, strict=True)]
    if normalize:
        for side in sides:
            norms = {}
            for (b, k, *_), value in side.items():
                norms[b, k] = norms.get((b, k), 0.0) + value**2
            side.update({key: value / norms[key[:2]] ** 0.5 for key, value in side.items()})
    expected = sum((sides[0][key] - sides[1][key]) ** 2 for key in sides[0]) / len(sides[0])
    assert loss(tapped(ours), tapped(theirs), NO_TARGET).item() == pytest.approx(expected, rel=1e-11)


def test_student_classifier_is_trained_and_teachers_copied():
    ours, theirs, (student, teacher) = draw(2, 3, 4, 4, seed=1), draw(2, 4, 4, 4, seed=2), heads()
    loss = ready(student, teacher)
    value = loss(tapped(ours), tapped(theirs), NO_TARGET)
    value.backward()
    assert student.weight.grad.any()
    assert student.bias.grad is None
    assert teacher.weight.grad is None
    assert not list(loss.parameters())
    assert not loss.state_dict()
    with torch.no_grad():
        teacher.weight.zero_()
    assert torch.equal(loss(tapped(ours), tapped(theirs), NO_TARGET), value)
    with torch.no_grad():
        student.weight.zero_()
    assert not torch.equal(loss(tapped(ours), tapped(theirs), NO_TARGET), value)


def test_equal_networks_give_0_and_resolution_1_compares_logits():
    torch.manual_seed(0)
    one, other = (without_bias(resnet8(num_classes=5)).eval() for _ in range(2))
    images = torch.rand(2, 3, 16, 16)
    seen = [observe(net, images, ["layer3"]) for net in (one, other)]
    assert ready(one, one)(seen[0], seen[0], NO_TARGET).item() == 0
    value = ready(one, other, resolution=1)(*seen, NO_TARGET)
    assert torch.allclose(value, (seen[0].logits - seen[1].logits).square().mean(), rtol=1e-4)


def test_dead_maps_have_a_finite_gradient_under_normalization():
    ours = torch.zeros(2, 3, 4, 4, requires_grad=True)
    networks = [net.float() for net in heads()]
    ready(*networks, normalize=True)(tapped(ours), tapped(torch.rand(2, 4, 4, 4)), NO_TARGET).backward()
    assert ours.grad.isfinite().all()


def test_invalid_inputs_raise_input_error():
    ours, theirs = tapped(draw(2, 3, 4, 4), names=("low",)), tapped(draw(2, 4, 4, 4), names=("high",))
    with pytest.raises(InputError, match="call setup"):
        CATKD()(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="student's classifier reads 2 channels, but layer 'low' has 3"):
        ready(*heads(2, 4))(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="teacher's classifier reads 3 channels, but layer 'high' has 4"):
        ready(*heads(3, 3))(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="student has 5 classes and the teacher 6"):
        ready(heads()[0], heads(classes=6)[1])(ours, theirs, NO_TARGET)
    with pytest.raises(InputError, match="student has 6 classes and the teacher 5"):
        ready(heads(classes=6)[0], heads()[1])(ours, theirs, NO_TARGET)
    for size in ((4, 4), (4, 8), (8, 4)):
        low = tapped(draw(2, 3, *size))
        with pytest.raises(InputError, match=r"resolution must not be above that of the maps, \(., .\), but is 5"):
            ready(*heads(), resolution=5)(low, theirs, NO_TARGET)
    with pytest.raises(InputError, match="one pair of maps, but 2 are tapped"):
        ready(*heads())(tapped(*ours.layers * 2), tapped(*theirs.layers * 2), NO_TARGET)
    with pytest.raises(InputError, match="whole number"):
        CATKD(resolution=1.5)
