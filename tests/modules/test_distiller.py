"""A training as a whole: what changes and what does not."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlab import Distiller, FrozenTeacher, Knowledge
from kdlab.errors import InputError
from kdlab.losses import Hint, SoftTargets
from kdlab.models import resnet8
from kdlab.optimizers import DOT
from kdlab.outputs import Batch
from tests.modules.tiny import (
    count_calls,
    digits,
    distiller,
    knowledge,
    network,
    pairs,
    same,
    sgd,
    trainer,
    weights,
)


class Wrecker(pl.Callback):
    """A user's callback that thaws all it finds, again and again."""

    def thaw(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        module.train()
        module.requires_grad_(True)

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        pl_module.teacher.requires_grad_(True)

    on_fit_start = on_train_batch_start = on_validation_batch_start = thaw


def regular() -> nn.Module:
    """BatchNorm and Dropout."""
    layers = [nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10)]
    return nn.Sequential(*layers)


def evaluation() -> list[Batch]:
    """The test set, as the networks see it."""
    data = digits()
    data.setup()
    return [data.prepare(each) for each in data.test_dataloader()]


UNTRAINED = pytest.mark.filterwarnings("ignore:The teacher is right on")


@UNTRAINED
@pytest.mark.parametrize("batchnorm", ["frozen", "batch"])
def test_the_teacher_is_bit_identical_after_a_fit(batchnorm: Any) -> None:
    torch.manual_seed(1)
    teacher = regular()
    teacher(torch.randn(32, 64))
    before = weights(teacher)

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)

    module = distiller(teacher=teacher, knowledge=knowledge(), optimizer=adamw, teacher_batchnorm=batchnorm)
    run = trainer(2, limit_val_batches=1.0, num_sanity_val_steps=1, callbacks=[Wrecker()])
    start = weights(module.student)
    run.fit(module, digits())
    assert same(weights(teacher), before)
    assert not same(weights(module.student), start)
    inside = {id(each) for group in run.optimizers[0].param_groups for each in group["params"]}
    assert not inside & {id(each) for each in teacher.parameters()}
    assert inside == {id(each) for each in [*module.student.parameters(), *module.losses.parameters()]}


def test_checkpoints_hold_no_teacher_and_predict_without_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = distiller(teacher=resnet8(10, in_channels=1), knowledge={"soft": Knowledge(SoftTargets(4.0))})
    run = trainer()
    run.fit(module, digits())
    run.save_checkpoint(path := tmp_path / "run.ckpt")
    saved = torch.load(path, weights_only=True)
    assert {name.split(".")[0] for name in saved["state_dict"]} == {"student"}
    student = sum(each.numel() for each in module.student.parameters())
    teacher = sum(each.numel() for each in module.teacher.networks[0].parameters())  # type: ignore[union-attr]
    assert teacher > 10 * student
    assert path.stat().st_size < 1.2 * 4 * 2 * student + 10_000  # weights and momentum
    loaded = Distiller.load_from_checkpoint(
        path, student=network(5), teacher=None, knowledge={"soft": Knowledge(SoftTargets(4.0))}
    )
    rows = trainer().predict(loaded, digits())
    assert rows is not None
    inputs = torch.cat([each.inputs for each in evaluation()])
    assert torch.equal(torch.cat(rows), module.student.eval()(inputs))  # type: ignore[arg-type]
    alone = trainer().predict(loaded, DataLoader(inputs, 500))  # inputs without labels
    assert torch.equal(alone[0], module.student(inputs))  # type: ignore[index,arg-type]


def test_loading_is_strict() -> None:
    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")))
    trainer().fit(module, digits())
    state = module.state_dict()
    assert {name.split(".")[0] for name in state} == {"student", "losses"}
    module.load_state_dict(state)
    without = {name: value for name, value in state.items() if name != "student.fc.bias"}
    with pytest.raises(InputError, match=r'Missing key.* "student.fc.bias"'):
        module.load_state_dict(without)
    with pytest.raises(InputError, match=r'Unexpected key.* "student.more"'):
        module.load_state_dict(state | {"student.more": torch.zeros(1)})
    with pytest.raises(InputError, match=r"losses\.hint"):
        distiller().load_state_dict(state)
    with pytest.raises(InputError, match="size mismatch"):
        module.load_state_dict(state | {"student.fc.bias": torch.zeros(3)})


