"""Speed of a training in several settings of precision, memory format, compilation, data and batch size, measured."""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kdlab.config.lightning_cli import QUIET, build
from kdlab.config.messages import quietly
from kdlab.config.short_fit import Fit, short_fit
from kdlab.errors import InputError, refusal_in
from kdlab.members.bn_folding import IMAGES
from kdlab.members.fast_choice import fastest
from kdlab.members.fast_options import supports
from kdlab.modules.base import DistillationModule

PRECISION, LAST, COMPILE = "trainer.precision", "model.init_args.channels_last", "model.init_args.compile"
WORKERS, IN_MEMORY, BATCH = "data.init_args.num_workers", "data.init_args.in_memory", "data.init_args.batch_size"
Options = Mapping[str, Any]
"""Options of ``kdlab fit`` by their dotted names."""


@dataclass(eq=False)
class Setting:
    """A setting and its fits.

    Attributes:
        options: in which it differs from the recipe.
        refused: why it cannot be used; empty if it can.
        difference: the relative difference of its loss from the recipe's; ``None`` with another batch size.
    """

    options: dict[str, Any]
    fits: list[Fit] = field(default_factory=list)
    refused: str = ""
    difference: float | None = None

    @property
    def speed(self) -> float | None:
        """Return samples a second."""
        return 1 / statistics.median(fit.seconds for fit in self.fits) if self.fits else None

    @property
    def memory(self) -> float | None:
        """Return the peak memory of its fits."""
        return max((fit.memory for fit in self.fits if fit.memory is not None), default=None)


