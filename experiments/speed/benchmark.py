"""What kdlab's training step costs, against the floor, hand-written loops and, if asked, torchdistill.

It measures and is not a test. It exits with 1 where a teacher was touched, and with ``--gate`` where a limit is passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path

from limits import METHODS, PARTS

# glibc reads these when a process begins: without them a loop that keeps features alive can appear 1.2 times slower.
PINNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
}
TORCHDISTILL = "torchdistill==1.1.5"


def main() -> int:
    """Measure what is asked for, print it and write it; the status that the process exits with."""
    given = arguments()
    if not PINNED.keys() <= os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**PINNED, **os.environ})

    # Only now: torch and numpy read OMP_NUM_THREADS when they are loaded.
    from report import show
    from run import peak_of, run

    if given.peak_of:
        print(peak_of(given.peak_of, given))
        return 0
    results = run(given)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    untouched, kept = show(results)
    return int(not untouched or (given.gate and not kept))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    everything = [*METHODS, *PARTS]
    parser.add_argument("--rounds", type=int, help="turns of each contestant (7; quick: 2)")
    parser.add_argument("--steps", type=int, help="timed steps in a turn (6; quick: 2)")
    parser.add_argument("--only", default=",".join(everything), help=f"some of {', '.join(everything)}")
    parser.add_argument("--json", type=Path, help="file for all numbers, every turn's included")
    parser.add_argument("--against", choices=["torchdistill"], help="a peer from PyPI, in the same run")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    clocks = "time that passes, or on a machine that others use as well this process's time on the processor"
    parser.add_argument("--clock", default="wall", choices=["wall", "processor"], help=clocks)
    parser.add_argument("--quick", action="store_true", help="only to see that it runs: the numbers mean nothing")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a limit is not kept")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # the part "memory" calls it for one contestant
    given = parser.parse_args()
    given.only = given.only.split(",")
    given.rounds = given.rounds or (2 if given.quick else 7)
    given.steps = given.steps or (2 if given.quick else 6)
    if unknown := set(given.only) - set(everything):
        parser.error(f"--only takes {', '.join(everything)}, not {', '.join(sorted(unknown))}")
    if given.rounds < 1 or given.steps < 1:
        parser.error("--rounds and --steps are at least 1")
    if given.device == "cuda" and given.clock == "processor":
        parser.error("--clock processor says nothing of the time on a GPU")
    if given.against and importlib.util.find_spec("torchdistill") is None:
        parser.error(f"--against needs it installed: {sys.executable} -m pip install --no-deps {TORCHDISTILL}")
    return given


if __name__ == "__main__":
    sys.exit(main())