@UNTRAINED
def test_the_teacher_is_evaluated_once() -> None:
    teacher = network(1)
    module = distiller(teacher=teacher, knowledge={"soft": Knowledge(SoftTargets(2.0), weight=0.0)})
    run = trainer(3, limit_val_batches=1.0, num_sanity_val_steps=2)
    calls = count_calls(teacher)
    run.fit(module, digits(eval_batch_size=100))
    assert calls.pop(0) == 8  # the dry run; with weight 0 the teacher does not run in training
    assert calls == [100] * 5
    assert float(run.callback_metrics["val/teacher_accuracy"]) == pytest.approx(accuracy(teacher))


def accuracy(net: nn.Module) -> float:
    hits = [net.eval()(each.inputs).argmax(1) == each.target for each in evaluation()]
    return float(torch.cat(hits).double().mean())


def test_other_teacher_or_other_inputs_are_evaluated_anew() -> None:
    module = distiller()
    run = trainer(limit_val_batches=1.0)
    for seed in (1, 2):
        teacher = network(seed)
        module.teacher.networks[0].load_state_dict(teacher.state_dict())  # type: ignore[union-attr]
        (values,) = run.validate(module, digits(), verbose=False)
        assert values["val/teacher_accuracy"] == pytest.approx(accuracy(teacher))
    dot = torch.zeros(4, 1, 8, 8)
    dot[..., 2, 3] = 1.0
    batch = Batch(dot, torch.zeros(4).long())
    flipped = batch._replace(inputs=dot.flip(-1))  # of the same mean
    first, second = module.teacher_logits(batch), module.teacher_logits(flipped)
    assert first is not None
    assert second is not None
    assert torch.equal(second, module.teacher.networks[0](flipped.inputs))  # type: ignore[union-attr]
    assert not torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:After normalization")
def test_inputs_that_do_not_come_again_are_forgotten() -> None:
    class Jitter(type(digits())):  # type: ignore[misc]
        def prepare(self, batch: Batch, epoch: int | None = None) -> Batch:
            prepared = super().prepare(batch, epoch)
            return prepared._replace(inputs=prepared.inputs + torch.rand(()))

    module = distiller()
    trainer(3, limit_val_batches=1.0).fit(module, Jitter(train_size=40, batch_size=40, eval_batch_size=250))
    assert len(module._remembered.values()) == 2


@pytest.mark.parametrize("loader", ["digits", "pairs"])
def test_knowledge_of_weight_zero_is_plain_training_bit_for_bit(loader: str) -> None:
    results = []
    for options in ({"teacher": None, "knowledge": None}, {"knowledge": knowledge(0.0, ("hidden.0", "hidden.0"))}):
        module = distiller(student=network(dropout=0.3), **options)
        run = trainer(2, limit_val_batches=1.0)
        pl.seed_everything(7, verbose=False)
        if loader == "digits":
            run.fit(module, digits())
        else:
            run.fit(module, pairs(shuffle=True), pairs())
        results.append(weights(module.student))
    assert same(*results)
    assert not same(results[0], weights(network(dropout=0.3)))


def test_dropout_differs_between_steps_and_between_seeds() -> None:
    masks: dict[int, list[Tensor]] = {}
    for seed in (1, 2):
        module = distiller(student=network(hidden=(200,), dropout=0.5))
        module.student.dropout.register_forward_hook(  # type: ignore[union-attr]
            lambda net, args, output, seed=seed: masks.setdefault(seed, []).append(output[:8] == 0)
        )
        pl.seed_everything(seed, verbose=False)
        trainer(2).fit(module, pairs())
    for each in masks.values():
        assert len(each) == 1 + 2 * 5
        assert len({mask.numpy().tobytes() for mask in each[1:]}) == 10
    assert not {m.numpy().tobytes() for m in masks[1][1:]} & {m.numpy().tobytes() for m in masks[2][1:]}


