"""Private names of PyTorch and Lightning that kdlab depends on, each in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # the base class of all BatchNorms
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["CURRENT_HOOK", "BatchNorm", "TorchDispatchMode", "is_lazy", "tree_leaves"]

CURRENT_HOOK = "_current_fx_name"
"""The attribute in which a LightningModule notes the hook that runs, some 40 times a step."""

version_of: Callable[[Tensor], int] = attrgetter("_version")
"""Returns the counter of in-place changes of a tensor."""


def is_compiled(module: nn.Module) -> bool:
    """Return whether this very module was given to ``torch.compile``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that a wrapper of ``torch.compile`` holds, or the module itself."""
    original: nn.Module = getattr(module, "_orig_mod", module)
    return original


def reset_compiler() -> None:
    """Drop all compiled code."""
    torch._dynamo.reset()


def lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """Move each target to ``target + weight * (source - target)`` in place, in one kernel where there is one."""
    torch._foreach_lerp_(list(targets), [s.to(t.dtype) for s, t in zip(sources, targets, strict=True)], weight)


def convert(module: nn.Module, fn: Any, recurse: bool = True) -> None:
    """Apply ``fn`` to the parameters and buffers of a module in place, as ``module.to`` does."""
    module._apply(fn, recurse)  # type: ignore[no-untyped-call]


def has_hooks(module: nn.Module) -> bool:
    """Return whether a forward hook is registered on this very module."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def cpu_supports(dtype: torch.dtype) -> bool:
    """Return whether this processor has instructions for bfloat16 or float16."""
    if dtype is torch.float16:
        return bool(torch.cpu._is_amx_fp16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def check_device_of_fused_step(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer whose groups were switched to ``fused`` check devices and dtypes at its next step."""
    optimizer._need_device_dtype_check_for_fused = True  # type: ignore[attr-defined]


def ignore_in_ddp(module: nn.Module, names: Sequence[str]) -> None:
    """Exclude parameters and buffers, by name, from the broadcasts of DistributedDataParallel."""
    module._ddp_params_and_buffers_to_ignore = list(names)  # type: ignore[assignment]


ddp_options: Callable[[Any], dict[str, Any]] = attrgetter("_ddp_kwargs")
"""Returns the keyword arguments with which a DDPStrategy wraps the module; they can be changed."""


wandb_options: Callable[[Any], dict[str, Any]] = attrgetter("_wandb_init")
"""Returns the keyword arguments with which a WandbLogger starts its run; they can be changed until then."""


def is_accumulating(trainer: Any) -> bool:
    """Return whether the optimizer takes no step after the batch that runs."""
    return bool(trainer.fit_loop._should_accumulate())


def pending_row(trainer: Any) -> tuple[dict[str, float], int] | None:
    """Return the values, and their step, that the Trainer logs after the training hook that runs now, if it does."""
    connector, loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
    at_batch_end = connector._first_loop_iter is not None
    if not trainer.training or (at_batch_end and (is_accumulating(trainer) or not connector.should_update_logs)):
        return None
    values = {name: float(value) for name, value in connector.metrics["log"].items()}
    step = loop._batches_that_stepped - (not at_batch_end)  # an epoch's values count for its last step
    return ({**values, "epoch": trainer.current_epoch}, step) if values else None


def count_steps(trainer: Any) -> None:
    """Log an epoch at the right step: in a run with ``max_steps``, resumed at an epoch's end, it is one too high."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def train_dataloader(trainer: Any) -> Any:
    """Return what the training data yields: a loader or a collection of them, made anew."""
    return trainer.fit_loop._data_source.dataloader()


def process_train_dataloader(trainer: Any, loader: Any) -> Any:
    """Return a training loader prepared as the Trainer does: with a sampler for each process, in the order set."""
    from pytorch_lightning.trainer.connectors.data_connector import _process_dataloader
    from pytorch_lightning.trainer.states import RunningStage, TrainerFn

    return _process_dataloader(trainer, TrainerFn.FITTING, RunningStage.TRAINING, loader)


def transfer_batch(module: Any, batch: Any, device: torch.device) -> Any:
    """Return a batch moved to a device, through the transfer hooks of module and data."""
    return module._apply_batch_transfer_handler(batch, device=device)


def stop_workers(iterator: Any) -> None:
    """End the worker processes of a DataLoader's iterator."""
    iterator._shutdown_workers()


def has_version(logger: Any) -> bool:
    """Return whether the version of a logger is chosen, or was read once; else it is the next free one."""
    return logger._version is not None


def next_version(logger: Any) -> None:
    """Let a logger choose the next free version."""
    logger._version = None


def shorten_help(most: int) -> None:
    """Let the help of jsonargparse list the subclasses that an option takes only where there are at most ``most``."""
    from jsonargparse._typehints import ActionTypeHint, get_all_subclass_paths

    def extra_help(action: Any) -> str:
        paths = get_all_subclass_paths(action._typehint, closed_types=False)
        if len(paths) > most:
            return ", any by class path"
        return f", known subclasses: {', '.join(paths)}" if paths else ""

    ActionTypeHint.extra_help = extra_help  # type: ignore[method-assign]