class Tuning:
    """Short fits of a recipe in several settings, each in alternation with the fastest one before.

    Args:
        arguments: of ``kdlab fit``.
        steps: timed steps of a fit.
        rounds: fits of a setting.
        tolerance: the largest relative difference of the loss after these steps from the recipe's.
        watch: called with each setting once it is measured.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        steps: int = 20,
        rounds: int = 3,
        tolerance: float = 0.05,
        watch: Callable[[Setting], None] = lambda setting: None,
    ) -> None:
        self.arguments, self.steps, self.rounds = list(arguments), steps, rounds
        self.tolerance, self.watch = tolerance, watch
        self.settings: list[Setting] = []
        self._data: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}

    def run(self, compile: bool = False, batch_size: bool = False) -> Setting:
        """Return the fastest setting; all that were tried are in ``settings``, the recipe as it is first.

        Args:
            compile: try ``compile`` too.
            batch_size: try larger batches too, which is another training.

        Raises:
            InputError: the recipe cannot be trained as it is.
        """
        with tempfile.TemporaryDirectory() as folder:
            self._choices = str(Path(folder) / "teacher_fast.json")
            recipe = Setting({})
            self.settings = [recipe]
            with quietly():
                self._fit({}, 1)  # what only the first fit of a process takes
                recipe.fits.append(self._fit({}, self.steps))
            best = self._fastest(recipe, self._layouts())
            if compile and not self._value(COMPILE):
                best = self._fastest(best, [{COMPILE: True}])
            best = self._fastest(best, self._loading())
            size = self._value(BATCH) if batch_size else None
            while size:
                size *= 2
                larger = self._fastest(best, [{BATCH: size}])
                best, size = larger, size if larger is not best else None
        return best

    @property
    def device(self) -> torch.device:
        """Return the device of the fits."""
        device: torch.device = self._facts["device"]
        return device

    def overlay(self, setting: Setting) -> dict[str, Any]:
        """Return a setting as a config to lay over the recipe: every option that was tried, with its value."""
        tried = dict.fromkeys(name for one in self.settings for name in one.options)
        config: dict[str, Any] = {}
        for name in tried or {PRECISION: None}:
            *path, last = name.split(".")
            part = config
            for key in path:
                part = part.setdefault(key, {})
            part[last] = setting.options.get(name, self._value(name))
        return config

    def _value(self, name: str) -> Any:
        """Return the recipe's own value of an option."""
        value = self._facts["config"]
        for key in name.split("."):
            value = (value or {}).get(key)
        return value

    def _layouts(self) -> list[dict[str, Any]]:
        """Return what may be changed of precision and memory format, and both together."""
        current = str(self._value(PRECISION))
        lower = ["bf16-mixed"] if supports("bf16", self.device) else []
        lower += ["16-mixed"] if self.device.type == "cuda" else []
        precisions = (
            [{}, *({PRECISION: name} for name in lower if name != current)] if current in ("32-true", "None") else [{}]
        )
        layouts: list[dict[str, Any]] = [{}]
        if self._facts["has_images"] and not self._value(LAST):
            layouts.append({LAST: True})
        return [{**layout, **precision} for precision in precisions for layout in layouts if layout or precision]

    def _loading(self) -> list[dict[str, Any]]:
        """Return what may be changed of how data that is streamed is loaded."""
        options = self._value("data.init_args") or {}
        if "num_workers" not in options or not self._facts["streams"]:
            return []
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        counts = sorted({0, cores // 2, cores} - {options["num_workers"]})
        return [{WORKERS: count} for count in counts] + [{IN_MEMORY: True}] * ("in_memory" in options)

    def _fastest(self, current: Setting, changes: Sequence[dict[str, Any]]) -> Setting:
        """Return the fastest of a setting and changes of it, by the rule of :func:`fastest`."""
        if not changes:
            return current
        others = [Setting({**current.options, **change}) for change in changes]
        self.settings += others
        start = len(current.fits)
        for number in range(self.rounds):
            row = [current, *others]
            for setting in row if number % 2 == 0 else row[::-1]:
                if not setting.refused:
                    self._measure(setting)
        times = [fit.seconds for fit in current.fits[start:]]
        ratios = [1.0]
        usable = [current, *(setting for setting in others if not setting.refused)]
        for setting in usable[1:]:
            ratios.append(statistics.median(fit.seconds / best for fit, best in zip(setting.fits, times, strict=True)))
        for setting in others:
            self.watch(setting)
        return usable[fastest(ratios)]

    def _measure(self, setting: Setting) -> None:
        """Add a fit to a setting, or why it is refused."""
        recipe = self.settings[0]
        try:
            with quietly():
                fit = self._fit(setting.options, self.steps)
        except Exception as error:
            if setting is recipe or len(setting.fits) >= self.rounds:  # it has worked before
                raise
            text = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(refusal_in(error) or error)
            setting.refused = (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            return
        setting.fits.append(fit)
        if BATCH in setting.options:
            return
        setting.difference = abs(fit.loss - recipe.fits[0].loss) / max(abs(recipe.fits[0].loss), 1e-12)
        if setting is not recipe and not setting.difference <= self.tolerance:  # nan too
            setting.refused = f"the loss differs by {100 * setting.difference:.1f} %"

    def _fit(self, options: Options, steps: int) -> Fit:
        """Train a few steps in a setting."""
        gc.collect()
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
        changes = [f"--{name}={text}" for name, text in texts.items() if name != BATCH]
        silent = [*QUIET, "--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=0"]
        cli = build([*self.arguments, *changes, *silent, *self._fixed()], run=False, save_config=False)
        module, trainer = cli.model, cli.trainer
        if not isinstance(module, DistillationModule):
            raise InputError(f"kdlab tune takes a config of a kdlab module, not of {type(module).__name__}.")
        if trainer.world_size > 1:
            raise InputError("kdlab tune measures one process: set trainer.devices to 1.", key="trainer.devices")
        data = self._shared(cli.datamodule, cli.resolved["data"], options.get(BATCH))
        fit = short_fit(trainer, module, data, steps)
        if not self._facts:
            has_images = any(isinstance(part, IMAGES) for net in module.learners.values() for part in net.modules())
            self._facts = {"config": cli.resolved, "device": trainer.strategy.root_device, "has_images": has_images}
            self._facts["streams"] = bool(getattr(data, "streams", True))  # of texts, workers make the batches
        return fit

    def _fixed(self) -> list[str]:
        """Return options of every fit: no cache, which the first fit would fill, and one choice of a timed teacher."""
        if not self._facts:
            return []
        model, fixed = self._facts["config"]["model"]["init_args"], list[str]()
        if model.get("teacher_cache"):
            fixed.append("--model.init_args.teacher_cache=null")
        if (model.get("teacher_fast") or {}).get("timed") is True:
            fixed.append(f"--model.init_args.teacher_fast.timed={self._choices}")
        return fixed

    def _shared(self, data: Any, config: Mapping[str, Any], batch_size: int | None) -> Any:
        """Return the data of a config, which fits with the same options share, so that it is read once."""
        key = json.dumps(config, sort_keys=True, default=str)
        data = self._data.setdefault(key, data)
        size = (config.get("init_args") or {}).get("batch_size")
        if size is not None:
            data.batch_size = batch_size or size
        return data
