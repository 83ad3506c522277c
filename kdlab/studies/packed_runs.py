"""How many runs of a study happen at once on one device: measured, and refused where it cannot work."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from kdlab.config.lightning_cli import QUIET_TRAINER, build
from kdlab.errors import InputError
from kdlab.files import read_json, write_json
from kdlab.studies.launchers import become, end, forked, processors, threads_of
from kdlab.studies.preflight import Estimate, untrained
from kdlab.studies.runs import Run

SECONDS = 5.0
"""How long the steps of each number of runs are timed."""
GAIN = 1.05
"""More runs at once are chosen where all together are faster by this factor."""
MOST_ON_A_GPU = 16


def check_pack(pack: int | Literal["auto"], launcher: str) -> None:
    """Check ``--pack`` by itself.

    Raises:
        InputError: it cannot be.
    """
    if pack == 1:
        return
    if launcher != "local":
        raise InputError(
            "--pack is for runs on this machine; on a Ray cluster --cpus_per_run and --gpus_per_run say how many share "
            "a device."
        )
    if pack != "auto" and pack < 1:
        raise InputError(f"--pack is how many runs happen at once, at least 1, or auto, not {pack}.")


def check_room(pack: int | Literal["auto"], runs: Sequence[Run], estimates: Mapping[str, Estimate]) -> None:
    """Check that so many runs can be at once on this machine.

    Raises:
        InputError: they cannot.
    """
    if pack == 1:
        return
    several = next((run for run in runs if _devices(run.config["trainer"]) > 1), None)
    if several is not None:
        raise InputError(f"{several.name} takes several devices, as --pack does not: add --trainer.devices=1.")
    if pack == "auto":
        return
    on_gpu = any(_on_gpu(run.config["trainer"]) for run in runs)
    if not on_gpu and pack > (count := processors()):
        raise InputError(f"--pack {pack} is more than the {count} processors here, of which each run needs one.")
    memory = torch.cuda.get_device_properties(0).total_memory if on_gpu else _memory()
    largest = max((estimates[run.key].memory for run in runs if run.key in estimates), default=0.0)
    if pack * largest > memory:
        raise InputError(
            f"{pack} runs at once take {pack * largest / 2**30:.1f} GiB of the {memory / 2**30:.1f} GiB here: lower "
            "--pack."
        )


def measure(run: Run, seconds: float = SECONDS) -> dict[int, float]:
    """Return the steps a second of all runs together, by how many are at once: 1, 2, 4, ... while that is faster.

    Each is a process that trains the config with a teacher as it is initialized, and without a cache.
    """
    rates: dict[int, float] = {}
    most = MOST_ON_A_GPU if _on_gpu(run.config["trainer"]) else processors()
    count = 1
    while count <= most and chosen(rates) == count // 2:
        rates[count] = _rate(run.config, count, seconds)
        count *= 2
    return rates


def chosen(rates: Mapping[int, float]) -> int:
    """Return the number of runs at once that is fastest; more of them only where it is faster beyond noise.

    0 if none was measured, or none could train.

    >>> chosen({1: 10.0, 2: 18.0, 4: 18.5})
    2
    """
    best = 0
    for count in sorted(rates):
        if rates[count] > GAIN * rates.get(best, 0.0):
            best = count
    return best


def _rate(config: Mapping[str, Any], count: int, seconds: float) -> float:
    """Return the steps a second of ``count`` processes at once; 0 where one of them ends without having trained."""
    with tempfile.TemporaryDirectory() as folder:
        names = [str(number) for number in range(count)]
        started = [forked(_take_steps, folder, name, count, threads_of(count), config, seconds) for name in names]
        running = {
            process.sentinel: Path(folder, f"{name}.json") for (process, _), name in zip(started, names, strict=True)
        }
        while running:
            ended = [running.pop(sentinel) for sentinel in wait(running)]
            if not all(path.exists() for path in ended):
                break  # the others wait for it
        for process, pipe in started:
            process.terminate()
            end(process, pipe)
        results = [read_json(Path(folder, f"{name}.json")) for name in names]
    return sum(result["steps"] / result["seconds"] for result in results if result) if all(results) else 0.0


def _take_steps(
    pipe: Connection,
    environment: Mapping[str, str],
    folder: str,
    name: str,
    count: int,
    threads: int | None,
    config: Mapping[str, Any],
    seconds: float,
) -> None:
    """Train in a forked process until the steps are timed."""
    become(pipe, environment, Path(folder, f"{name}.txt"), threads)
    quiet = {**QUIET_TRAINER, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    cli = build({**untrained(config), "trainer": {**config["trainer"], **quiet}}, run=False, save_config=False)
    cli.trainer.callbacks.append(_Steps(Path(folder), name, count, seconds))  # type: ignore[attr-defined]
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)


class _Steps(pl.Callback):
    """Waits after the first step for the other processes, times the steps that follow, and ends the process."""

    def __init__(self, folder: Path, name: str, count: int, seconds: float) -> None:
        self.folder, self.name, self.count, self.seconds = folder, name, count, seconds
        self.steps, self.since = 0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        if not self.since:
            (self.folder / f"{self.name}.ready").touch()
            while len([*self.folder.glob("*.ready")]) < self.count:
                time.sleep(0.01)
            self.since = time.perf_counter()
            return
        self.steps += 1
        if time.perf_counter() - self.since > self.seconds:
            self.on_train_end()

    def on_train_end(self, *_: Any) -> None:
        passed = time.perf_counter() - self.since
        write_json(self.folder / f"{self.name}.json", {"steps": self.steps, "seconds": passed})
        os._exit(0)


def _on_gpu(trainer: Mapping[str, Any]) -> bool:
    name = trainer.get("accelerator") or "auto"
    return name in ("gpu", "cuda") or (name == "auto" and torch.cuda.is_available())


def _devices(trainer: Mapping[str, Any]) -> int:
    """Return how many processes a run has."""
    devices, nodes = trainer.get("devices") or "auto", int(trainer.get("num_nodes") or 1)
    if devices in ("auto", -1, "-1"):
        return nodes * (max(1, torch.cuda.device_count()) if _on_gpu(trainer) else 1)
    if isinstance(devices, list):
        return nodes * len(devices)
    parts = str(devices).split(",")
    return nodes * (len(parts) if len(parts) > 1 else int(parts[0]))


def _memory() -> float:
    """Return the bytes of this machine's memory."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
