"""What has to be known of a study's configs before anything is trained: whether they work, their time and memory."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import logging
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

import kdlab
from kdlab.config.first_step import QUIET
from kdlab.config.lightning_cli import KdlabCLI, build
from kdlab.errors import InputError, refusal_in
from kdlab.modules.base import DistillationModule
from kdlab.modules.memory_estimate import memory_of
from kdlab.studies.files import read_json, write_json
from kdlab.studies.grid import seeded
from kdlab.studies.run_id import code_of, digest, named, of_config

SAMPLES = 32
"""In the batches of a trial; its time is scaled to the recipe's batch."""
QUICK = 0.1
"""Seconds: a step of few samples that takes less is measured again with the whole batch, as most of it may be fixed."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: of one epoch of training.
        memory: bytes, weights, gradients, optimiser and activations of one process.
    """

    seconds: float
    memory: float


class _Parsed(KdlabCLI):
    def instantiate_classes(self) -> None:
        """Nothing is built: the config alone is wanted."""


def resolve(arguments: Sequence[str]) -> dict[str, Any]:
    """The whole config that arguments of ``kdlab fit`` stand for, with every default; nothing is built.

    Raises:
        InputError: it does not fit.
    """
    with _quietly():
        cli = build(arguments, run=False, save_config=False, kind=_Parsed)
    config: dict[str, Any] = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))
    return config


class Resolved:
    """:func:`resolve` that remembers, in a file, what the same arguments, files and code gave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = read_json(path) or {}
        kdlab_files = Path(kdlab.__file__).parent.rglob("*.py")
        self.code = max(each.stat().st_mtime_ns for each in kdlab_files)

    def __call__(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The config."""
        files = [each.removeprefix("--config=") for each in arguments if each.startswith("--config=")]
        key = digest(list(arguments), [Path(each).read_text() for each in files], self.code)
        kept = self.known.get(key)
        if kept is None or kept["code"] != _code(kept["config"]):  # defaults of a user's own class may have changed
            config = resolve(arguments)
            kept = self.known[key] = {"config": config, "code": _code(config)}
        return copy.deepcopy(kept["config"])

    def keep(self) -> None:
        """Write the file."""
        write_json(self.path, self.known)


def _code(config: dict[str, Any]) -> str | None:
    try:
        return digest(sorted({*code_of(config)}))
    except InputError:  # something that it names is gone: the parser says so
        return None


