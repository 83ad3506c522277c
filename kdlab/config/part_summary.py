"""Parts of a module with their parameters, as rows of a table and as one line at the start of a fit."""

from __future__ import annotations

from collections.abc import Iterator

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from kdlab.members.member import NetworkMember
from kdlab.modules.base import DistillationModule


def parts(module: DistillationModule) -> Iterator[tuple[str, str, int, int]]:
    """Yield every part with its class, its parameters and how many of them are trained."""
    rows: list[tuple[str, str, nn.Module]] = [(name, type(x).__name__, x) for name, x in module.learners.items()]
    rows += [(f"losses.{name}", type(x.loss).__name__, module.losses[name]) for name, x in module.knowledge.items()]
    for name, member in module.plan.members.items():
        if name not in module.learners:
            role = "frozen" if member.is_frozen else type(member).__name__  # such as a copy, EMA
            networks = member.networks_of(name) if isinstance(member, NetworkMember) else ()
            rows += [(name, f"{type(network).__name__} ({role})", network) for network, _ in networks]
            if not networks and [*member.parameters()]:
                rows.append((name, type(member).__name__, member))
    trainable = {id(parameter) for parameter in module.trainable().values()}
    for name, kind, part in rows:
        sizes = {id(parameter): parameter.numel() for parameter in part.parameters()}
        yield name, kind, sum(sizes.values()), sum(size for key, size in sizes.items() if key in trainable)


class PartSummary(pl.Callback):
    """Logs the parts that have parameters, in one line; Lightning's table shows neither teachers nor their sizes."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log."""
        assert isinstance(pl_module, DistillationModule)
        shown = []
        for name, kind, size, trained in parts(pl_module):
            partly = f", {trained:,} of them trained" if 0 < trained < size else ""
            if size:
                shown.append(f"{name} {kind} {size:,}{partly}")
        rank_zero_info(f"Parameters: {'; '.join(shown)}.")
