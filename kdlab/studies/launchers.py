"""Launchers of runs: on this machine, or on a Ray cluster."""

from __future__ import annotations

import importlib
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch

from kdlab.errors import InputError

PRELOADED = ["kdlab.studies.worker", "kdlab.data", "kdlab.models", "kdlab.losses", "kdlab.schedules"]
"""What the runs on this machine import before they are forked."""

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


class Local:
    """Runs on this machine, each in its own process, so that a run that fails or fills the memory affects no other.

    They are forked from one process that has imported what a run needs. Output goes to ``log.txt`` in the run's folder.
    A run ends when the process of the study does, however that ends.

    Args:
        pack: how many runs at once; each gets its part of the processors as threads, unless ``OMP_NUM_THREADS`` is set.
    """

    def __init__(self, pack: int = 1) -> None:
        self.capacity: float = pack
        self._running: dict[Path, tuple[Any, Connection]] = {}  # the process, and its end tells the process to end

    def start(self, folder: Path) -> None:
        """Start the run."""
        self._running[folder] = forked(train_in, str(folder), threads_of(int(self.capacity)))

    def ended(self, seconds: float) -> list[Path]:
        """Return the folders of runs that ended; see :class:`Launcher`."""
        sentinels = {process.sentinel: folder for folder, (process, _) in self._running.items()}
        ended = [sentinels[sentinel] for sentinel in wait(sentinels, seconds)] if sentinels else []
        for folder in ended:
            end(*self._running.pop(folder))
        return ended

    def stop(self) -> None:
        """End the runs."""
        for process, pipe in self._running.values():
            process.terminate()
            end(process, pipe)
        self._running.clear()


def threads_of(pack: int) -> int | None:
    """Return the threads of each of several runs at once; ``None`` for what a process alone takes."""
    return None if pack == 1 or "OMP_NUM_THREADS" in os.environ else max(1, processors() // pack)


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def forked(work: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Start a process that calls ``work(pipe, environment, *arguments)``; return it, and the end of the pipe to it."""
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    if sys.platform == "linux":
        context.set_forkserver_preload(PRELOADED)
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(reading, dict(os.environ), *arguments))
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")  # else the user's script would be run again in the process
    try:
        with reading:  # the process has its own copy
            process.start()
    finally:
        sys.modules["__main__"] = main
    return process, writing


def become(pipe: Connection, environment: Mapping[str, str], log: Path, threads: int | None) -> None:
    """Let a forked process be as one that was started from a shell, with ``log`` as output; it ends with ``pipe``."""
    if (name := Path("/proc/self/comm")).exists():
        name.write_text("kdlab run")  # for ps and top
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(pipe.fileno(), 0)
    threading.Thread(target=exit_with_the_study, daemon=True).start()
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that it starts
        torch.set_num_threads(threads)


def exit_with_the_study() -> None:
    """End the process when the study is killed; its next call resumes the run."""
    while os.read(0, 1):  # not sys.stdin, whose lock would be held at exit
        pass
    os._exit(1)


def train_in(pipe: Connection, environment: Mapping[str, str], folder: str, threads: int | None) -> None:
    """Train the run in ``folder`` in a forked process."""
    become(pipe, environment, Path(folder) / "log.txt", threads)
    worker = importlib.import_module("kdlab.studies.worker")
    sys.modules["__main__"], sys.argv = worker, [str(worker.__file__), folder]  # which DDP starts its others from
    raise SystemExit(worker.main())


def end(process: Any, pipe: Connection) -> None:
    """Wait for a forked process, which its pipe tells to end."""
    pipe.close()
    process.join()
    process.close()


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
        with process:  # closes the pipe and waits
            process.terminate()
    return int(process.returncode)
