"""Where runs happen: one at a time on this machine, or on a Ray cluster."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

WATCHED = "KDLAB_STUDY_PIPE"
"""Set for a run's process whose standard input is a pipe from its study, which closes when the study is gone."""


class Launcher(Protocol):
    """Starts runs by their folders and says which have ended."""

    def room(self) -> bool:
        """Whether another run may be started now."""
        ...

    def start(self, folder: Path) -> None:
        """Start the run that is prepared in ``folder``."""
        ...

    def ended(self, seconds: float) -> list[Path]:
        """The folders of runs that have ended since the last call, after waiting for one for at most ``seconds``."""
        ...

    def stop(self) -> None:
        """End what is running; it goes on from its last epoch another time."""
        ...


class OneAtATime:
    """One run at a time, each in its own process: a run that fails, or fills the memory, takes nothing with it.

    Output goes to ``log.txt`` in the run's folder. A run ends when the process of the study does, however that ends.
    """

    def __init__(self) -> None:
        self._running: tuple[Path, subprocess.Popen[bytes]] | None = None

    def room(self) -> bool:
        """Whether nothing is running."""
        return self._running is None

    def start(self, folder: Path) -> None:
        """Start the run."""
        self._running = folder, process_of(folder)

    def ended(self, seconds: float) -> list[Path]:
        """See :class:`Launcher`."""
        if self._running is None:
            return []
        folder, process = self._running
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return []
        _close(process)
        self._running = None
        return [folder]

    def stop(self) -> None:
        """End the run."""
        if self._running is not None:
            _, process = self._running
            process.terminate()
            process.wait()
            _close(process)
            self._running = None


def process_of(folder: Path) -> subprocess.Popen[bytes]:
    """The process that trains the run in ``folder``."""
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "kdlab.studies.worker", str(folder)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, WATCHED: "1"},
        )


def _close(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()


class OnRay:
    """Runs as tasks of a Ray cluster, as many at a time as it has processors and GPUs for.

    A task whose worker is lost is started again, on another worker, and its run goes on from its last epoch. The runs'
    folder has to be on a disk that all machines of the cluster see, at the same path, and kdlab installed on each.

    Args:
        address: of the cluster, such as ``auto`` or ``ray://head:10001``; ``None`` starts one on this machine.
        cpus: processors for each run.
        gpus: GPUs for each run; a fraction lets runs share one.
        retries: how often a run whose worker was lost is started again.
        workers: of a cluster that is started here, how many processors it has; all if not given.

    Raises:
        InputError: Ray is not installed, or there is no cluster at ``address``.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        retries: int = 5,
        workers: int | None = None,
    ) -> None:
        from kdlab.errors import InputError

        try:
            import ray
        except ImportError as error:
            raise InputError("--launcher ray needs Ray: pip install 'kdlab[ray]'.") from error
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=address,
                    num_cpus=None if address else workers,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise InputError(f"There is no Ray cluster at {address!r}: {str(error).splitlines()[0]}") from error
        have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > have.get(name, 0):
                raise InputError(
                    f"Each run is to have {wanted:g} {name}s and the Ray cluster has {have.get(name, 0):g}."
                )
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_train_in)
        self._running: dict[object, Path] = {}

    def room(self) -> bool:
        """Always: Ray keeps what has to wait."""
        return True

    def start(self, folder: Path) -> None:
        """Hand the run to the cluster."""
        self._running[self._task.remote(str(folder.resolve()), os.getcwd())] = folder

    def ended(self, seconds: float) -> list[Path]:
        """See :class:`Launcher`."""
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._running.pop(each) for each in done]

    def stop(self) -> None:
        """Cancel what is running or waiting."""
        for each in self._running:
            self._ray.cancel(each, force=True)
        self._running.clear()


def _train_in(folder: str, directory: str) -> int:
    """What a worker does; when it is killed, the pipe to the run's process closes and that one ends too."""
    os.chdir(directory)
    process = process_of(Path(folder))
    try:
        while process.poll() is None:
            time.sleep(0.1)
    finally:
        process.terminate()
        process.wait()
        _close(process)
    return int(process.returncode)
