"""Which kind of targets a task of the user's own has, and what that means."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdlab.errors import InputError
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import CLASS_SCORES, TaskFormat, bernoulli_kl, samples, task_format


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], "soft"),
        ([[0.5, 0.5, 0.9], [0.2, 0.1, 0.3]], "other"),  # fractions, and no distribution
        ([[0.5, 0.5, 0.0], [0.2, 0.1, 0.3]], "other"),  # one row is one
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "other"),  # several labels may look like this
        ([[1.5, -0.5, 0.0], [0.5, 0.5, 0.0]], "other"),
    ],
)
def test_soft_labels_are_rows_of_probabilities(targets, kind):
    found = task_format(nn.Identity(), torch.zeros(2, 3), torch.tensor(targets))
    assert (found.kind, found.axis) == (kind, 1)


@pytest.mark.parametrize(("shape", "kind"), [((4,), "binary"), ((4, 1), "binary"), ((4, 3), "multilabel")])
def test_one_logit_is_binary_and_several_are_labels(shape, kind):
    assert task_format(nn.BCEWithLogitsLoss(), torch.zeros(shape), torch.ones(shape)).kind == kind


@pytest.mark.parametrize(("mask", "counted"), [(None, 5), ([[1, 1, 0], [1, 1, 1]], 4)])
def test_positions_that_count_are_labeled_and_attended(mask, counted):
    target = torch.tensor([[1, 2, 0], [3, -100, 1]])
    mask = None if mask is None else torch.tensor(mask)
    assert int(TaskFormat("classes", 1, -100).counted(6, target, mask).sum()) == counted


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3.0, 0.5, 2.0])])
@pytest.mark.parametrize("ignored", [False, True])
def test_weight_is_what_torchs_mean_divides_by(weight, ignored):
    target = torch.tensor([1, 2, 0, 3, -100 if ignored else 1])
    logits = torch.randn(5, 4).double()
    weight = None if weight is None else weight.double()
    total = F.cross_entropy(logits, target, weight, reduction="sum")
    mean = F.cross_entropy(logits, target, weight)
    count = TaskFormat("classes", 1, -100).weight(nn.CrossEntropyLoss(weight), target)
    assert float(total / count) == pytest.approx(float(mean), rel=1e-12)


def test_weight_without_a_label_to_ignore_is_every_row():
    assert int(TaskFormat("classes", 1, None).weight(nn.CrossEntropyLoss(), torch.tensor([1, -100, 2]))) == 3


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CLASSES, SOFT, BINARY = TaskFormat("classes", 1, -100), TaskFormat("soft", 1), TaskFormat("binary", 1)
LABELS, VALUES, OTHER = TaskFormat("multilabel", 1), TaskFormat("regression", 1), TaskFormat("other", 1)
SHAPES = [(5, 3), (5, 3, 2), (5, 3, 2, 4)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [CLASSES, TaskFormat("soft", -1), LABELS, VALUES])
def test_an_ensembles_logits_are_of_the_mean(form, shape):
    logits = [draw(*shape, seed=seed) for seed in range(3)]
    link, inverse = {
        "classes": (lambda z: z.softmax(form.axis), torch.log),
        "soft": (lambda z: z.softmax(form.axis), torch.log),
        "multilabel": (torch.sigmoid, lambda p: (p / (1 - p)).log()),
        "regression": (lambda z: z, lambda z: z),
    }[form.kind]
    torch.testing.assert_close(form.mean(logits), inverse((link(logits[0]) + link(logits[1]) + link(logits[2])) / 3))
    assert form.mean([z.half() for z in logits]).dtype == torch.float32


def test_an_ensemble_of_unknown_outputs_is_refused():
    with pytest.raises(InputError, match="let the task loss declare target_kind"):
        OTHER.mean([draw(5, 3)])


@pytest.mark.parametrize("temperature", [None, 2.5])
def test_divergence_against_its_formula(temperature):
    student, teacher, t = draw(5, 3), draw(5, 3, seed=1), temperature or 1.0
    options = {} if temperature is None else {"temperature": t}
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    a, b = (teacher / t).sigmoid(), (student / t).sigmoid()
    label = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    torch.testing.assert_close(CLASSES.divergence(student, teacher, **options), (p * (p / q).log()).sum(1))
    torch.testing.assert_close(LABELS.divergence(student, teacher, **options), label.sum(1))
    torch.testing.assert_close(BINARY.divergence(student[:, :1], teacher[:, :1], **options), label[:, 0])
    torch.testing.assert_close(VALUES.divergence(student, teacher, **options), ((student - teacher) ** 2).mean(1))


def test_bernoulli_divergence_of_sure_networks_is_finite():
    far = torch.tensor([200.0, -200.0, 200.0], dtype=torch.float64)
    assert bernoulli_kl(far, -far).tolist() == pytest.approx([200.0, 200.0, 200.0])
    assert bernoulli_kl(far, far).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("form", "shape", "count"),
    [
        (OTHER, (5, 3, 2), 5),
        (SOFT, (5, 3), 5),
        (SOFT, (5, 3, 2), 10),
        (TaskFormat("soft", -1), (5, 3, 2), 15),
        (LABELS, (5, 3), 15),
        (VALUES, (5, 3, 2), 30),
        (BINARY, (5, 1), 5),
    ],
)
def test_weight_of_targets_that_are_no_indices(form, shape, count):
    weight = form.weight(nn.CrossEntropyLoss(torch.rand(3)), torch.rand(shape))
    assert (weight.item(), weight.is_floating_point()) == (count, False)


def test_weights_of_classes_count_for_class_indices_alone():
    task = nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))
    assert int(TaskFormat("regression", 1).weight(task, torch.tensor([1, 0]))) == 2
    assert int(CLASSES.weight(nn.MultiMarginLoss(weight=torch.tensor([1.0, 9.0])), torch.tensor([1, 0]))) == 2
    assert int(CLASSES.weight(nn.MultiMarginLoss(), torch.tensor([1, -100]))) == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [1, -1])
def test_rows_are_positions_in_order(shape, axis):
    logits, form = draw(*shape), TaskFormat("classes", axis)
    expected = logits if len(shape) == 2 else logits.movedim(axis, -1).reshape(-1, shape[axis])
    assert torch.equal(form.rows(logits), expected)
    soft = TaskFormat("soft", axis)
    assert torch.equal(soft.targets(logits), expected)
    assert torch.equal(form.targets(torch.arange(6).view(2, 3)), torch.arange(6))


def test_rows_of_one_logit_a_position():
    assert torch.equal(BINARY.rows(torch.arange(6.0).view(1, 2, 3)), torch.arange(6.0)[:, None])
    assert torch.equal(VALUES.rows(torch.arange(6.0)), torch.arange(6.0)[:, None])
    assert VALUES.rows(draw(2, 3, 4)).shape == (8, 3)


@pytest.mark.parametrize(
    ("form", "target", "mask", "counted"),
    [
        (CLASSES, [1, 2], None, [True, True]),
        (CLASSES, [1, -100], None, [True, False]),
        (TaskFormat("classes", 1, 1), [1, -100], None, [False, True]),
        (TaskFormat("classes", 1, None), [1, -100], None, None),
        (SOFT._replace(ignore_index=1), [1, 0], None, None),
        (CLASSES, [1, 2, 0, 1], None, None),  # not one label a row
        (CLASSES, [1, -100], [0, 1], [False, False]),
        (SOFT, [1, 2], [0, 2], [False, True]),
        (SOFT, [1, 2], [0, 1, 1], None),  # not one a row
        (SOFT, [1, 2], [0], None),
    ],
)
def test_which_of_two_rows_count(form, target, mask, counted):
    labels = form.counted(2, torch.tensor(target), None if mask is None else torch.tensor(mask))
    assert (labels if labels is None else labels.tolist()) == counted


def test_whole_samples_are_left_out():
    """Rows of layers, views and index too: the views of one sample lie side by side."""
    view = Outputs(draw(6, 3, seed=2), index=torch.arange(6))
    outputs = Outputs(draw(3, 3), (draw(3, 7),), draw(3, 2), torch.ones(3, 1), torch.arange(3), views={"crops": view})
    target = torch.tensor([4, -100, 5])
    one, other, labels = CLASSES.select(outputs, outputs.map(torch.neg), target)
    assert labels.tolist() == [4, 5]
    for selected, whole in ((one, outputs), (other, outputs.map(torch.neg))):
        assert torch.equal(selected.logits, whole.logits[[0, 2]])
        assert torch.equal(selected.layers[0], whole.layers[0][[0, 2]])
        assert torch.equal(selected.embedding, whole.embedding[[0, 2]])
        assert torch.equal(selected.views["crops"].logits, whole.views["crops"].logits[[0, 1, 4, 5]])
        assert selected.index.tolist() == [0, 2]
        assert selected.mask.shape == (2, 1)
    bare = samples(Outputs(draw(3, 3)), torch.tensor([True, False, True]))
    assert (bare.index, bare.mask) == (None, None)
    assert CLASSES.select(outputs, outputs, torch.arange(3))[0] is outputs
    assert SOFT.select(bare, bare, target)[2] is target


def test_all_tokens_of_one_sample_have_its_weight():
    z = draw(1, 3, 4)
    teacher = Outputs(z, members=((Outputs(z), torch.tensor([0.25])),))
    ((_, weight),) = TaskFormat("classes", -1).select(Outputs(z), teacher, torch.tensor([[1, 1, 2]]))[1].members
    assert weight.tolist() == [0.25] * 3


@pytest.mark.parametrize("ignored", [True, False])
def test_tokens_are_selected_with_the_weights_of_their_samples(ignored):
    """Two samples of three tokens; a teacher whose members weigh the samples."""
    z, other = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    target = torch.tensor([[1, -100, 2], [0, 3, -100]]) if ignored else torch.tensor([[1, 1, 2], [0, 3, 3]])
    chosen = [0, 2, 3, 4] if ignored else [*range(6)]
    teacher = Outputs(other, members=((Outputs(other + 1), torch.tensor([0.25, 0.75])),))
    one, two, labels = TaskFormat("classes", -1, -100).select(Outputs(z), teacher, target)
    assert torch.equal(one.logits, z.view(6, 4)[chosen])
    assert torch.equal(two.logits, other.view(6, 4)[chosen])
    assert labels.tolist() == target.flatten()[chosen].tolist()
    ((member, weight),) = two.members
    assert torch.equal(member.logits, (other + 1).view(6, 4)[chosen])
    assert weight.tolist() == torch.tensor([0.25] * 3 + [0.75] * 3)[chosen].tolist()


def test_labels_that_are_none_of_positions_stay():
    """One label a text beside logits for each token."""
    target = torch.tensor([1, 0])
    assert TaskFormat("classes", -1, None).select(Outputs(draw(2, 3, 4)), Outputs(draw(2, 3, 4)), target)[2] is target
    empty = TaskFormat("classes", -1).select(Outputs(draw(0, 3, 4)), Outputs(draw(0, 3, 4)), torch.empty(0, 3).long())
    assert empty[0].logits.shape == (0, 4)


class Declared(nn.Module):
    """A task that says what its targets are."""

    def __init__(self, **declared):
        super().__init__()
        self.__dict__.update(declared)


INDICES, ONE_HOT, FRACTIONS = torch.tensor([2, 0]), torch.eye(3)[:2], torch.tensor([[0.5, 0.5, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("task", "logits", "target", "expected"),
    [
        (None, (2, 3), None, TaskFormat("classes", -1, -100)),
        (None, (2, 3), INDICES, TaskFormat("classes", -1, -100)),
        (None, (2, 3), FRACTIONS, SOFT),
        (None, (2, 3), ONE_HOT, SOFT),
        (nn.Identity(), (2, 3), None, OTHER),
        (nn.Identity(), (2, 3), INDICES, TaskFormat("classes", -1, -100)),
        (nn.Identity(), (2, 3), torch.zeros(2, 3).long(), OTHER),
        (nn.Identity(), (2, 3), torch.rand(2), OTHER),
        (nn.Identity(), (2, 4), FRACTIONS, OTHER),
        (nn.Identity(), (2, 3, 4), torch.zeros(2, 4).long(), TaskFormat("classes", 1, -100)),
        (nn.Identity(), (2, 3, 4), torch.zeros(2, 3).long(), TaskFormat("classes", -1, -100)),
        (nn.CrossEntropyLoss(ignore_index=1), (2, 3), INDICES, TaskFormat("classes", 1, 1)),
        (nn.CrossEntropyLoss(), (2, 3), FRACTIONS, SOFT),
        (nn.CrossEntropyLoss(), (2, 3, 4), torch.rand(2, 3, 4), SOFT),
        (nn.CrossEntropyLoss(), (2, 3), torch.zeros(2, 3).long(), CLASSES),
        (nn.CrossEntropyLoss(), (2, 3), None, CLASSES),
        (nn.MultiMarginLoss(), (2, 3), INDICES, CLASSES),
        (nn.MSELoss(), (2, 3), FRACTIONS, VALUES),
        (nn.HuberLoss(), (2, 3), None, VALUES),
        (nn.MultiLabelSoftMarginLoss(), (2, 1), torch.ones(2, 1), LABELS),
        (nn.BCEWithLogitsLoss(), (2,), torch.ones(2), BINARY),
        (nn.BCEWithLogitsLoss(), (2, 2), torch.ones(2, 2), LABELS),
        (Declared(target_kind="soft"), (2, 3), INDICES, SOFT),
        (Declared(target_kind="binary"), (3, 1), torch.ones(3, 1), BINARY),
        (Declared(ignore_index=7), (2, 3), INDICES, TaskFormat("classes", -1, 7)),
        (Declared(class_axis=2), (2, 3, 4), torch.zeros(2, 3).long(), TaskFormat("classes", 2, -100)),
        (Declared(target_kind="regression"), (2, 3, 4), torch.rand(2, 3, 4), VALUES),
    ],
)
def test_format_of_a_task(task, logits, target, expected):
    assert task_format(task, torch.zeros(logits), target) == expected


def test_default_format_is_class_scores():
    assert TaskFormat("classes", -1, None) == CLASS_SCORES


@pytest.mark.parametrize(
    ("logits", "target", "mask", "axis"),
    [
        ((2, 3, 4), (2, 4), None, 1),
        ((2, 3, 4), (2, 3), None, -1),
        ((2, 3, 4), (2,), (2, 3), -1),  # one label a text: the mask shows the axis
        ((2, 3, 4), (2,), (2, 4), 1),
        ((2, 3, 4, 5), (2, 4, 5), None, 1),
        ((2, 3, 4, 5), (2, 3, 4), None, -1),
        ((2, 3, 3), (2, 3), None, "fit both"),
        ((2, 3, 4), (2,), None, "fit neither"),
    ],
)
def test_class_axis_is_the_one_that_labels_leave_out(logits, target, mask, axis):
    arguments = nn.Identity(), torch.zeros(logits), torch.zeros(target).long(), mask and torch.ones(mask)
    if isinstance(axis, int):
        assert task_format(*arguments).axis == axis
        return
    with pytest.raises(InputError, match=f"labels .* {axis} axis 1 and the last axis"):
        task_format(*arguments)


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ([[1, 0]], "other"),  # whole numbers
        ([[0.5, 0.495]], "soft"),  # to 1 %, as half precision gives them
        ([[0.5, 0.485]], "other"),
        ([[0.5, 0.515]], "other"),
        ([[1.0, 0.0], [0.5, 0.5]], "soft"),
        ([[-0.001, 1.001]], "other"),
        ([0.5, 0.5], "other"),  # (B,)
    ],
)
def test_what_counts_as_probabilities(targets, kind):
    targets = torch.tensor(targets)
    assert task_format(nn.Identity(), torch.zeros(targets.shape), targets).kind == kind


def test_unknown_kinds_are_refused():
    with pytest.raises(InputError, match=r"Declared.target_kind must be one of .*, not 'labels'"):
        task_format(Declared(target_kind="labels"), torch.zeros(2, 3), None)


def test_description_of_a_format():
    assert BINARY.description == "binary, one logit a position (Bernoulli KL)"
    assert SOFT.description == "class probabilities, over axis 1 of the logits"
    text = "class indices, over axis -1 of the logits; label 0 is ignored"
    assert TaskFormat("classes", -1, 0).description == text
