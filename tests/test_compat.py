"""Every private name of PyTorch and Lightning that kdlab depends on still does what it is used for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from kdlab import compat
from tests.modules.tiny import distiller, pairs, trainer


def test_lightning_notes_the_running_hook() -> None:
    seen: list[Any] = []

    class Module(pl.LightningModule):
        def on_fit_start(self) -> None:
            seen.append(getattr(self, compat.CURRENT_HOOK))

    module = Module()
    module.trainer = trainer()
    pl.trainer.call._call_lightning_module_hook(module.trainer, "on_fit_start", pl_module=module)
    assert seen == ["on_fit_start"]
    assert compat.CURRENT_HOOK in vars(module)


def test_compiled_modules_are_recognized() -> None:
    plain, inside = nn.Linear(2, 2), nn.Linear(2, 2)
    assert not compat.is_compiled(plain)
    wrapped: Any = torch.compile(plain)
    assert compat.is_compiled(wrapped)
    assert compat.uncompiled(wrapped) is plain
    inside.compile()
    assert compat.is_compiled(inside)
    compat.reset_compiler()


def test_in_place_changes_are_counted() -> None:
    value = torch.zeros(2)
    before = compat.version_of(value)
    value.add_(1)
    assert compat.version_of(value) == before + 1


def test_lerp_moves_in_place_over_dtypes() -> None:
    targets = [torch.zeros(2, dtype=torch.float64), torch.ones(3)]
    compat.lerp_(targets, [torch.ones(2), torch.full((3,), 3.0)], 0.25)
    assert targets[0].tolist() == [0.25, 0.25]
    assert targets[1].tolist() == [1.5, 1.5, 1.5]


def test_convert_changes_parameters_and_buffers() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2))
    compat.convert(module, lambda x: x.double() if x.is_floating_point() else x)
    assert {value.dtype for value in module.state_dict().values()} == {torch.float64, torch.int64}
    compat.convert(module, lambda x: x.float() if x.is_floating_point() else x, recurse=False)
    assert module[0].weight.dtype is torch.float64


def test_forward_hooks_are_seen() -> None:
    module = nn.Linear(2, 2)
    assert not compat.has_hooks(module)
    handle = module.register_forward_hook(lambda *_: None)
    assert compat.has_hooks(module)
    handle.remove()
    module.register_forward_pre_hook(lambda *_: None)
    assert compat.has_hooks(module)


def test_batchnorm_is_the_base_of_all_batchnorms() -> None:
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, compat.BatchNorm)
    assert not issubclass(nn.GroupNorm, compat.BatchNorm)


def test_lazy_parameters_are_recognized() -> None:
    assert compat.is_lazy(nn.LazyLinear(2).weight)
    assert not compat.is_lazy(nn.Linear(2, 2).weight)


def test_dispatch_mode_sees_operations_with_their_leaves() -> None:
    seen: list[int] = []

    class Mode(compat.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(len(compat.tree_leaves((args, kwargs))))
            return func(*args, **(kwargs or {}))

    with Mode():
        torch.cat([torch.ones(1), torch.ones(1)])
    assert max(seen) >= 2


def test_cpu_support_is_a_flag() -> None:
    flags = [compat.cpu_supports(dtype) for dtype in (torch.bfloat16, torch.float16)]
    assert all(isinstance(flag, bool) for flag in flags)
    if not (info := Path("/proc/cpuinfo")).exists():
        return
    text = info.read_text()
    assert flags[0] == any(name in text for name in ("avx512_bf16", "amx_tile"))


def test_fused_step_checks_devices_once() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["fused"] = True
    compat.check_device_of_fused_step(optimizer)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert optimizer._need_device_dtype_check_for_fused is False  # type: ignore[attr-defined]


def test_ddp_ignores_named_buffers() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = nn.BatchNorm1d(2)
        compat.ignore_in_ddp(module, ["running_mean"])
        wrapped = DistributedDataParallel(module)
        assert wrapped.parameters_to_ignore == {"running_mean"}
    finally:
        torch.distributed.destroy_process_group()


def test_ddp_options_reach_the_wrapper() -> None:
    strategy = DDPStrategy(process_group_backend="gloo")
    compat.ddp_options(strategy)["find_unused_parameters"] = True
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}


def test_accumulation_is_known_within_a_step() -> None:
    seen: list[bool] = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer: Any, module: Any, optimizer: Any) -> None:
            seen.append(compat.is_accumulating(trainer))

        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen.append(compat.is_accumulating(trainer))

    trainer(accumulate_grad_batches=2, limit_train_batches=2, callbacks=[Watch()]).fit(distiller(), pairs())
    assert seen[0] is True
    assert seen[-1] is False


def test_training_loader_is_made_and_prepared_anew() -> None:
    run = trainer(strategy=DDPStrategy(process_group_backend="gloo"), devices=2)
    run.fit_loop._data_source.instance = pairs()
    loader = compat.train_dataloader(run)
    assert isinstance(loader, DataLoader)
    prepared = compat.process_train_dataloader(run, loader)
    assert isinstance(prepared.sampler, DistributedSampler)


def test_transfer_runs_the_hooks_of_the_data() -> None:
    class Module(pl.LightningModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch + 1

    module = Module()  # without a Trainer, whose data may have hooks too
    assert compat.transfer_batch(module, torch.zeros(1), torch.device("cpu")).item() == 1


def test_workers_of_a_loader_can_be_stopped() -> None:
    iterator = iter(DataLoader(list(range(4)), num_workers=1))
    next(iterator)
    (worker,) = iterator._workers  # type: ignore[attr-defined]
    compat.stop_workers(iterator)
    assert not worker.is_alive()
