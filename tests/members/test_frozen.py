"""Frozen teachers: unchanged to the bit and out of checkpoints, whatever runs beside them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from pytorch_lightning.plugins import TorchSyncBatchNorm
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.losses import SoftTargets
from kdlab.members import Frozen
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from tests.modules.cotraining import image_net
from tests.modules.tiny import digits, network, same, sgd, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))


def normed() -> nn.Sequential:
    """A network with dropout and with BatchNorm whose running statistics differ from the batch's."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 5))
    for _ in range(3):
        net(torch.randn(16, 4) + 1)
    return net


def outputs_of(teacher: Frozen, inputs: Tensor = X) -> Outputs:
    """The teacher's outputs in a training step."""
    return teacher(Batch(inputs, torch.zeros(len(inputs)).long(), progress=Progress(0, 0)), {})[teacher.name]


# The member

TRAINED: dict[str, Callable[[Frozen], object]] = {
    "itself": lambda teacher: teacher.train(),
    "around": lambda teacher: nn.ModuleList([teacher]).train(),
    "network": lambda teacher: teacher.network.train(),
    "parts": lambda teacher: [part.train() for part in teacher.network.modules()],
}


@pytest.mark.parametrize("how", TRAINED)
def test_stays_in_eval_mode_through_train(how: str) -> None:
    net = normed()
    expected, before = net.eval()(X), weights(net)
    teacher = Frozen(net.train(), fast=None)
    TRAINED[how](teacher)
    if how in ("itself", "around"):
        assert not any(part.training for part in net.modules())
    assert torch.equal(outputs_of(teacher).logits, expected)
    assert same(weights(net), before)
    assert not any(part.training for part in net.modules())


def test_outputs_and_weights_have_no_gradients() -> None:
    net = normed()
    teacher = Frozen(net)
    assert not any(weight.requires_grad for weight in net.parameters())
    net.requires_grad_(True)
    teacher.set_taps(["0"])
    outputs = outputs_of(teacher, X.clone().requires_grad_())
    assert not any(tensor.requires_grad for tensor in [*net.parameters(), outputs.logits, *outputs.layers])
    assert not outputs.logits.is_inference()  # a trainable embedding may keep it for its backward
    assert outputs.layers[0].shape == (6, 8)


def test_is_no_part_of_a_modules_tree() -> None:
    teacher = Frozen(normed())
    tree = nn.ModuleList([teacher])
    assert [*tree.modules()] == [tree, teacher]
    assert [*tree.parameters(), *tree.buffers(), *tree.state_dict()] == []


def test_batch_statistics_leave_the_running_ones_unchanged() -> None:
    net = normed()
    before = weights(net)
    logits = outputs_of(Frozen(net, batchnorm="batch")).logits
    hidden = net[0](X)
    scale = net[1].weight / (hidden.var(0, unbiased=False) + net[1].eps).sqrt()
    expected = net[4](((hidden - hidden.mean(0)) * scale + net[1].bias).relu())
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not torch.allclose(logits, outputs_of(Frozen(net)).logits, atol=1e-2)
    assert same(weights(net), before)
    assert net[1].track_running_stats
    assert not net[1].training


def test_norm_without_running_statistics_stays_without() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 5))
    assert torch.equal(outputs_of(Frozen(net, batchnorm="batch")).logits, net(X))
    assert not net[1].track_running_stats
    assert net[1].running_mean is None


def test_follows_device_and_dtype() -> None:
    net = normed()
    parent = nn.ModuleList([Frozen(net)])
    parent.double()
    floating = [tensor for tensor in net.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.float64}
    parent.to("meta")
    assert all(tensor.is_meta for tensor in [*net.parameters(), *net.buffers()])


# In a run


def distiller() -> Distiller:
    """A student and a teacher with BatchNorm, so that averages and conversions would show in the teacher."""
    knowledge = {"soft": Knowledge(SoftTargets(2.0), 0.5)}
    return Distiller(image_net(0), image_net(1), knowledge, optimizer=sgd)


def teacher_of(module: Distiller) -> nn.Module:
    assert module.teacher is not None
    (net,) = module.teacher.networks
    return net


