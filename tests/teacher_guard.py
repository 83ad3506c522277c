"""Guards for every fit of the test suite: frozen teachers stay as they are, and what is sized is sized early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from kdlab.members import Frozen
from kdlab.modules.base import DistillationModule
from kdlab.modules.early_setup import EarlySetup

STATES = ("state_dict", "current_model_state", "averaging_state")
"""Parts of a checkpoint that may hold tensors of the module; the last two are those of weight averaging."""


def frozen_networks(module: DistillationModule) -> list[nn.Module]:
    return [member.network for member in module.plan.frozen if isinstance(member, Frozen)]


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def bits(value: Tensor, dtype: torch.dtype) -> bytes:
    """The bytes of a tensor in the dtype to which the Trainer moved it."""
    return value.detach().cpu().to(dtype).contiguous().flatten().view(torch.uint8).numpy().tobytes()


def moved(network: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Names of tensors with other bits than before, of parts in train mode, of weights with gradient."""
    after = tensors_of(network)
    names = [name for name in {**before, **after} if name not in before or name not in after]
    names += [n for n, x in before.items() if n in after and bits(x, after[n].dtype) != bits(after[n], after[n].dtype)]
    names += [f"{name} (train mode)" for name, part in network.named_modules() if part.training]
    return names + [f"{name} (gradient)" for name, weight in network.named_parameters() if weight.requires_grad]


@contextmanager
def unchanged_teachers(model: Any) -> Iterator[None]:
    """Compare the frozen teachers of a module before and after."""
    networks = frozen_networks(model) if isinstance(model, DistillationModule) else []
    before = [{name: value.detach().clone() for name, value in tensors_of(each).items()} for each in networks]
    yield
    changes = [name for each, old in zip(networks, before, strict=True) for name in moved(each, old)]
    assert not changes, f"a fit changed the frozen teacher: {changes}"


def check_checkpoint(module: Any, checkpoint: dict[str, Any]) -> None:
    """A checkpoint holds tensors of the module's tree alone, in which there is no teacher."""
    if not isinstance(module, DistillationModule):
        return
    parts = {id(part) for network in frozen_networks(module) for part in network.modules()}
    weights = {id(weight) for network in frozen_networks(module) for weight in tensors_of(network).values()}
    assert not parts & {id(part) for part in module.modules()}
    assert not weights & {id(weight) for weight in tensors_of(module).values()}
    tree = {name for name, _ in module.named_modules()}
    keys = [key for state in STATES for key in checkpoint.get(state, {}) if not key.startswith("deployed.")]
    foreign = [key for key in keys if key.rpartition(".")[0] not in tree]
    assert not foreign, f"a checkpoint holds tensors that are no part of the module: {foreign}"


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors_of(module).items()}


def install(patch: pytest.MonkeyPatch) -> None:
    """Guard every fit and every checkpoint of this process."""
    fit, save, setup = pl.Trainer._fit_impl, Strategy.save_checkpoint, EarlySetup.setup
    sized: dict[int, dict[str, tuple[int, ...]]] = {}

    def guarded_fit(trainer: Any, model: Any, *args: Any, **options: Any) -> None:
        with unchanged_teachers(model):
            fit(trainer, model, *args, **options)
        early = sized.pop(id(model), None)
        if early is not None and not any(isinstance(each, ModelPruning) for each in trainer.callbacks):
            assert shapes(model) == early, "a part was sized or added after the dry run, where SWA and EMA copy"

    def guarded_save(strategy: Any, checkpoint: dict[str, Any], *args: Any, **options: Any) -> None:
        check_checkpoint(strategy.lightning_module, checkpoint)
        save(strategy, checkpoint, *args, **options)

    def guarded_setup(callback: Any, trainer: Any, module: Any, stage: str) -> None:
        setup(callback, trainer, module, stage)
        if stage == "fit":
            sized[id(module)] = shapes(module)

    patch.setattr(pl.Trainer, "_fit_impl", guarded_fit)  # the CLI reads the signature of fit
    patch.setattr(Strategy, "save_checkpoint", guarded_save)
    patch.setattr(EarlySetup, "setup", guarded_setup)
