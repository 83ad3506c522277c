"""SimKD: its value, and a whole run of it from the fit to the exported student."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from kdlab import Distiller, Knowledge
from kdlab.errors import InputError
from kdlab.export.student import export
from kdlab.losses import SimKD
from kdlab.losses.context import Context
from kdlab.models import projected, without_bias
from kdlab.outputs import observe
from tests.losses.slow import draw, tapped
from tests.modules.tiny import pairs, sgd, trainer

NO_TARGET = torch.zeros(1)


def network(channels: int, classes: int = 10, seed: int = 0) -> nn.Module:
    """A network for vectors of 64 numbers, seen as maps of 8 x 8."""
    torch.manual_seed(seed)
    body: list[tuple[str, nn.Module]] = [
        ("image", nn.Unflatten(1, (1, 8, 8))),
        ("conv", nn.Conv2d(1, channels, 3, 2, 1)),
        ("map", nn.ReLU()),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flat", nn.Flatten()),
        ("fc", nn.Linear(channels, classes)),
    ]
    return nn.Sequential(OrderedDict(body))


def student(**given: object) -> nn.Module:
    return projected(network(6), "map", **({"width": 8} | given))


def run(**given: object) -> Distiller:
    options = {
        "student": student(),
        "teacher": network(8, seed=1),
        "knowledge": {"simkd": Knowledge(SimKD(), student_layers=["projector"], teacher_layers=["map"])},
        "task_weight": 0.0,
        "optimizer": sgd,
    }
    return Distiller(**(options | given))


def slow(student, teacher):
    total = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return total / teacher.numel()


def test_value():
    ours, theirs = draw(2, 3, 2, 2, seed=1), draw(2, 3, 2, 2, seed=2)
    assert SimKD()(tapped(ours), tapped(theirs), NO_TARGET).item() == pytest.approx(slow(ours, theirs), rel=1e-12)


def test_a_larger_teacher_map_is_averaged():
    small, large = draw(2, 3, 1, 2, seed=1), draw(2, 3, 2, 4, seed=2)
    pooled = torch.stack([large[..., :2].mean((2, 3)), large[..., 2:].mean((2, 3))], 2)[:, :, None]
    value = SimKD()(tapped(small), tapped(large), NO_TARGET)
    assert value.item() == pytest.approx(slow(small, pooled), rel=1e-12)
    with pytest.raises(InputError, match=r"before the projector, .*projected\(..., size=\(1, 2\)\)"):
        SimKD()(tapped(large), tapped(small), NO_TARGET)


@pytest.mark.parametrize(("size", "sides"), [(2, (2, 2)), ((2, 4), (2, 4)), (9, (4, 4)), (None, (4, 4))])
def test_a_larger_student_map_is_averaged_before(size, sides):
    """The authors' projector(pool(map)), written by hand."""
    ours = projected(network(6), "map", width=8, size=size).double()
    x, theirs = draw(5, 64, seed=1), draw(5, 8, *sides, seed=2)
    seen = observe(ours, x, ["trunk.map", "projector"])
    value = SimKD()(seen.only(["projector"]), tapped(theirs), NO_TARGET)

    height, width = 4 // sides[0], 4 // sides[1]
    z = seen.layers[0].unflatten(2, (sides[0], height)).unflatten(4, (sides[1], width)).mean((3, 5))
    for place in (0, 3, 6):
        conv, norm = ours.projector[place], ours.projector[place + 1]
        z = torch.nn.functional.conv2d(z, conv.weight, padding=conv.weight.shape[2] // 2)
        z = z - z.mean((0, 2, 3), keepdim=True)
        z = z / (z.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        z = (z * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    assert value.item() == pytest.approx(slow(z, theirs), rel=1e-9)
    assert torch.allclose(seen.logits, z.mean((2, 3)) @ ours.classifier.weight.T + ours.classifier.bias)


def test_set_up_gives_the_student_the_teachers_classifier_frozen():
    ours, theirs = student(), network(8, seed=1)
    SimKD().setup(Context(ours, (theirs,)))
    assert torch.equal(ours.classifier.weight, theirs.fc.weight)
    assert torch.equal(ours.classifier.bias, theirs.fc.bias)
    assert ours.classifier.weight.data_ptr() != theirs.fc.weight.data_ptr()
    assert not any(parameter.requires_grad for parameter in ours.classifier.parameters())
    assert all(parameter.requires_grad for parameter in ours.projector.parameters())


def test_missing_teacher_bias_is_copied_as_zero():
    ours, theirs = student(), without_bias(network(8, seed=1))
    SimKD().setup(Context(ours, (theirs,)))
    assert torch.equal(ours.classifier.weight, theirs.fc.weight)
    assert not ours.classifier.bias.any()
    with pytest.raises(InputError, match=r"8 to 10 with bias, into .* is 8 to 10 without bias"):
        SimKD().setup(Context(without_bias(student()), (network(8),)))


def test_a_run_its_checkpoint_and_its_export(tmp_path: Path):
    module = run()
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit = trainer(2, limit_val_batches=1.0)
    fit.fit(module, pairs())
    assert module.dry_run.idle == []
    after, teacher = module.student.state_dict(), module.teacher.networks[0]
    assert torch.equal(after["classifier.weight"], teacher.fc.weight)
    assert all(not torch.equal(after[name], before[name]) for name in after if name.endswith("conv.weight"))
    assert not torch.equal(after["projector.6.weight"], before["projector.6.weight"])
    assert {name for name, _ in module.named_parameters() if "classifier" in name}.isdisjoint(module.trainable())
    assert {"val/student_accuracy", "val/agreement"} & fit.callback_metrics.keys()

    fit.save_checkpoint(tmp_path / "last.ckpt")
    weights, _ = export(tmp_path / "last.ckpt", tmp_path / "out")
    deployed = projected(network(6, seed=5), "map", width=8, weights=str(weights))
    x = torch.rand(4, 64)
    assert torch.equal(deployed.eval()(x), module.student.eval()(x))

    again = run()  # and the run goes on
    trainer(3).fit(again, pairs(), ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(again.student.classifier.weight, teacher.fc.weight)


@pytest.mark.full
def test_a_good_projection_gives_the_teachers_answers():
    torch.manual_seed(0)
    module = run(student=projected(network(8, seed=1), "map", width=8, factor=1), optimizer=torch.optim.Adam)
    trainer(60).fit(module, pairs(80, shuffle=True))
    x = torch.cat([inputs for inputs, _ in pairs(80)])
    ours, theirs = module.student.eval()(x), module.teacher.networks[0](x)
    assert (ours.argmax(1) == theirs.argmax(1)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("given", "teacher", "words"),
    [
        (
            {"width": 9},
            network(8),
            r"8 to 10 with bias, into .* is 9 to 10 .*projected\(..., width=8, num_classes=10",
        ),
        ({"num_classes": 7}, network(8), "whose classifier is 8 to 7 with bias"),
    ],
)
def test_other_classifier_shapes_raise_input_error(given, teacher, words):
    with pytest.raises(InputError, match=words):
        SimKD().setup(Context(student(**given), (teacher,)))


def test_run_with_another_width_raises_before_the_first_step():
    with pytest.raises(InputError, match=r"Knowledge 'simkd' \(SimKD\): SimKD copies .* width=8"):
        trainer().fit(run(student=student(width=9)), pairs())


def test_other_channels_raise_input_error():
    ours, theirs = tapped(draw(2, 5, 2, 2), names=("low",)), tapped(draw(2, 3, 2, 2), names=("high",))
    with pytest.raises(InputError, match=r"'low' gives \(2, 5, 2, 2\).*tap the layer 'projector' .*width=3"):
        SimKD()(ours, theirs, NO_TARGET)
