"""What a loss over a large vocabulary costs, all tokens at once and in chunks, each in processes of its own.

    python experiments/speed/vocabulary.py --losses forward,jsd,task --gate

Hidden states and the heads of both networks are there when a turn begins; it ends with the gradients of the student's
hidden states and head, which count as extra memory too. It exits with 1 where a value differs, and with ``--gate``
where a chunked loss takes more than ``--limit`` MiB or longer than the eager one (median of ``--rounds``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

# For the memory, blocks from 1 MiB on go back to the system once they are free: the resident size is what is in use.
# That takes time of its own, so the time is taken in another process, with the allocator as it is.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "0"}
LOSSES = ("forward", "reverse", "skew", "jsd", "top-k", "task")


def turn(given: argparse.Namespace, name: str, chunk: int | None) -> dict[str, Any]:
    """Measure value, gradient norms, seconds and extra MiB of one forward and backward pass, in this process."""
    import memory
    import torch
    from torch.nn import functional as F

    from kdlab.losses import ForwardKL, GeneralizedJSD, ReverseKL, SkewKL, TopK
    from kdlab.losses.tokens import TokenCrossEntropy
    from kdlab.outputs import Outputs
    from kdlab.outputs.factored import FactoredLogits

    torch.set_num_threads(1)
    kinds = {"forward": ForwardKL, "reverse": ReverseKL, "skew": SkewKL, "jsd": GeneralizedJSD, "top-k": TopK}
    torch.manual_seed(0)
    tokens, vocabulary, width = given.tokens, given.vocabulary, given.hidden
    hidden, teacher_hidden = torch.randn(2, 1, tokens, width).unbind()
    weight, teacher_weight = (torch.randn(vocabulary, width).mul_(0.1) for _ in range(2))
    labels = torch.randint(0, vocabulary, (1, tokens))
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = TokenCrossEntropy(chunk_size=chunk) if name == "task" else kinds[name](chunk_size=chunk)
    found: dict[str, Any] = {}

    def work() -> None:
        product = F.linear if chunk is None else FactoredLogits
        wall, processor = time.perf_counter(), time.process_time()
        student = product(hidden, weight)
        if name == "task":
            value = loss(student, labels)
        else:
            value = loss(Outputs(student), Outputs(product(teacher_hidden, teacher_weight)), labels)
        value.backward()
        found["wall"], found["processor"] = time.perf_counter() - wall, time.process_time() - processor
        found["value"] = value.item()

    found["extra"] = memory.extra(work, torch.device("cpu"))
    found["gradients"] = [float(each.grad.norm()) for each in (hidden, weight) if each.grad is not None]
    return found


def measure(given: argparse.Namespace, name: str, chunks: tuple[int | None, int | None]) -> list[dict[str, Any]]:
    """Measure both forms of a loss in processes of their own: the memory, and the median time of alternating rounds."""
    cases = [_run(given, name, chunk, EXACT) for chunk in chunks]
    rounds = [[_run(given, name, chunk, {})["processor"] for chunk in chunks] for _ in range(given.rounds)]
    for case, times in zip(cases, zip(*rounds, strict=True), strict=True):
        case["processor"] = statistics.median(times)
    return cases


def _run(given: argparse.Namespace, name: str, chunk: int | None, allocator: dict[str, str]) -> dict[str, Any]:
    options = [f"--{key}={getattr(given, key)}" for key in ("tokens", "vocabulary", "hidden")]
    case = [sys.executable, __file__, *options, f"--case={name},{chunk or 0}"]
    done = subprocess.run(case, capture_output=True, text=True, env={**os.environ, **allocator, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{name} could not be measured:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Measure what is asked for and print it as a Markdown table; the status that the process exits with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chunk", type=int, default=32, help="tokens of two networks at a time")
    parser.add_argument("--rounds", type=int, default=3, help="of the time, both forms in turn")
    parser.add_argument("--losses", default="forward,jsd,task", help=f"some of {', '.join(LOSSES)}")
    parser.add_argument("--limit", type=float, default=300.0, help="MiB that a chunked loss may take")
    parser.add_argument("--gate", action="store_true", help="exit with 1 where a limit is not kept")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        name, chunk = given.case.split(",")
        print(json.dumps(turn(given, name, int(chunk) or None)))
        return 0
    kept = same = True
    print("| loss | form | seconds (processor) | extra MiB | value |\n|---|---|---|---|---|")
    for name in given.losses.split(","):
        chunk = 2 * given.chunk if name == "task" else given.chunk  # the task has logits of one network, not of two
        eager, chunked = measure(given, name, (None, chunk))
        for form, costs in (("all tokens", eager), (f"{chunk} at a time", chunked)):
            print(
                f"| {name} | {form} | {costs['processor']:.1f} | {costs['extra']:.0f} | {costs['value']:.7f} |",
                flush=True,
            )
        numbers = [[each["value"], *each["gradients"]] for each in (eager, chunked)]
        same &= all(abs(a - b) <= 1e-5 * abs(a) for a, b in zip(*numbers, strict=True))
        kept &= chunked["extra"] <= given.limit and chunked["processor"] <= eager["processor"]
    print(f"Values and gradient norms {'agree' if same else 'DIFFER'}; limits {'kept' if kept else 'NOT KEPT'}.")
    return int(not same or (given.gate and not kept))


if __name__ == "__main__":
    sys.exit(main())