class Trials:
    """Data that is read once, and trials of configs on it.

    Args:
        path: a file that remembers the trials that went well, by config and data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known = read_json(path) or {}
        self._data: dict[str, pl.LightningDataModule] = {}

    def data(self, config: Mapping[str, Any]) -> pl.LightningDataModule:
        """The data of a config, read; its seed is of no matter here.

        Raises:
            InputError: it cannot be read.
        """
        said = copy.deepcopy(dict(config["data"]))
        (said.get("init_args") or {}).pop("seed", None)
        key = digest(said)
        if key not in self._data:
            data = made(said)
            assert isinstance(data, pl.LightningDataModule)
            data.prepare_data()
            data.setup("fit")
            self._data[key] = data
        return self._data[key]

    def fingerprint(self, config: Mapping[str, Any]) -> str:
        """The hash of all images and labels; "unknown" of data that does not say."""
        content = getattr(self.data(config), "content", None)
        return str(content()) if callable(content) else "unknown"

    def classes(self, config: Mapping[str, Any], build: Mapping[str, Any]) -> int | None:
        """How many logits a network gives of a sample of the data; ``None`` where data or network do not tell."""
        shape = getattr(self.data(config), "shape", None)
        if shape is None:
            return None
        options = {name: each for name, each in (build.get("init_args") or {}).items() if name != "weights"}
        network = made({**build, "init_args": options})
        network.eval()
        with torch.no_grad():
            given = network(torch.zeros(1, *shape))
        return int(given.shape[-1]) if isinstance(given, torch.Tensor) else None

    def estimate(self, config: Mapping[str, Any]) -> Estimate:
        """Set a config up, take a few steps on few samples and measure; nothing is written.

        Raises:
            InputError: it cannot work.
        """
        key = of_config(seeded(config, 0, fixed_data=False))
        if key not in self.known:
            self.known[key] = asdict(self._tried(config))
            gc.collect()  # trainer and module hold each other, and a study has hundreds
            write_json(self.path, self.known)
        return Estimate(**self.known[key])

    def forget(self) -> None:
        """Give the memory of the data back: the runs have processes of their own."""
        self._data.clear()

    def _tried(self, config: Mapping[str, Any]) -> Estimate:
        data: Any = self.data(config)
        whole = getattr(data, "batch_size", None)
        text = f"--config={yaml.safe_dump(_untaught(dict(config)))}"
        short = ["--trainer.max_epochs=2", "--trainer.max_steps=-1", "--trainer.limit_train_batches=4"]
        short += ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
        short += ["--trainer.reload_dataloaders_every_n_epochs=1"]
        with _quietly():
            cli = build([text, *QUIET, *short], run=False, save_config=False)
            module = cli.model
            few = min(whole, SAMPLES * cli.trainer.world_size) if whole is not None else None
            watch = _Watch(data, few, whole)
            cli.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
            try:
                if few is not None:
                    data.batch_size = few
                cli.trainer.fit(module, datamodule=data)
            except Exception as error:
                raise refusal_in(error) or InputError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
            finally:
                if whole is not None:
                    data.batch_size = whole
                data.trainer = None
        size = getattr(data, "sizes", {}).get("train", 0)
        batches = math.ceil(size / whole) if whole else 0
        return Estimate(batches * watch.step(), watch.memory)


class _Watch(pl.Callback):
    """Times the quickest step but the first, which makes room for what the others reuse.

    Args:
        data: which has few samples in a batch now.
        few: how many, of all processes.
        whole: how many there will be.
    """

    def __init__(self, data: Any, few: int | None, whole: int | None) -> None:
        self.data, self.few, self.whole, self.memory, self._since = data, few, whole, 0.0, 0.0
        self.steps: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, DistillationModule):
            self.memory = sum(memory_of(pl_module, self.whole).values())

    def on_train_batch_start(self, *_: Any) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self._since)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.few == self.whole or self._quickest() > QUICK:
            trainer.should_stop = True
        else:  # the loader is made anew for the next epoch
            self.data.batch_size = self.few = self.whole
            self.steps.clear()

    def step(self) -> float:
        """Of a whole batch, in seconds."""
        return self._quickest() * (self.whole / self.few if self.whole and self.few else 1.0)

    def _quickest(self) -> float:
        return min(self.steps[1:] or self.steps, default=0.0)


def made(said: Mapping[str, Any]) -> Any:
    """The object that a class path and its arguments, class paths themselves or plain values, name."""
    found = named(str(said["class_path"]))
    return found(**{name: _made_inside(each) for name, each in (said.get("init_args") or {}).items()})


def _made_inside(value: Any) -> Any:
    if isinstance(value, Mapping):
        if "class_path" in value:
            return made(value)
        return {name: _made_inside(each) for name, each in value.items()}
    return [_made_inside(each) for each in value] if isinstance(value, list) else value


def _untaught(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose teachers, which may not be trained yet, have the weights that they were born with; no cache."""
    config = copy.deepcopy(config)
    options = config["model"].get("init_args") or {}
    if options.get("teacher_cache") is not None:
        options["teacher_cache"] = None

    def bare(value: Any) -> Any:
        if isinstance(value, list):
            return [bare(each) for each in value]
        if not isinstance(value, dict):
            return value
        inside = value.get("init_args") or {}
        if str(inside.get("weights", "")).startswith(("run:", "file:")):
            return bare(inside["network"])
        return {name: bare(each) for name, each in value.items()}

    config["model"] = bare(config["model"])
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without Lightning's notes, which would be there once for each config."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
