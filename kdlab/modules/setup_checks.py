"""What a module arranges before a training: names, views from the data, what DDP must know, a voice for the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.knowledge import Knowledge
from kdlab.teaching.sample_bank import REMEMBERED

if TYPE_CHECKING:
    from kdlab.modules.base import DistillationModule


def ask(module: DistillationModule) -> None:
    """Have the data make the views that the teaching needs, and refuse what taking turns cannot be joined with."""
    teaching, data = module.teaching, getattr(module.trainer, "datamodule", None)
    if isinstance(data, ImageData):
        data.provide(teaching.asks(list(module.learners)) if teaching else {})
    if teaching is None:
        return
    if teaching.turns and module.trainer.accumulate_grad_batches > 1:
        raise InputError(
            "Learners that are updated one after another cannot gather gradients over several batches: drop "
            "trainer.accumulate_grad_batches, or update them at once."
        )


def tell_ddp(module: DistillationModule) -> None:
    """Let DDP expect parameters without gradient where there are some: else it stops at the second step. What the
    teaching remembers it brings together itself.
    """
    strategy, found = module.trainer.strategy, module.rehearsal
    own = [name for name, _ in module.named_buffers() if name.startswith("teaching.") and name.endswith(REMEMBERED)]
    module._ddp_params_and_buffers_to_ignore = own  # torch's name
    if isinstance(strategy, DDPStrategy) and module.teaching and module.teaching.turns:
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    if isinstance(strategy, DDPStrategy) and found and (names := found.idle + found.resting):
        strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
        parts = ", ".join(dict.fromkeys(name.rpartition(".")[0] for name in names))
        rank_zero_info(f"DDP looks for unused parameters at each step: at times there is no gradient for {parts}.")


def be_heard(rank: int) -> None:
    """Let what the losses say of themselves be seen, once, unless the user has arranged for it."""
    log = logging.getLogger("kdlab")
    if not log.handlers and not logging.root.handlers:
        log.addHandler(logging.StreamHandler())
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def check_names(knowledge: Mapping[str, Knowledge]) -> None:
    """Refuse names that cannot be log keys and checkpoint keys, and one knowledge under two names."""
    owners: dict[int, str] = {}
    for name, each in knowledge.items():
        taken = name in ("task", "total") or name.endswith("_weighted") or hasattr(nn.ModuleDict, name)
        if not name.isidentifier() or taken:
            raise InputError(
                f"A knowledge's name must be a plain word other than 'task', 'total', '..._weighted' and the methods "
                f"of a dict, not {name!r}."
            )
        if (other := owners.setdefault(id(each), name)) != name:
            raise InputError(f"Knowledge {other!r} and {name!r} are one object: make one for each name.")
