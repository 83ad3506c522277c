"""SoftTargets against plain loops."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import SoftTargets
from kdlab.losses.context import Context
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import TaskFormat
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)


def slow(student, teacher, temperature):
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    terms = [kl(softmax(t, temperature), softmax(s, temperature)) for s, t in rows]
    return temperature**2 * sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value(temperature):
    student, teacher = draw(6, 5, seed=1, scale=3), draw(6, 5, seed=2, scale=3)
    loss = SoftTargets(temperature)(Outputs(student), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, temperature), rel=1e-12)


def test_the_gradient_keeps_its_size_over_temperatures():
    norms = []
    for temperature in (1.0, 8.0, 20.0):
        student = draw(8, 100, seed=1).requires_grad_()
        SoftTargets(temperature)(Outputs(student), Outputs(draw(8, 100, seed=2)), NO_TARGET).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) < 3 * min(norms)


def test_tokens_are_averaged_over_batch_and_length():
    student, teacher = draw(3, 4, 5, seed=1), draw(3, 4, 5, seed=2)
    labels = torch.zeros(3, 4)
    loss = SoftTargets(2.0)(Outputs(student), Outputs(teacher), labels)
    assert loss.item() == pytest.approx(slow(student.flatten(0, 1), teacher.flatten(0, 1), 2.0), rel=1e-12)


def test_the_labels_show_the_class_axis():
    student, teacher = draw(3, 5, 4, seed=1), draw(3, 5, 4, seed=2)
    loss = SoftTargets(2.0)(Outputs(student), Outputs(teacher), torch.zeros(3, 4))
    rows = [x.transpose(1, 2).flatten(0, 1) for x in (student, teacher)]
    assert loss.item() == pytest.approx(slow(*rows, 2.0), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_only_tokens_whose_mask_is_1_count(dtype):
    student, teacher = draw(2, 3, 5, seed=1), draw(2, 3, 5, seed=2)
    student[0, 0] = teacher[0, 0] = float("nan")  # padding may hold anything
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype)
    kept = [(0, 1), (0, 2), (1, 0)]
    student.requires_grad_()
    loss = SoftTargets(2.0)(Outputs(student, mask=mask), Outputs(teacher, mask=mask), NO_TARGET)
    rows = [torch.stack([logits[place] for place in kept]) for logits in (student.detach(), teacher)]
    assert loss.item() == pytest.approx(slow(*rows, 2.0), rel=1e-12)
    loss.backward()
    assert student.grad.isfinite().all()
    assert not student.grad[0, 0].any()


def test_token_mask_is_ignored_for_sequence_logits():
    student, teacher = draw(2, 5, seed=1), draw(2, 5, seed=2)
    loss = SoftTargets()(Outputs(student, mask=torch.zeros(2, 7)), Outputs(teacher), NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, 4.0), rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "mask", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 5), None, ["3 classes", "5"]),
        (torch.zeros(2, 3), torch.zeros(1, 3), None, ["(2, 3)", "(1, 3)"]),
        (torch.zeros(2, 3), torch.zeros(2, 1, 3), None, ["(2, 1, 3)"]),
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), None, ["class axis", "neither"]),
        (torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), torch.ones(2, 3), ["class axis", "both"]),
        (torch.zeros(2, 1), torch.zeros(2, 1), None, ["One class"]),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 5), ["class axis", "neither"]),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.zeros(2, 3), ["no position"]),
        (torch.zeros(0, 3), torch.zeros(0, 3), None, ["no position"]),
    ],
)
def test_incompatible_inputs_raise_input_error(student, teacher, mask, words):
    with pytest.raises(InputError) as error:
        SoftTargets()(Outputs(student, mask=mask), Outputs(teacher), NO_TARGET)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan"), float("inf"), "4", True])
def test_bad_temperature(temperature):
    with pytest.raises(InputError, match="temperature"):
        SoftTargets(temperature)


@pytest.mark.parametrize("options", [{"floor": 0.1}, {"teacher_gradient": True}, {}])
def test_options_are_for_class_probabilities_of_a_whole_batch(options):
    def refused(call):
        try:
            call()
        except InputError:
            return True
        return False

    def setup(kind):
        net = torch.nn.Linear(3, 3)
        SoftTargets(**options).setup(Context(net, (net,), form=TaskFormat(kind)))

    logits = Outputs(torch.zeros(2, 3))
    assert refused(lambda: SoftTargets(**options).per_sample(logits, logits, NO_TARGET)) == bool(options)
    assert refused(lambda: setup("regression")) == bool(options)
    setup("classes")
