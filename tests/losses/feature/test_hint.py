"""Hint: its value, and regressors that size, copy, save and load themselves."""

import copy
import io
import pickle

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import Hint
from kdlab.outputs import Outputs
from tests.losses.slow import draw, tapped

NO_TARGET = torch.zeros(1)
REGRESSORS = pytest.mark.parametrize("regressor", ["conv", "1x1"])


def sides(pairs=1):
    return (
        tapped(*(draw(4, 3, 4, 4, seed=i).float() for i in range(pairs))),
        tapped(*(draw(4, 5, 4, 4, seed=9 + i).float() for i in range(pairs))),
    )


def sized(regressor="conv", pairs=1):
    torch.manual_seed(0)
    hint = Hint(regressor)
    hint(*sides(pairs), NO_TARGET)
    return hint


def slow(ours, theirs):
    pairs = list(zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    return sum((a - b) ** 2 for a, b in pairs) / len(pairs)


def test_value_without_regressor():
    students, teachers = (draw(3, 4, seed=1), draw(3, 2, 4, 4, seed=2)), (draw(3, 4, seed=3), draw(3, 2, 4, 4, seed=4))
    loss = Hint(None)(tapped(*students), tapped(*teachers), NO_TARGET)
    assert loss.item() == pytest.approx(sum(map(slow, students, teachers)), rel=1e-12)


def test_value_with_1x1():
    student, teacher, hint = draw(3, 2, 2, 3, seed=1), draw(3, 4, 2, 3, seed=2), Hint("1x1")
    loss = hint(tapped(student), tapped(teacher), NO_TARGET)
    weight, regressed = hint.regressors[0].weight.tolist(), torch.zeros_like(teacher)
    for b, o, h, w in torch.cartesian_prod(*map(torch.arange, teacher.shape)).tolist():
        regressed[b, o, h, w] = sum(weight[o][i][0][0] * student[b, i, h, w].item() for i in range(2))
    assert loss.item() == pytest.approx(slow(regressed, teacher), rel=1e-11)


def test_value_with_conv_on_vectors():
    student, teacher, hint = draw(4, 2, seed=1), draw(4, 3, seed=2), Hint()
    loss = hint(tapped(student), tapped(teacher), NO_TARGET)
    weight, bias = hint.regressors[0].conv.weight.tolist(), hint.regressors[0].conv.bias.tolist()
    regressed = torch.zeros_like(teacher)
    for o in range(3):
        column = [sum(weight[o][i][0][0] * row[i] for i in range(2)) + bias[o] for row in student.tolist()]
        mean = sum(column) / 4
        spread = (sum((value - mean) ** 2 for value in column) / 4 + 1e-5) ** 0.5
        regressed[:, o] = torch.tensor([max((value - mean) / spread, 0.0) for value in column], dtype=torch.float64)
    assert loss.item() == pytest.approx(slow(regressed, teacher), rel=1e-11)


@REGRESSORS
@pytest.mark.parametrize("pairs", [1, 3])
def test_after_one_forward_it_is_an_ordinary_module(regressor, pairs):
    hint = Hint(regressor)
    assert not list(hint.parameters())
    hint(*sides(pairs), NO_TARGET).backward()
    assert len(list(hint.parameters())) == pairs * (4 if regressor == "conv" else 1)
    assert all(parameter.grad is not None for parameter in hint.parameters())
    weight = "conv.weight" if regressor == "conv" else "weight"
    assert hint.state_dict().keys() >= {f"regressors.{i}.{weight}" for i in range(pairs)}


def test_state_dict_keys_are_stable():
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = ["regressors.0.conv.weight", "regressors.0.conv.bias", *(f"regressors.0.norm.{name}" for name in norm)]
    assert list(sized().state_dict()) == ["_extra_state", *expected]


@REGRESSORS
@pytest.mark.parametrize("pairs", [1, 3])
@pytest.mark.parametrize("train", [True, False])
def test_a_fresh_one_loads_a_sized_one(regressor, pairs, train):
    old = sized(regressor, pairs).train(train)
    fresh = torch.nn.ModuleDict({"held": Hint(regressor)}).train(train)
    fresh.load_state_dict({f"held.{key}": value for key, value in old.state_dict().items()}, strict=True)
    assert len(list(fresh.parameters())) == len(list(old.parameters()))
    state = torch.get_rng_state()
    assert torch.equal(fresh["held"](*sides(pairs), NO_TARGET), old(*sides(pairs), NO_TARGET))
    assert torch.equal(torch.get_rng_state(), state)


def test_loading_stays_strict():
    one, two = sized(pairs=1), sized(pairs=2)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*regressors\.1\.conv\.weight"):
        one.load_state_dict(two.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*regressors\.1\.conv\.weight"):
        two.load_state_dict(one.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        Hint("conv").load_state_dict(sized("1x1").state_dict())


@REGRESSORS
def test_unsized_states_can_be_exchanged(regressor):
    fresh = Hint(regressor)
    fresh.load_state_dict(Hint(regressor).state_dict())
    assert not list(fresh.parameters())


@REGRESSORS
@pytest.mark.parametrize("ready", [True, False])
def test_copies_and_pickles(regressor, ready):
    original = sized(regressor) if ready else Hint(regressor)
    buffer = io.BytesIO()
    torch.save(original, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(original),
        pickle.loads(pickle.dumps(original)),
        torch.load(buffer, weights_only=False),
    ]
    values = []
    for each in (original, *copies):
        torch.manual_seed(1)
        values.append(each(*sides(2 if not ready else 1), NO_TARGET))
    assert all(torch.equal(values[0], value) for value in values)
    first = [next(each.parameters()).data_ptr() for each in (original, *copies)]
    assert len(set(first)) == len(first)


def test_weights_are_drawn_once_and_follow_the_seed():
    state = torch.get_rng_state()
    Hint()
    assert torch.equal(torch.get_rng_state(), state)
    one, other = sized(pairs=2), sized(pairs=2)
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    state = torch.get_rng_state()
    one(*sides(2), NO_TARGET)
    assert torch.equal(torch.get_rng_state(), state)


def test_regressors_follow_in_dtype_and_mode():
    hint = Hint().eval()
    hint(*(side.map(torch.Tensor.double) for side in sides(2)), NO_TARGET)
    assert all(parameter.dtype is torch.float64 for parameter in hint.parameters())
    assert not any(module.training for module in hint.modules())


def test_other_resolution_works_and_other_geometry_raises():
    hint = Hint()
    hint(tapped(torch.rand(2, 3, 8, 8)), tapped(torch.rand(2, 4, 4, 4)), NO_TARGET)
    hint(tapped(torch.rand(5, 3, 12, 12)), tapped(torch.rand(5, 4, 6, 6)), NO_TARGET)
    with pytest.raises(InputError, match="Hint was set up for sizes"):
        hint(tapped(torch.rand(2, 3, 8, 8)), tapped(torch.rand(2, 4, 8, 8)), NO_TARGET)


def test_initial_values_of_1x1_are_small():
    hint = Hint("1x1")
    hint(tapped(torch.rand(4, 3, 2, 2)), tapped(torch.rand(4, 50, 2, 2)), NO_TARGET)
    assert 0.004 < hint.regressors[0].weight.abs().max() <= 0.005


def test_a_first_forward_in_inference_mode_leaves_it_trainable():
    hint = Hint()
    with torch.inference_mode():
        hint(*sides(), NO_TARGET)
    hint(*sides(), NO_TARGET).backward()
    assert all(parameter.grad.isfinite().all() for parameter in hint.parameters())


def test_failed_forward_does_not_materialize():
    hint = Hint()
    student, teacher = sides()
    bad = tapped(*student.layers, torch.rand(4, 2, 3, 3)), tapped(*teacher.layers, torch.rand(4, 2, 8, 8))
    with pytest.raises(InputError):
        hint(*bad, NO_TARGET)
    assert not list(hint.parameters())
    assert hint(student, teacher, NO_TARGET).isfinite()


@pytest.mark.parametrize(
    ("regressor", "student", "teacher", "words"),
    [
        (None, (4, 3, 2, 2), (4, 5, 2, 2), "regressor='conv'"),
        (None, (4, 1, 2, 2), (4, 3, 2, 2), "regressor='conv'"),
        (None, (4, 3, 1, 1), (4, 3, 3, 3), "no regressor joins them"),
        (None, (4, 3), (4, 5), "regressor='conv'"),
        ("1x1", (4, 3, 4, 4), (4, 3, 2, 2), "regressor='conv'"),
        ("conv", (4, 3, 2, 2), (4, 3, 5, 5), "no regressor joins them"),
        ("conv", (4, 3), (4, 3, 2, 2), "maps"),
        ("conv", (4, 3, 5), (4, 3, 5), "maps"),
        ("conv", (4, 3), (2, 3), "batch"),
    ],
)
def test_shapes_that_do_not_fit_are_named(regressor, student, teacher, words):
    ours, theirs = tapped(torch.ones(student), names=("low",)), tapped(torch.ones(teacher), names=("high",))
    with pytest.raises(InputError) as error:
        Hint(regressor)(ours, theirs, NO_TARGET)
    assert all(word in str(error.value) for word in ("'low'", "'high'", str(student), str(teacher), words))


def test_numbers_of_layers():
    one, two = sides(1), sides(2)
    with pytest.raises(InputError, match=r"1 student layers .* 2 teacher layers"):
        Hint()(one[0], two[1], NO_TARGET)
    with pytest.raises(InputError, match="none is tapped"):
        Hint()(Outputs(torch.ones(4, 2)), Outputs(torch.ones(4, 2)), NO_TARGET)
    with pytest.raises(InputError, match=r"Hint was set up for sizes .* but now meets"):
        sized()(*two, NO_TARGET)


@pytest.mark.parametrize("regressor", ["linear", "", 1, True])
def test_bad_regressor(regressor):
    with pytest.raises(InputError, match="regressor"):
        Hint(regressor)
