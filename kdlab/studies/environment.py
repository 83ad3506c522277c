"""Device, versions and commit that a number was measured with."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

import kdlab


def versions(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Return devices, versions of the host and commit, as text for a ledger."""
    return {
        "device": f"{processes} x {device_name(device)}" if processes > 1 else device_name(device),
        "kdlab": kdlab.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "lightning": version("pytorch-lightning"),
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """Return the model of a GPU, or of this machine's processor with the number of its threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    count = torch.get_num_threads()
    return f"{_processor()}, {count} thread{'s' if count > 1 else ''}"


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def commit() -> str:
    """Return kdlab's commit, with "-dirty" where files differ from it; empty outside a checkout."""
    root = Path(kdlab.__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        described = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return described.stdout.strip()
