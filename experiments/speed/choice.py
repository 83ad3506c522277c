"""Whether a teacher's fast copy is the one that is fastest, and never slower than the network: five pairs.

For each pair every option that is allowed is timed by brute force, in alternating rounds; then ``Fast(timed=True)``
chooses anew in each trial. With ``--gate`` it exits with 1 where, for a pair,

- a choice takes more than 1.02 of the network's time, both by brute force; or
- fewer than 9 of 10 choices are the option that is fastest by brute force. A choice that takes at most 2 % longer than
  the fastest one, both by brute force, is a tie and counts as that option: such differences are within the noise, and
  of equally fast options the one with the fewest changes is to be chosen.

A pair's step, to which the student's part is added on both sides, is nearer to 1 than the teacher's forward.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark import PINNED

SLOWER, SAME, SHARE = 1.02, 1.02, 0.9
"""What a choice may take of the network's time and of the fastest option's, and in how many of the trials."""


def main() -> int:
    """Measure, print, write; the status that the process exits with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", help="some of resnet, wrn, mobilenet, vit, mlp, with commas between them")
    parser.add_argument("--trials", type=int, help="choices of each pair (10; quick: 2)")
    parser.add_argument("--rounds", type=int, help="rounds of the brute force (30; quick: 3)")
    parser.add_argument("--batch", type=int, help="samples (64; quick: 4)")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="only to see that it runs: the numbers mean nothing")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a limit is not kept")
    options = parser.parse_args()
    if not PINNED.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**PINNED, **os.environ})
    options.trials = options.trials or (2 if options.quick else 10)
    options.rounds = options.rounds or (3 if options.quick else 30)
    options.batch = options.batch or (4 if options.quick else 64)
    pairs = teachers()
    names = options.pairs.split(",") if options.pairs else [*pairs]
    if unknown := set(names) - pairs.keys():
        parser.error(f"--pairs takes {', '.join(pairs)}, not {', '.join(sorted(unknown))}")
    results = [measured(name, *pairs[name], options) for name in names]
    print(f"\n{'pair':<34}{'fastest by brute force':<42}{'chosen':<42}{'of plain':>9}{'of fastest':>11}{'right':>7}")
    for row in results:
        text = (
            f"{row['pair']:<34}{row['fastest']:<42}{row['usual']:<42}{row['of_plain']:>9.3f}{row['of_fastest']:>11.3f}"
        )
        print(f"{text}{row['right']:>4}/{options.trials}{'' if row['kept'] else '  NOT KEPT'}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    return int(options.gate and not all(row["kept"] for row in results))


def teachers() -> dict[str, tuple[str, Callable[[], Any], int]]:
    """By name: teacher and student, what builds the teacher, and the size of its images."""
    from inputs import networks, with_statistics

    from kdlab.models import mlp, mobilenet_v2_half, timm_model, wrn_40_2

    return {
        "resnet": ("resnet56 → resnet20", lambda: networks()[1], 32),
        "wrn": ("wrn_40_2 → wrn_16_2", lambda: with_statistics(wrn_40_2(100)), 32),
        "mobilenet": ("mobilenet_v2_half → resnet8", lambda: with_statistics(mobilenet_v2_half(100)), 32),
        "vit": ("vit_tiny_patch16_224 → resnet18", lambda: timm_model("vit_tiny_patch16_224", 100), 224),
        "mlp": ("mlp 1200 x 2 → mlp 800 x 2", lambda: mlp(3 * 32 * 32, [1200, 1200], 10), 32),
    }


def measured(name: str, pair: str, build: Callable[[], Any], size: int, setting: argparse.Namespace) -> dict[str, Any]:
    """Brute force and trials of one pair."""
    import torch

    from kdlab.members import Fast, Frozen
    from kdlab.members.fast_choice import fastest, in_turns
    from kdlab.members.fast_copy import Runner, Trial
    from kdlab.members.fast_options import PLAIN
    from kdlab.outputs import Batch

    torch.manual_seed(0)
    device, fast = torch.device(setting.device), Fast(precision="auto", timed=True)
    network = build().to(device).eval().requires_grad_(False)
    images = torch.randn(setting.batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        trial = Trial(Runner(network, ()), images, fast)
        made = [trial.make(option) for option in dict.fromkeys(map(trial.effective, fast.combinations(device)))]
        copies = [copy for copy in made if not copy.refused]
        calls = [lambda run=copy.runner: run(images) for copy in copies]  # type: ignore[misc]
        seconds = in_turns(calls, device, setting.rounds, seconds=60 if setting.quick else 600)
    ratios = [[b / a for a, b in zip(seconds[0], row, strict=True)] for row in seconds]
    of_plain = {copy.options: statistics.median(row) for copy, row in zip(copies, ratios, strict=True)}
    best = min(of_plain.values())
    teacher, chosen = Frozen(network, fast=fast), []
    for number in range(setting.trials):
        choice = teacher.choose(Batch(images, torch.zeros(setting.batch, dtype=torch.int64)))
        chosen.append(PLAIN if choice is None else choice.copy.options)
        print(f"{name}, trial {number + 1}: {trial.described(chosen[-1])}", file=sys.stderr)
    right = [of_plain[options] <= SAME * best for options in chosen]
    slowest = max(of_plain[options] for options in chosen)
    usual = statistics.mode(chosen)
    return {
        "pair": pair,
        "fastest": trial.described(min(of_plain, key=lambda options: of_plain[options])),
        "rule": trial.described([*of_plain][fastest([*of_plain.values()])]),
        "usual": trial.described(usual),
        "of_plain": slowest,
        "of_fastest": slowest / best,
        "right": sum(right),
        "kept": slowest <= SLOWER and sum(right) >= SHARE * setting.trials,
        "plain_ms": 1e3 * statistics.median(seconds[0]),
        "brute_force": [{**options.changes, "of_plain": ratio} for options, ratio in of_plain.items()],
        "refused": {trial.described(copy.options): copy.refused for copy in made if copy.refused},
        "chosen": [options.changes for options in chosen],
    }


if __name__ == "__main__":
    sys.exit(main())
