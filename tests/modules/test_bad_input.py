"""What cannot work is said in one sentence before the first step, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from kdlab import Knowledge
from kdlab.errors import InputError
from kdlab.losses import DKD, AttentionTransfer, Hint, RKDDistance, SoftTargets
from kdlab.models import resnet8
from tests.modules.tiny import digits, distiller, network, pairs, same, trainer, weights


class Loss(nn.Module):
    """A user's loss, from a function."""

    def __init__(self, function: Callable[[Any, Any, Tensor], Any], **attributes: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, student: Any, teacher: Any, target: Tensor) -> Any:
        return self.function(student, teacher, target)


class CosineLogits(nn.Module):
    """The user's loss of DESIGN: it knows nothing of kdlab."""

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, student, teacher, target):  # type: ignore[no-untyped-def]
        similar = F.cosine_similarity(student.logits, teacher.logits)
        return (1 - self.margin - similar).clamp(min=0).mean()


class Near(Loss):
    needs: ClassVar[tuple[str, ...]] = ("embedding",)


class NeedsIndex(Loss):
    needs: ClassVar[tuple[str, ...]] = ("index",)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.fc = (
            nn.Linear(64, 16),
            nn.Sequential(nn.Linear(16, 16), nn.ReLU()),
            nn.Linear(16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(self.block, self.first(x.flatten(1)), use_reentrant=True))


class Inferring(nn.Module):
    """Runs without gradient in any mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.net(x)


def one(loss: nn.Module, student: Any = (), teacher: Any = (), weight: float = 1.0) -> dict[str, Knowledge]:
    return {"mine": Knowledge(loss, weight, None, student, teacher)}


def sharing(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Knowledge]:
    loss = Hint()
    return one(loss, ["hidden.0"]) | {"b": Knowledge(wrap(loss))}


def mse_layers(s: Any, t: Any, y: Tensor) -> Tensor:
    return F.mse_loss(s.layers[0], t.layers[0])


def embedding_distance(s: Any, t: Any, y: Tensor) -> Tensor:
    return F.pairwise_distance(s.embedding, t.embedding).mean()


def deep(s: Any, t: Any, y: Tensor) -> Tensor:
    return {"soft": s.logits}["hard"].mean()


def conv(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return resnet8(10, in_channels=1)


HIDDEN = ["hidden.0"]
SHAPES = r"'hidden.0'.*\(8, 16\).*'hidden.0'.*\(8, 24\)"

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown student layer": (
        {"knowledge": one(Hint(), ["hiden.0"], HIDDEN)},
        r"MLP has no layer 'hiden.0'.*'hidden.0'",
    ),
    "unknown teacher layer": (
        {"knowledge": one(Hint(), HIDDEN, ["hiden.0"])},
        r"MLP has no layer 'hiden.0'.*'hidden.0'",
    ),
    "layer that does not run": (
        {"student": nn.ModuleDict({"net": network()}), "knowledge": one(Hint(), ["net.fc"], HIDDEN)},
        "student fails on inputs",
    ),
    "shapes without an adapter": (
        {"teacher": network(1, (24,)), "knowledge": one(Hint(None), HIDDEN)},
        SHAPES.replace("8", r"\d+") + r".*Hint\(regressor='conv'\) joins them",
    ),
    "maps against vectors": (
        {"student": conv(), "knowledge": one(AttentionTransfer(), ["layer2"], HIDDEN)},
        r"needs feature maps.*'layer2'.*\(8, 32, 4, 4\).*'hidden.0'.*\(8, 16\)",
    ),
    "user loss on other shapes": (
        {"teacher": network(1, (24,)), "knowledge": one(Loss(mse_layers), HIDDEN)},
        SHAPES + ".*kdlab.losses.Hint",
    ),
    "silent broadcast": (
        {"student": network(0, (1,)), "teacher": network(1, (10,)), "knowledge": one(Loss(mse_layers), HIDDEN)},
        r"\(8, 1\).*\(8, 10\).*broadcasting.*kdlab.losses.Hint",
    ),
    "other classes": (
        {"teacher": network(1, classes=12), "knowledge": one(SoftTargets(4.0))},
        "the student gives 10 classes and the teacher 12",
    ),
    "other classes, user loss": (
        {"teacher": network(1, classes=12), "knowledge": one(CosineLogits())},
        "the student gives 10 classes and the teacher 12",
    ),
    "no teacher": ({"teacher": None}, "Knowledge 'soft' needs a teacher, but none is given"),
    "needs the index": ({"knowledge": one(NeedsIndex(deep))}, r"needs the sample index: let the loader yield"),
    "needs layers": ({"knowledge": one(Hint())}, "needs layers to read: set student_layers"),
    "needs an embedding": (
        {
            "student": nn.Sequential(nn.Unflatten(1, (64, 1, 1)), nn.Conv2d(64, 10, 1), nn.Flatten()),
            "knowledge": one(RKDDistance()),
        },
        "needs an embedding",
    ),
    "needs classes": ({"knowledge": one(DKD()), "task": Loss(deep), "soft labels": True}, "class indices"),
    "two numbers": ({"knowledge": one(Loss(lambda s, t, y: s.logits.mean(0)))}, r"one number.*shape \(10,\): average"),
    "no tensor": ({"knowledge": one(Loss(lambda s, t, y: 1.0))}, "one number as a tensor, but gives a float"),
    "not a number": (
        {"knowledge": one(Loss(lambda s, t, y: s.logits.sum() * float("nan")))},
        "is nan on the first batch",
    ),
    "infinite": ({"knowledge": one(Loss(lambda s, t, y: (s.logits.sum() * 0).log()))}, "is -inf on the first batch"),
    "no gradient": (
        {"knowledge": one(Loss(lambda s, t, y: s.logits.detach().mean()))},
        "sends no gradient to the student",
    ),
    "gradient to an adapter alone": (
        {
            "knowledge": one(
                Loss(
                    lambda s, t, y: s.logits.argmax(1).float().mean() * W.sum(),
                    weight=(W := nn.Parameter(torch.ones(2))),
                )
            )
        },
        "sends no gradient to the student",
    ),
    "fails deep inside": (
        {"knowledge": one(Loss(deep))},
        r"Knowledge 'mine' \(Loss\) fails on student 'logits' \(8, 10\).*'hard'",
    ),
    "embeddings of other widths": (
        {"teacher": network(1, (24,)), "knowledge": one(Near(embedding_distance))},
        r"\(Near\) fails on student 'embedding' \(8, 16\), teacher 'embedding' \(8, 24\): ",
    ),
    "a layer for an embedding": (
        {"teacher": network(1, (24,)), "knowledge": one(Near(mse_layers), HIDDEN)},
        r"\(Near\) fails on student 'hidden.0' \(8, 16\), teacher 'hidden.0' \(8, 24\): ",
    ),
    "embeddings of a loss that declares nothing": (
        {"teacher": network(1, (24,)), "knowledge": one(Loss(embedding_distance))},
        r"student 'logits' \(8, 10\), 'embedding' \(8, 16\), teacher 'logits' \(8, 10\), 'embedding' \(8, 24\): ",
    ),
    "reentrant checkpoint": (
        {"student": Reentrant(), "knowledge": one(Hint(), ["block.0"], HIDDEN)},
        "use_reentrant=True",
    ),
    "task fails": (
        {"task": nn.CrossEntropyLoss(weight=torch.ones(3))},
        r"task loss \(CrossEntropyLoss\) fails on labels \(8,\) int64",
    ),
    "student fails": ({"student": nn.Linear(3, 10)}, r"student fails on inputs \(8, 64\) float32"),
    "teacher fails": ({"teacher": nn.Linear(3, 10)}, r"teacher fails on inputs \(8, 64\) float32"),
    "parameter group": ({"parameter_groups": {"losses.hint": {"lr": 1}}}, "'losses.hint' fits no trainable parameter"),
    "inference mode": ({"student": Inferring(), "knowledge": None}, r"networks run under torch\.no_grad"),
    "all frozen": (
        {"student": network().requires_grad_(False), "teacher": None, "knowledge": None},
        "Nothing can be trained",
    ),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("case", CASES)
def test_one_sentence_before_the_first_step(case: str, tmp_path: Any) -> None:
    options, message = CASES[case]
    options = dict(options)
    soft = options.pop("soft labels", False)
    module = distiller(**({"student": network()} | options))
    loader = pairs() if "layer2" not in message else digits()
    if soft:
        x, y = pairs().dataset.tensors  # type: ignore[attr-defined]
        loader = DataLoader(TensorDataset(x, F.one_hot(y, 10).float()), 8)
        module.task = nn.CrossEntropyLoss()
    before, modes = weights(module.student), [each.training for each in module.modules()]
    run = trainer(enable_checkpointing=True, default_root_dir=tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        run.fit(module, loader)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    assert run.global_step == 0
    assert same(weights(module.student), before)
    assert [each.training for each in module.modules()][: len(modes)] == modes
    assert not any(each._forward_hooks for each in module.modules() if not case.startswith("teacher"))
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Knowledge(CosineLogits(), weight=-0.1), "at least 0, not -0.1"),
        (lambda: distiller(task_weight=-1), "task weight must be a finite number of at least 0"),
        (lambda: SoftTargets(-4.0), "temperature must be a finite number above 0, not -4.0"),
        (lambda: distiller(knowledge={"task": Knowledge(CosineLogits())}), "other than 'task', 'total'"),
        (lambda: distiller(knowledge={"a.b": Knowledge(CosineLogits())}), "plain word.*not 'a.b'"),
        (lambda: distiller(knowledge={"keys": Knowledge(CosineLogits())}), "plain word.*not 'keys'"),
        (lambda: distiller(knowledge={"soft_weighted": Knowledge(CosineLogits())}), "plain word.*'soft_weighted'"),
        (lambda: distiller(knowledge=dict.fromkeys("ab", Knowledge(CosineLogits()))), "'a' and 'b' share one object"),
        (lambda: distiller(knowledge=sharing(lambda part: part)), "'mine' and 'b' share one object, a Hint"),
        (lambda: distiller(knowledge=sharing(nn.Sequential)), "'mine' and 'b' share one object, a Hint"),
        (lambda: distiller(teacher=(net := network()), student=net), "The student and the teacher share"),
        (lambda: distiller(teacher=[]), "at least one network"),
    ],
)
def test_bad_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


class Nothing(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (DataLoader(Nothing()), "yields no batch"),
        (DataLoader(TensorDataset(torch.zeros(3, 64), torch.zeros(3).long()), 8, drop_last=True), "yields no batch"),
        (DataLoader(torch.zeros(8, 64), 4), "A batch must be"),
        ([(torch.zeros(2, 64), torch.zeros(2).long())], "A batch must be|fails on"),
        (pairs(40, 40, classes=11), "labels go from 0 to 10, but the student has 10 classes"),
    ],
)
@pytest.mark.filterwarnings("ignore:Total length of")
def test_bad_loaders(loader: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trainer().fit(distiller(), loader)


def test_a_data_set_of_more_classes_than_the_first_batch_shows() -> None:
    with pytest.raises(InputError, match="the student has 9 classes"):
        trainer().fit(distiller(student=network(classes=9), teacher=None, knowledge=None), digits(batch_size=2))


def test_features_alone_work_between_different_classes() -> None:
    for loss in (Hint(), Loss(mse_layers), RKDDistance()):
        module = distiller(teacher=network(1, classes=12), knowledge=one(loss, HIDDEN))
        trainer(limit_val_batches=1.0).fit(module, digits())


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        module = distiller()
        with pytest.raises(InputError, match="under it: build the networks, and call fit, outside of it"):
            trainer().fit(distiller(student=network()), pairs())
    with pytest.raises(InputError, match=r"made under torch\.inference_mode"):
        trainer().fit(module, pairs())


def test_a_loss_of_a_users_own_needs_no_kdlab() -> None:
    module = distiller(knowledge=one(CosineLogits(margin=0.1), weight=0.5))
    run = trainer()
    run.fit(module, pairs())
    assert 0 < float(run.callback_metrics["loss/mine"]) < 2


def test_nothing_left_to_learn_is_said_when_it_happens() -> None:
    with pytest.raises(InputError, match="Nothing is left to learn"):
        trainer().fit(distiller(task_weight=0, knowledge={"soft": Knowledge(SoftTargets(4.0), 0.0)}), pairs())


def test_an_iterable_loader_without_length_trains() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.ones(64), 1)] * 20)

    run = trainer(2)
    module = distiller()
    run.fit(module, DataLoader(Stream(), 8))
    assert run.global_step == 6
    assert module.dry_run is not None
    assert module.dry_run.batches is None


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_dry_run_uses_up_no_random_state(own: bool, dropout: float) -> None:
    x, y = pairs().dataset.tensors  # type: ignore[attr-defined]
    generator, states = torch.Generator().manual_seed(3), []

    class Look(pl.Callback):
        def note(self, *_: Any, **__: Any) -> None:
            states.extend([generator.get_state(), torch.get_rng_state()])

        on_fit_start = note

    loader = DataLoader(TensorDataset(x, y), 8, shuffle=True, generator=generator if own else None)
    module, look = distiller(student=network(dropout=dropout)), Look()
    look.note()
    trainer(callbacks=[look]).fit(module, loader)
    assert torch.equal(states[0], states[2])
    assert torch.equal(states[1], states[3])
