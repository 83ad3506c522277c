"""Setup before every other callback's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl

from kdlab.knowledge import pair_of, set_taps
from kdlab.members.stored import Stored
from kdlab.members.teacher_cache import Cached
from kdlab.modules.first_batch import every_batch
from kdlab.modules.monitors import MonitorCheck
from kdlab.modules.teacher_choice import choose_teachers
from kdlab.schedules import Progress


class EarlySetup(pl.Callback):
    """Prepares a DistillationModule before other callbacks: some copy the module (SWA, EMA), some train (finders)."""

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Run the dry run; take the first place, which Lightning gives to finders."""
        trainer.callbacks = [self, *(one for one in trainer.callbacks if one is not self)]  # type: ignore[attr-defined]
        pl_module.prepare(stage)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Agree on the seed of all processes, tap replaced modules, choose how teachers run, precompute for losses."""
        pl_module.length.check(trainer)
        pl_module.agree_on_seed()
        set_taps(pl_module.plan, pl_module.knowledge, pl_module.task)
        choose_teachers(pl_module)
        getattr(pl_module, "open_cache", lambda: None)()
        owners = pl_module.plan.owners
        for knowledge in pl_module.knowledge.values():
            for pair, teacher in {pair_of(edge): edge.teacher for edge, _ in knowledge.edges}.items():
                for precompute in knowledge.parts("precompute", pair):
                    # A file answers in training alone, and a cache keeps what it gives in training.
                    is_kept = isinstance(owners[teacher], Stored | Cached)
                    progress = Progress(trainer.current_epoch, 0) if is_kept else None
                    batches = (batch._replace(progress=progress) for batch in every_batch(pl_module))
                    seen = ((pl_module.observe(b, pl_module.plan.frozen), b) for b in batches)
                    precompute((outputs[teacher], batch.target) for outputs, batch in seen)
        untrained = {id(module) for module in (pl_module.teaching.modules() if pl_module.teaching else ())}
        if all(module.training or id(module) in untrained for module in pl_module.modules()):
            # Lightning would warn of untrained copies in eval mode, which is meant.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the length again, now that the learning rate of a run that is resumed is restored; then leave."""
        pl_module.length.check(trainer)
        pl_module.length.has_begun = True
        # Lightning calls six hooks of every callback in a step, at about 3 us a hook.
        idle = [one for one in pl_module.knowledge.values() if not one.follows_steps]
        drop_callbacks(trainer, lambda one: isinstance(one, EarlySetup | MonitorCheck) or one in idle)

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the Trainer, whose next module may be of another kind."""
        drop_callbacks(trainer, lambda one: one is self)


def drop_callbacks(trainer: pl.Trainer, drops: Callable[[pl.Callback], bool]) -> None:
    """Take callbacks out of the Trainer; hooks that run now still reach them."""
    trainer.callbacks = [one for one in trainer.callbacks if not drops(one)]  # type: ignore[attr-defined]


def restore_callbacks(module: Any, callbacks: Sequence[pl.Callback]) -> None:
    """Put the callbacks of a step back into the Trainer, which a finder of Lightning drops."""
    present = module.trainer.callbacks
    for callback in [*(one for one in module.knowledge.values() if one.follows_steps), *callbacks]:
        if callback not in present:
            present.append(callback)
            callback.on_train_start(module.trainer, module)
