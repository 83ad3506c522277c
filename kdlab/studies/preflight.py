"""Checks of a study before anything is trained: whether its configs work, their time and memory."""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import nn

import kdlab
from kdlab.config.class_paths import instantiate
from kdlab.config.lightning_cli import QUIET_TRAINER, build, resolve
from kdlab.config.messages import quietly
from kdlab.errors import InputError, refusal_in
from kdlab.files import read_json, write_json
from kdlab.models import load_weights
from kdlab.modules.base import DistillationModule
from kdlab.modules.memory_estimate import memory_of
from kdlab.modules.teacher_choice import without_timing
from kdlab.studies.grid import seeded
from kdlab.studies.run_id import code_of, digest, of_config
from kdlab.studies.study import Study

STAND_IN = f"{__name__}.stand_in"
SAMPLES = 32
"""Samples in the batches of a trial; its time is scaled to the recipe's batch."""
QUICK = 0.1
"""Seconds: a quicker step of few samples is measured again with the whole batch, as most of its time may be fixed."""
STEPS = {"max_epochs": 2, "max_steps": -1, "limit_train_batches": 4, "reload_dataloaders_every_n_epochs": 1}
TRIAL = {**QUIET_TRAINER, **STEPS, "limit_val_batches": 0, "num_sanity_val_steps": 0}
"""Options of the Trainer of a trial."""


class Estimate(NamedTuple):
    """Time and memory of a run.

    Attributes:
        seconds: of one epoch.
        memory: bytes of weights, gradients, optimizer and activations of one process.
        fixed: seconds before the first epoch: reading the data, dry run.
    """

    seconds: float
    memory: float
    fixed: float


class Resolved:
    """Configs by arguments, with a file that remembers those of the same arguments, files and code."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, read_json(path) or {}
        self.code = max(file.stat().st_mtime_ns for file in Path(kdlab.__file__).parent.rglob("*.py"))

    def __call__(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Return the config."""
        files = [argument.removeprefix("--config=") for argument in arguments if argument.startswith("--config=")]
        key = digest(list(arguments), [Path(file).read_text() for file in files], self.code)
        entry = self.known.get(key)
        if entry is None or entry["code"] != _code(entry["config"]):  # defaults of a user's own class may have changed
            config = resolve(arguments)
            entry = self.known[key] = {"config": config, "code": _code(config)}
        return copy.deepcopy(entry["config"])

    def close(self) -> None:
        """Write the file."""
        write_json(self.path, self.known)


def _code(config: dict[str, Any]) -> str | None:
    try:
        return digest(sorted(code_of(config)))
    except InputError:  # something that it names is gone: the parser reports it
        return None


class Trials:
    """Data that is read once, and trials of configs on it, with a file that remembers those that went well."""

    def __init__(self, path: Path) -> None:
        self.path, self.known = path, read_json(path) or {}
        self._data: dict[str, pl.LightningDataModule] = {}
        self._reading: dict[int, float] = {}  # seconds, by the identity of the data

    def data(self, config: Mapping[str, Any]) -> pl.LightningDataModule:
        """Return the data of a config, read, whatever its seed; an :class:`InputError` if it cannot be."""
        options = copy.deepcopy(dict(config["data"]))
        (options.get("init_args") or {}).pop("seed", None)
        key = digest(options)
        if key not in self._data:
            before, data = time.perf_counter(), instantiate(options)
            assert isinstance(data, pl.LightningDataModule)
            data.prepare_data()
            data.setup("fit")
            self._data[key], self._reading[id(data)] = data, time.perf_counter() - before
        return self._data[key]

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        """Return the hash of all images and labels; "unknown" of data without ``content``."""
        content = getattr(self.data(config), "content", None)
        return str(content()) if callable(content) else "unknown"

    def classes(self, config: Mapping[str, Any], build: Mapping[str, Any]) -> int | None:
        """Return a network's number of logits for a sample of the data; ``None`` where it cannot be known."""
        shape = getattr(self.data(config), "shape", None)
        if shape is None:
            return None
        options = {name: value for name, value in (build.get("init_args") or {}).items() if name != "weights"}
        network = instantiate({**build, "init_args": options})
        network.eval()
        with torch.no_grad():
            logits = network(torch.zeros(1, *shape))
        return int(logits.shape[-1]) if isinstance(logits, torch.Tensor) else None

    def estimate(self, config: Mapping[str, Any]) -> Estimate:
        """Set a config up, take a few steps on few samples and measure; an :class:`InputError` if it cannot work."""
        key = of_config(seeded(config, 0, fixed_data=False))
        if "fixed" not in self.known.get(key, {}):  # tried, and by this version
            self.known[key] = self._tried(config)._asdict()
            gc.collect()  # trainer and module refer to each other, and a study has hundreds
            write_json(self.path, self.known)
        return Estimate(**self.known[key])

    def _tried(self, config: Mapping[str, Any]) -> Estimate:
        data: Any = self.data(config)
        whole, before = getattr(data, "batch_size", None), time.perf_counter()
        with quietly():
            cli = build(untrained(config), run=False, save_config=False)
            few = min(whole, SAMPLES * cli.trainer.world_size) if whole is not None else None
            watch = _Watch(data, few, whole)
            cli.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
            try:
                without_timing(cli.model)
                if few is not None:
                    data.batch_size = few
                cli.trainer.fit(cli.model, datamodule=data)
            except Exception as error:
                raise refusal_in(error) or InputError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
            finally:
                if whole is not None:
                    data.batch_size = whole
                data.trainer = None
        size = getattr(data, "sizes", {}).get("train", 0)
        batches = math.ceil(size / whole) if whole else 0
        fixed = self._reading[id(data)] + watch.ready - before
        return Estimate(batches * watch.step(), watch.memory, fixed)