def test_adapters_are_trained_and_in_training_mode() -> None:
    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")))
    start: dict[str, Tensor] = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            start.update({name: value.detach().clone() for name, value in module.losses.named_parameters()})
            assert all(each.training for each in module.losses.modules())

    trainer(callbacks=[Look()]).fit(module, digits())
    assert start
    assert all(not torch.equal(value, start[name]) for name, value in module.losses.named_parameters())


def test_a_second_fit_and_a_test_do_not_double_the_callbacks() -> None:
    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")))
    run = trainer()
    for _ in range(2):
        run.fit(module, digits())
        run.test(module, digits(), verbose=False)
    there = [each for each in run.callbacks if isinstance(each, Knowledge)]  # type: ignore[attr-defined]
    assert there == [*module.knowledge.values()]


def test_activation_checkpointing_trains_as_without() -> None:
    from torch.utils.checkpoint import checkpoint

    class Saving(nn.Module):
        def __init__(self, save: bool) -> None:
            super().__init__()
            self.net, self.save = network(), save

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.net.hidden[0]  # type: ignore[index,union-attr]
            kept = checkpoint(hidden, x, use_reentrant=False) if self.save else hidden(x)
            return self.net.fc(kept)  # type: ignore[operator,union-attr]

    results = []
    for save in (False, True):
        hint = {"hint": Knowledge(Hint(), 1.0, student_layers=["net.hidden.0"], teacher_layers=["hidden.0"])}
        torch.manual_seed(0)
        module = distiller(student=Saving(save), knowledge=hint)
        trainer().fit(module, pairs())
        results.append(weights(module.student))
    assert same(*results)


@pytest.mark.full
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
def test_compiled_networks_train_as_eager_ones(who: str) -> None:
    torch._dynamo.reset()
    results = []
    for names in ((), ("student", "teacher") if who == "both" else (who,)):
        nets: dict[str, Any] = {"student": network(), "teacher": network(1)}
        nets |= {name: torch.compile(nets[name], backend="eager") for name in names}
        torch.manual_seed(0)
        module = distiller(**nets, knowledge={"hint": Knowledge(Hint(), 1.0, student_layers=["hidden.0"])})
        trainer(2, limit_val_batches=1.0).fit(module, digits())
        results.append(list(weights(module.student).values()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def reachable(start: list[Any]) -> list[Any]:
    found, todo = {}, [*start]
    while todo:
        each = todo.pop()
        if id(each) not in found and isinstance(each, (dict, list, tuple, Tensor)):
            found[id(each)] = each
            todo += gc.get_referents(each)
    return list(found.values())


@pytest.mark.parametrize("optimizer", [sgd, DOT])
def test_a_step_keeps_nothing_of_the_graph(optimizer: Any) -> None:
    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            members = [*module.plan.members.values()]
            observers = [member.observer for member in members]
            own = [*vars(module).values(), *map(vars, [module._log, *members, *observers])]
            assert not [each for each in reachable(own) if isinstance(each, Tensor) and each.grad_fn is not None]

    module = distiller(knowledge=knowledge(layers=("hidden.0", "hidden.0")), optimizer=optimizer)
    trainer(log_every_n_steps=50, callbacks=[Look()]).fit(module, pairs())


def test_a_teaching_can_be_inspected() -> None:
    module = distiller(teacher=[network(1), network(2)], teacher_weights=[3, 1])
    assert isinstance(module.teaching, FrozenTeacher)
    assert module.teaching.weights == [0.75, 0.25]
    assert list(module.learners) == ["student"]


def test_a_teacher_near_chance_is_reported_before_the_first_step() -> None:
    module = distiller()
    with pytest.warns(UserWarning, match="near chance"):
        trainer(limit_val_batches=1.0, num_sanity_val_steps=1).fit(module, digits())
