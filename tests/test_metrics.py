"""Student-versus-teacher metrics against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.metrics import Cohort, StudentVersusTeacher, TaskLoss
from kdlab.outputs.task_format import TaskFormat


def logits(seed: int, size: int = 23, classes: int = 4) -> Tensor:
    return 3 * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed))


def reference(student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, float]:
    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        parts = [math.exp(value - top) for value in row]
        return [part / sum(parts) for part in parts]

    size = len(target)
    p_student = [softmax(row) for row in student.double().tolist()]
    p_teacher = [softmax(row) for row in teacher.double().tolist()]
    classes = [row.index(max(row)) for row in p_student]
    teacher_classes = [row.index(max(row)) for row in p_teacher]
    right = [int(a == b) for a, b in zip(classes, target.tolist(), strict=True)]
    teacher_right = [int(a == b) for a, b in zip(teacher_classes, target.tolist(), strict=True)]
    bins: dict[int, list[tuple[float, int]]] = {}
    for row, hit in zip(p_student, right, strict=True):
        bins.setdefault(min(int(max(row) * 15), 14), []).append((max(row), hit))
    ece = sum(abs(sum(c for c, _ in each) - sum(hit for _, hit in each)) for each in bins.values()) / size
    kl = sum(
        sum(p * math.log(p / q) for p, q in zip(t, s, strict=True)) for t, s in zip(p_teacher, p_student, strict=True)
    )
    student_accuracy, teacher_accuracy = sum(right) / size, sum(teacher_right) / size
    return {
        "student_accuracy": student_accuracy,
        "teacher_accuracy": teacher_accuracy,
        "gap": teacher_accuracy - student_accuracy,
        "retention": student_accuracy / teacher_accuracy,
        "agreement": sum(a == b for a, b in zip(classes, teacher_classes, strict=True)) / size,
        "kl_to_teacher": kl / size,
        "student_ece": ece,
    }


@pytest.mark.parametrize("batch_size", [23, 5])
def test_against_plain_loops(batch_size: int) -> None:
    student, teacher, target = logits(0), logits(1), torch.arange(23) % 4
    metrics = StudentVersusTeacher()
    for _ in range(2):  # the second time after a reset
        for rows in torch.arange(23).split(batch_size):
            metrics.update(student[rows], teacher[rows], target[rows])
        values = {name: float(value) for name, value in metrics.compute().items()}
        assert values == pytest.approx(reference(student, teacher, target), abs=1e-6)
        metrics.reset()


def test_a_teacher_of_other_classes_is_left_out() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), None, torch.arange(23) % 4)
    metrics.update(logits(0), logits(1, classes=7), torch.arange(23) % 4)
    assert set(metrics.compute()) == {"student_accuracy", "student_ece"}


def test_metrics_are_neither_parameters_nor_in_the_state_dict() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1), torch.arange(23) % 4)
    assert not metrics.state_dict()
    assert not list(metrics.parameters())


@pytest.mark.parametrize("axis", [1, 2])
def test_token_logits(axis: int) -> None:
    student, teacher, target = logits(0, 30), logits(1, 30), torch.arange(30) % 4
    metrics = StudentVersusTeacher()
    both = [value.view(6, 5, 4).movedim(2, axis) for value in (student, teacher)]
    metrics.update(*both, target.view(6, 5))
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx(reference(student, teacher, target), abs=1e-6)


def test_square_logits_need_the_axis_of_the_task() -> None:
    student, teacher, target = logits(0, 24), logits(1, 24), torch.arange(24) % 4
    both = [value.view(6, 4, 4) for value in (student, teacher)]
    metrics = StudentVersusTeacher()
    with pytest.raises(InputError, match="class axis"):
        metrics.update(*both, target.view(6, 4))
    metrics.update(*both, target.view(6, 4), TaskFormat("classes", -1))
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx(reference(student, teacher, target), abs=1e-6)


def test_ignored_labels_and_masked_positions_do_not_count() -> None:
    student, teacher, target = logits(0, 30), logits(1, 30), torch.arange(30) % 4
    ignored, masked = torch.arange(30) % 3 == 0, torch.arange(30) % 5 == 0
    labels = torch.where(ignored, -100, target)
    metrics = StudentVersusTeacher()
    metrics.update(
        student.view(6, 5, 4),
        teacher.view(6, 5, 4),
        labels.view(6, 5),
        TaskFormat("classes", -1, -100),
        (~masked).long().view(6, 5),
    )
    values = {name: float(value) for name, value in metrics.compute().items()}
    rows = ~ignored & ~masked
    assert values == pytest.approx(reference(student[rows], teacher[rows], target[rows]), abs=1e-6)


def test_a_batch_without_labels_adds_nothing() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1), torch.full((23,), -100))
    assert not metrics.compute()


def test_one_logit_against_plain_loops() -> None:
    student, teacher = logits(0, 40, 1), logits(1, 40, 1)
    target = (torch.arange(40) % 3 == 0).float()[:, None]
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target, TaskFormat("binary", 1))
    values = {name: float(value) for name, value in metrics.compute().items()}
    p, q = ([1 / (1 + math.exp(-float(z))) for z in side] for side in (teacher.double(), student.double()))
    kl = sum(a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)) for a, b in zip(p, q, strict=True)) / 40
    hits = [float((b > 0.5) == bool(y)) for b, y in zip(q, target, strict=True)]
    same = [float((a > 0.5) == (b > 0.5)) for a, b in zip(p, q, strict=True)]
    assert values["kl_to_teacher"] == pytest.approx(kl, abs=1e-6)
    assert values["student_accuracy"] == pytest.approx(sum(hits) / 40)
    assert values["agreement"] == pytest.approx(sum(same) / 40)
    assert {"student_ece", "teacher_accuracy", "gap", "retention"} <= values.keys()


def test_several_labels_against_plain_loops() -> None:
    student, teacher = logits(0, 40, 3), logits(1, 40, 3)
    target = (logits(2, 40, 3) > 0).float()
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target, TaskFormat("multilabel", 1))
    values = {name: float(value) for name, value in metrics.compute().items()}
    p, q = teacher.double().sigmoid(), student.double().sigmoid()
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    chosen, right = student > 0, target.bool()
    f1 = [2 * (chosen & right)[:, k].sum() / (chosen[:, k].sum() + right[:, k].sum()) for k in range(3)]
    assert values["kl_to_teacher"] == pytest.approx(float(kl), abs=1e-6)
    assert values["student_accuracy"] == pytest.approx(float((chosen == right).float().mean()))
    assert values["student_f1"] == pytest.approx(float(sum(f1)) / 3)
    assert values["agreement"] == pytest.approx(float((chosen == (teacher > 0)).float().mean()))
    assert "student_ece" not in values


def test_regression_reports_no_accuracy() -> None:
    student, teacher, target = logits(0, 40, 2), logits(1, 40, 2), logits(2, 40, 2)
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target, TaskFormat("regression", 1))
    values = {name: float(value) for name, value in metrics.compute().items()}
    pairs = {"student_mse": (student, target), "teacher_mse": (teacher, target), "mse_to_teacher": (student, teacher)}
    assert values == pytest.approx({name: float(((a - b) ** 2).mean()) for name, (a, b) in pairs.items()})


def test_soft_labels_count_their_most_probable_class() -> None:
    student, teacher, target = logits(0), logits(1), logits(2).softmax(-1)
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target, TaskFormat("soft", 1))
    values = {name: float(value) for name, value in metrics.compute().items()}
    expected = reference(student, teacher, target.argmax(-1))
    assert values == pytest.approx({name: expected[name] for name in expected if name != "student_ece"}, abs=1e-6)


def test_no_retention_of_a_teacher_that_is_never_right() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(torch.eye(3), torch.eye(3).roll(1, 1), torch.arange(3))
    values = metrics.compute()
    assert values["teacher_accuracy"] == 0
    assert values["gap"] == -1
    assert "retention" not in values


def test_half_precision_is_computed_in_full_precision() -> None:
    student, teacher, target = logits(0).bfloat16(), logits(1).bfloat16(), torch.arange(23) % 4
    metrics = StudentVersusTeacher()
    metrics.update(student, teacher, target)
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values == pytest.approx(reference(student.float(), teacher.float(), target), abs=1e-6)


def test_kl_is_zero_for_equal_networks() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(0), torch.arange(23) % 4)
    assert float(metrics.compute()["kl_to_teacher"]) == 0


@pytest.mark.full
def test_kl_of_many_small_batches_keeps_its_precision() -> None:
    student, teacher = logits(0, 20000), logits(1, 20000)
    metrics = StudentVersusTeacher()
    for rows in torch.arange(20000).split(10):
        metrics.update(student[rows], teacher[rows], torch.zeros(len(rows)).long())
    s, t = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    expected = float((t.exp() * (t - s)).sum(-1).mean())
    assert float(metrics.compute()["kl_to_teacher"]) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("ensemble", [False, True])
def test_cohort_against_plain_loops(ensemble: bool) -> None:
    learners = {name: logits(seed) for seed, name in enumerate("abc")}
    target = torch.arange(23) % 4
    others = {"ensemble": logits(3)} if ensemble else {}
    cohort = Cohort()
    for rows in torch.arange(23).split(7):
        part = {name: value[rows] for name, value in learners.items()}
        cohort.update(part, {name: value[rows] for name, value in others.items()}, "b", target[rows])
    pairs = [reference(learners[one], learners[other], target)["agreement"] for one, other in ("ab", "ac", "bc")]
    alone = {name: reference(value, value, target) for name, value in learners.items()}
    mean = torch.stack([value.double().softmax(-1) for value in learners.values()]).mean(0).log()
    together = reference(others.get("ensemble", mean), mean, target)["student_accuracy"]
    accuracies = {name: values["student_accuracy"] for name, values in alone.items()}
    assert {name: float(value) for name, value in cohort.compute().items()} == pytest.approx(
        {
            **{f"{name}_accuracy": value for name, value in accuracies.items()},
            "ensemble_accuracy": together,
            "ensemble_gain": together - sum(accuracies.values()) / 3,
            "agreement": sum(pairs) / 3,
            "deployed_accuracy": accuracies["b"],
            "deployed_ece": alone["b"]["student_ece"],
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("classes", [3, 5])
def test_a_teacher_of_fewer_or_more_classes_is_left_out(classes: int) -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1, classes=classes), torch.arange(23) % 4)
    assert set(metrics.compute()) == {"student_accuracy", "student_ece"}


def test_a_label_of_one_half_is_no_and_a_logit_of_0_is_no() -> None:
    metrics = StudentVersusTeacher()
    student, teacher = torch.tensor([[0.0], [0.0], [2.0], [0.25]]), torch.tensor([[-1.0], [1.0], [1.0], [0.25]])
    metrics.update(student, teacher, torch.tensor([[0.5], [0.0], [1.0], [0.75]]), TaskFormat("binary", 1))
    values = metrics.compute()
    assert float(values["agreement"]) == 0.75
    assert float(values["student_accuracy"]) == 1.0
    assert float(values["teacher_accuracy"]) == 0.75


def test_nothing_but_scores_of_an_unknown_format() -> None:
    metrics = StudentVersusTeacher()
    metrics.update(logits(0), logits(1), logits(2), TaskFormat("other", 1))
    assert not metrics.compute()


def cohort_of(names: str, kind: str, **others: Tensor) -> dict[str, float]:
    cohort = Cohort()
    target = torch.arange(23) % 4 if kind == "classes" else logits(9)
    form = None if kind == "classes" else TaskFormat(kind, 1)  # type: ignore[arg-type]
    cohort.update({name: logits(seed) for seed, name in enumerate(names)}, others, names[0], target, form)
    return {name: float(value) for name, value in cohort.compute().items()}


@pytest.mark.parametrize(
    ("names", "kind", "expected"),
    [
        ("a", "classes", {"a_accuracy", "deployed_accuracy", "deployed_ece"}),
        ("a", "other", set()),
        ("ab", "other", set()),
        ("ab", "regression", {"a_mse", "b_mse", "ensemble_mse", "deployed_mse"}),
        (
            "ab",
            "classes",
            {"a_accuracy", "b_accuracy", "deployed_accuracy", "deployed_ece"}
            | {"ensemble_accuracy", "ensemble_gain", "agreement"},
        ),
    ],
)
def test_what_a_cohort_reports(names: str, kind: str, expected: set[str]) -> None:
    assert cohort_of(names, kind).keys() == expected


def test_a_mixture_of_one_learner_has_no_gain() -> None:
    values = cohort_of("a", "classes", ensemble=logits(5))
    assert values.keys() == {"a_accuracy", "ensemble_accuracy", "deployed_accuracy", "deployed_ece"}


def test_regression_of_a_cohort_is_that_of_the_mean() -> None:
    values = cohort_of("ab", "regression")
    assert values["ensemble_mse"] == pytest.approx(float((((logits(0) + logits(1)) / 2 - logits(9)) ** 2).mean()))
    assert values["deployed_mse"] == values["a_mse"] == pytest.approx(float(((logits(0) - logits(9)) ** 2).mean()))


@pytest.mark.parametrize("is_sum", [False, True])
def test_the_mean_of_a_task_loss_weighs_its_batches(is_sum: bool) -> None:
    loss, options = TaskLoss(), {"is_sum": True} if is_sum else {}
    for value, weight in ((2.0, 3), (math.nan, 0), (5.0, 1), (0.5, 0.25)):
        loss.update(torch.tensor(value), torch.tensor(weight), **options)
    expected = (2.0 + 5.0 + 0.5) / 4.25 if is_sum else (6.0 + 5.0 + 0.125) / 4.25
    assert loss.compute().item() == pytest.approx(expected)
    loss.reset()
    loss.update(torch.tensor(math.nan), torch.tensor(0))
    assert loss.compute().isnan()