class _Watch(pl.Callback):
    """Measures the quickest step but the first, first with ``few`` samples, then with the recipe's ``whole`` batch."""

    def __init__(self, data: Any, few: int | None, whole: int | None) -> None:
        self.data, self.few, self.whole, self.memory, self._since = data, few, whole, 0.0, 0.0
        self.steps: list[float] = []
        self.ready = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ready = time.perf_counter()
        if isinstance(pl_module, DistillationModule):
            self.memory = sum(memory_of(pl_module, self.whole).values())

    def on_train_batch_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self._since)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.few == self.whole or self._quickest() > QUICK:
            trainer.should_stop = True
        else:  # the loader is created anew for the next epoch
            self.data.batch_size = self.few = self.whole
            self.steps.clear()

    def step(self) -> float:
        """Return the seconds of a step on a whole batch."""
        return self._quickest() * (self.whole / self.few if self.whole and self.few else 1.0)

    def _quickest(self) -> float:
        return min(self.steps[1:] or self.steps, default=0.0)  # the first allocates what the others reuse


def check_networks(study: Study, trials: Trials, config: Mapping[str, Any], options: Mapping[str, Path]) -> None:
    """Build every network, compare the classes of each pair, and load the weights of teachers not trained here.

    Args:
        study: the study.
        trials: to read the data.
        config: of any run.
        options: weights of the command line, by the teacher's name.

    Raises:
        InputError: a network or a file does not fit; with the line of the study.
    """
    error, counts = study.source.error, dict[str, int | None]()
    roles = [several for pair in study.pairs for several in pair.roles.values()]
    networks = {network.name: network for several in roles for network in several.networks}
    for name, network in networks.items():
        try:
            counts[name] = trials.classes(config, network.build)
        except (RuntimeError, TypeError, ValueError) as cause:
            text = f"{name} cannot be used: {str(cause).splitlines()[0]}"
            raise error(("networks", name), text) from cause
    for pair in study.pairs:
        names = [network.name for several in pair.roles.values() for network in several.networks]
        if len({counts[name] for name in names} - {None}) > 1:
            listed = ", ".join(f"{name} has {counts[name]}" for name in dict.fromkeys(names))
            raise error(pair.part.place, f"the networks of {pair.name} have different classes: {listed}.")
    teachers = [pair.roles["teacher"] for pair in study.pairs if "teacher" in pair.roles]
    for name in dict.fromkeys(network.name for teacher in teachers for network in teacher.networks):
        try:
            if name in study.weights:
                load_weights(instantiate(networks[name].build), study.weights[name])
        except InputError as cause:
            text = f"--teacher {name}: {cause}"
            raise InputError(text) if name in options else error(("teachers", "weights", name), str(cause)) from cause


def stand_in(network: nn.Module) -> nn.Module:
    """Return a teacher of a trial, which has not the weights of its training yet, as if it had them."""
    if hasattr(network, "new_parameters"):
        network.new_parameters = {}  # type: ignore[assignment]
    return network


def untrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a trial: randomly initialized teachers, which may not be trained yet, and no cache."""

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(inner) for inner in value]
        if not isinstance(value, dict):
            return value
        options = value.get("init_args") or {}
        if str(options.get("weights", "")).startswith(("run:", "file:")):
            return {"class_path": STAND_IN, "init_args": {"network": bare(options["network"])}}
        return {name: None if name == "teacher_cache" else bare(inner) for name, inner in value.items()}

    return {**config, "model": bare(config["model"]), "trainer": {**config["trainer"], **TRIAL}}
