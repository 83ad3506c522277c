"""Run everything that needs an accelerator, most valuable first; each step leaves its results when it ends.

    python experiments/gpu_day/run.py [--data DATA] [--out FOLDER] [--minutes 40] [--dry]

It can be cut at any time: what is done is in FOLDER, and a later call goes on with the steps that are missing. A step
gets its share of the minutes and is ended after it. With ``--dry`` every step runs on the CPU, as small as it can be,
only to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAIR, METHODS = '["resnet56 → resnet20"]', "[plain,KD,AT,CRD,SP,RKD]"


class Step(NamedTuple):
    """A command, and the minutes that it may take."""

    name: str
    minutes: float
    command: list[str]
    dry: list[str] | None
    """Its small form for a CPU; ``None`` where it has none."""


def steps(data: Path, out: Path) -> Iterator[Step]:
    """Return all steps, most valuable first."""
    python = [sys.executable]
    tests = [*python, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={out / 'tests.xml'}"]
    yield Step(
        "tests", 6, [*tests, "-m", "gpu", "tests"], [*tests, "-m", "gpu and not full", "tests/gpu", "-k", "bf16"]
    )
    speed = [*python, "experiments/speed/benchmark.py", f"--json={out / 'speed.json'}"]
    quick = [*speed, "--quick", "--only=kd", "--rounds=1", "--steps=1"]
    yield Step("speed", 8, [*speed, "--device=cuda", "--only=kd,at,crd,overhead,memory"], quick)
    study = [*python, "-m", "kdlab", "reproduce"]
    folders = [f"--runs={out / 'runs'}", f"--ledger={out / 'ledger.csv'}"]
    packed = ["--launcher=ray", "--gpus_per_run=0.16", "--cpus_per_run=2"]
    table = [*study, "experiments/crd2020_cifar100", f"--pairs={PAIR}", f"--methods={METHODS}", *folders, *packed]
    where = [f"--data.root={data / 'cifar100'}", "--trainer.accelerator=gpu", "--trainer.devices=1"]
    yield Step("table", 23, [*table, *where], [*study, "experiments/smoke", *folders, "--dry_run=true"])


def carry_out(step: Step, command: Sequence[str], seconds: float, out: Path) -> dict[str, object]:
    """Run a step; return how it ended."""
    start = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (out / f"{step.name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()  # a study resumes its runs in a later call
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
            status = None
    return {"status": status, "seconds": round(time.monotonic() - start), "command": " ".join(command)}


def main() -> int:
    """Run what is missing; return 1 where a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("KDLAB_DATA", ROOT.parent / "shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="folder with cifar100/{train,test}.zip")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu_day", help="folder of all results")
    parser.add_argument("--minutes", type=float, default=40, help="for all steps together")
    parser.add_argument("--dry", action="store_true", help="small, on the CPU")
    parser.add_argument("--only", nargs="*", default=[], help="names of the steps to run")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("KDLAB_DATA", str(arguments.data.resolve()))
    record = out / "steps.json"
    ended = json.loads(record.read_text()) if record.exists() else {}
    end = time.monotonic() + 60 * arguments.minutes
    chosen = [
        step for step in steps(arguments.data.resolve(), out) if not arguments.only or step.name in arguments.only
    ]
    for step in chosen:
        command = step.dry if arguments.dry else step.command
        left = end - time.monotonic()
        if command is None or ended.get(step.name, {}).get("status") == 0 or left < 1:
            continue
        print(f"{step.name}: {' '.join(command)}", flush=True)
        ended[step.name] = carry_out(step, command, min(left, 60 * step.minutes), out)
        record.write_text(json.dumps(ended, indent=1) + "\n")
        status = ended[step.name]["status"]
        how = (
            "cut; call again to go on" if status is None else "done" if status == 0 else f"failed, see {step.name}.log"
        )
        print(f"{step.name}: {how} ({ended[step.name]['seconds']} s)", flush=True)
    return int(any(ended.get(step.name, {}).get("status") not in (0, None) for step in chosen))


if __name__ == "__main__":
    sys.exit(main())
