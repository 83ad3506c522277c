"""Launchers of runs: one at a time on this machine, or on a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from kdlab.errors import InputError

WATCHED = "KDLAB_STUDY_PIPE"
"""Set for a run's process whose standard input is a pipe from its study, which closes when the study ends."""


class Launcher(Protocol):
    """Starts runs by their folders, at most ``capacity`` at once, and reports which have ended."""

    capacity: float

    def start(self, folder: Path) -> None:
        """Start the run that is prepared in ``folder``."""
        ...

    def ended(self, seconds: float) -> list[Path]:
        """Return the folders of runs that ended since the last call, after at most ``seconds`` of waiting for one."""
        ...

    def stop(self) -> None:
        """End what is running; it is resumed from its last epoch another time."""
        ...


class OneAtATime:
    """One run at a time, each in its own process, so that a run that fails or fills the memory affects no other.

    Output goes to ``log.txt`` in the run's folder. A run ends when the process of the study does, however that ends.
    """

    capacity: float = 1

    def __init__(self) -> None:
        self._running: tuple[Path, subprocess.Popen[bytes]] | None = None

    def start(self, folder: Path) -> None:
        """Start the run."""
        self._running = folder, process_of(folder)

    def ended(self, seconds: float) -> list[Path]:
        """Return the folder of the run if it ended."""
        if self._running is None:
            return []
        folder, process = self._running
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            self.stop()
        return [] if self._running else [folder]

    def stop(self) -> None:
        """End the run."""
        if self._running is not None:
            _end(self._running[1])
            self._running = None


def process_of(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process that trains the run in ``folder``."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kdlab.studies.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, WATCHED: "1"},
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:  # closes the pipe and waits
        process.terminate()


class OnRay:
    """Runs as tasks of a Ray cluster, as many at a time as it has processors and GPUs for.

    A task whose worker is lost is started again on another worker, and its run is resumed from its last epoch. The
    runs' folder has to be on a disk that all machines of the cluster see, at the same path, and kdlab installed on
    each.

    Args:
        address: of the cluster, such as ``auto`` or ``ray://head:10001``; ``None`` starts one on this machine.
        cpus: processors for each run.
        gpus: GPUs for each run; a fraction lets runs share one.
        workers: processors of a cluster that is started here; ``None`` is all.
        retries: how often a run whose worker was lost is started again.

    Raises:
        InputError: Ray is not installed, there is no cluster at ``address``, or it is too small for a run.
    """

    capacity: float = math.inf  # Ray queues what has to wait

    def __init__(self, address: str | None, cpus: float, gpus: float, workers: int | None, retries: int = 5) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("--launcher ray needs Ray: pip install 'kdlab[ray]'.") from error
        self._ray = ray
        if not ray.is_initialized():
            count = None if address else workers
            try:
                ray.init(address=address, num_cpus=count, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"There is no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
        available: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > (present := available.get(name, 0)):
                raise InputError(f"Each run needs {wanted:g} {name}s, and the Ray cluster has {present:g}.")
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_train_in)
        self._running: dict[object, Path] = {}

    def start(self, folder: Path) -> None:
        """Submit the run to the cluster."""
        self._running[self._task.remote(str(folder.resolve()), os.getcwd(), os.environ.get("PYTHONPATH", ""))] = folder

    def ended(self, seconds: float) -> list[Path]:
        """Return the folder of a run that ended; see :class:`Launcher`."""
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._running.pop(task) for task in done]

    def stop(self) -> None:
        """Cancel what is running or waiting."""
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()


def _train_in(folder: str, directory: str, python_path: str) -> int:
    """Run a Ray task; when its worker is killed, the pipe to the run's process closes and that process ends too."""
    os.chdir(directory)
    os.environ["PYTHONPATH"] = python_path
    process = process_of(Path(folder))
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        _end(process)
    return int(process.returncode)