CALLBACKS: dict[str, Callable[[], pl.Callback]] = {
    "SWA": lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=1),
    "EMA": lambda: EMAWeightAveraging(decay=0.5),
    "pruning": lambda: ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=False, verbose=0),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_callbacks_leave_the_teacher_unchanged(name: str, tmp_path: Path) -> None:
    module = distiller()
    before, student = weights(teacher_of(module)), weights(module.student)
    keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_epochs=1)
    run = trainer(3, enable_checkpointing=True, callbacks=[keep, CALLBACKS[name]()], limit_train_batches=2)
    run.fit(module, digits())
    assert same(weights(teacher_of(module)), before)
    assert not same(weights(module.student), student)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    tensors = {**checkpoint["state_dict"], **checkpoint.get("current_model_state", {})}
    assert {key.split(".")[0] for key in tensors} == {"student"}
    assert not any("teacher" in key for key in tensors)


def test_resume_with_weight_averaging_leaves_the_teacher_unchanged(tmp_path: Path) -> None:
    before = weights(teacher_of(distiller()))
    for epochs in (1, 2):
        module = distiller()
        keep = ModelCheckpoint(tmp_path, save_last=True, save_top_k=0, every_n_epochs=1)
        run = trainer(epochs, enable_checkpointing=True, callbacks=[keep, EMAWeightAveraging(decay=0.5)])
        path = tmp_path / "last.ckpt" if epochs > 1 else None
        run.fit(module, digits(train_size=64), ckpt_path=path, weights_only=False)
        assert run.current_epoch == epochs
        assert same(weights(teacher_of(module)), before)


def test_syncbatchnorm_conversion_skips_the_teacher() -> None:
    module, plugin = distiller(), TorchSyncBatchNorm()
    net = teacher_of(module)
    before, kinds = weights(net), [type(part) for part in net.modules()]
    plugin.apply(module)
    assert any(isinstance(part, nn.SyncBatchNorm) for part in module.student.modules())
    assert [type(part) for part in net.modules()] == kinds
    plugin.revert(module)
    assert [type(part) for part in net.modules()] == kinds
    assert not any(part.training for part in net.modules())
    assert same(weights(net), before)


def test_double_precision_only_widens_the_teacher() -> None:
    module = distiller()
    before = weights(teacher_of(module))
    trainer(max_steps=2, precision="64-true").fit(module, digits())
    after = weights(teacher_of(module))
    assert after["conv1.weight"].dtype == torch.float64
    assert all(torch.equal(after[key], value.to(after[key].dtype)) for key, value in before.items())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copied_modules_have_their_own_teacher(duplicate: Callable[[Distiller], Distiller]) -> None:
    module = distiller()
    copied = duplicate(module)
    net, other = teacher_of(module), teacher_of(copied)
    assert other is not net
    assert same(weights(other), weights(net))
    assert copied.teacher is not None
    assert copied.plan.members["teacher"] is copied.teacher.frozen[0]
    assert copied.plan.learners["student"].network is copied.student
    before = weights(module.student)
    trainer(max_steps=1).fit(copied, digits())
    assert same(weights(module.student), before)
    assert not same(weights(copied.student), before)
    assert same(weights(other), weights(net))


def test_checkpoint_loads_strictly_beside_any_teacher(tmp_path: Path) -> None:
    module = Distiller(network(), network(1), {"soft": Knowledge(SoftTargets(2.0))}, optimizer=sgd)
    run = trainer(max_steps=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path)])
    run.fit(module, digits())
    run.save_checkpoint(tmp_path / "end.ckpt")
    wider = network(2, (24,))
    loaded = Distiller.load_from_checkpoint(
        tmp_path / "end.ckpt", student=network(3), teacher=wider, knowledge={"soft": Knowledge(SoftTargets(2.0))}
    )
    assert same(weights(loaded.student), weights(module.student))
    assert same(weights(teacher_of(loaded)), weights(network(2, (24,))))


def test_evaluation_runs_all_of_a_teacher_read_by_layers() -> None:
    teacher = Frozen(normed())
    teacher.set_taps(["1"], only_layers=True)
    for _ in range(3):
        outputs_of(teacher)
    logits = teacher(Batch(X, torch.zeros(6).long()), {})["teacher"].logits
    torch.testing.assert_close(logits, teacher.network(X))
