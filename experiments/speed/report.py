"""From the times of every turn to numbers, tables and a file; and the machine that gave them."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from data_path import KDLAB, PIL
from hand import HAND, REVIEW, STUDENT, TEACHER
from inputs import Setting
from limits import NOT_KEPT, judged
from overhead import BARE, FULL, LEAN, SHORT
from overhead import HAND as HAND_LOOP
from rich.console import Console
from rich.table import Table

Results = dict[str, Any]
SOFTWARE = ["torch", "torchvision", "pillow", "pytorch-lightning", "torchmetrics"]


def machine(setting: Setting) -> dict[str, str]:
    """What has to be known to judge a number."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    model = fields.get("model name", platform.processor() or platform.machine())
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    low = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    found = {
        "date": datetime.datetime.now().strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "processor": f"{model}{family}, {os.cpu_count()} cores; {', '.join(low) or 'flags unknown'}; "
        f"bf16 in hardware: {'yes' if {'avx512_bf16', 'amx_bf16'} & flags else 'no'}",
        "clock": f"{'processor time of this process' if setting.processor_time else 'wall'}; "
        f"load of the machine at the start: {os.getloadavg()[0]:.1f}",
        "software": ", ".join([f"Python {platform.python_version()}", *map(versioned, SOFTWARE)]),
        "threads": f"{torch.get_num_threads()}; allocator "
        f"{'pinned' if 'MALLOC_TOP_PAD_' in os.environ else 'as the system has it'}",
    }
    if (device := setting.device).type == "cuda":
        tf32 = torch.backends.cudnn.allow_tf32
        found["device"] = (
            f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, convolutions in TF32: {tf32}"
        )
    return found


def versioned(package: str) -> str:
    """A package's name and version."""
    return f"{package} {version(package)}"


def commit() -> str:
    """The commit of this copy of kdlab, and whether it was changed since."""
    here = Path(__file__).parent
    ask = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(ask, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def steps(turns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Of every contestant: median ms, and medians of the ratios of each round, with the quartiles of rho."""
    student, teacher, hand = turns[STUDENT], turns[TEACHER], turns[HAND]
    floor = [s + t for s, t in zip(student, teacher, strict=True)]
    review = turns.get(REVIEW)

    def ratios(times: list[float], to: list[float]) -> list[float]:
        return [a / b for a, b in zip(times, to, strict=True)]

    return {
        name: {
            "ms": 1e3 * statistics.median(times),
            "rho": statistics.median(ratios(times, floor)),
            "rho_quartiles": quartiles(ratios(times, floor)),
            "of_student": statistics.median(ratios(times, student)),
            "of_hand": statistics.median(ratios(times, hand)),
            **({"of_review": statistics.median(ratios(times, review))} if review else {}),
            "turns_ms": [round(1e3 * each, 3) for each in times],
        }
        for name, times in turns.items()
    }


def quartiles(values: list[float]) -> list[float]:
    """The first and the third."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return [low, high]


def overhead(turns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Median ms a step, and medians over rounds of differences and ratios to others of the same round."""
    keys = {HAND_LOOP: "hand", FULL: "full", BARE: "bare", SHORT: "short"}
    hand = turns[HAND_LOOP]

    def over(times: list[float], to: list[float]) -> float:
        return statistics.median(a - b for a, b in zip(times, to, strict=True))

    return {
        keys.get(name, name): {
            "name": name,
            "ms": statistics.median(times),
            "over_hand": over(times, hand),
            "over_lean": over(times, turns[LEAN]),
            "of_hand": statistics.median(a / b for a, b in zip(times, hand, strict=True)),
            "of_full": statistics.median(a / b for a, b in zip(times, turns[FULL], strict=True)),
            "turns_ms": times,
        }
        for name, times in turns.items()
    }


def data(turns: dict[str, list[float]]) -> dict[str, Any]:
    """Median images a second of both pipelines, and the median of the ratios of each round."""
    ratio = statistics.median(a / b for a, b in zip(turns[KDLAB], turns[PIL], strict=True))
    return {
        "images_per_second": {name: statistics.median(x) for name, x in turns.items()},
        "ratio": ratio,
        "turns": turns,
    }


def numbers(results: Results) -> dict[tuple[str, str, str], float]:
    """The numbers that limits speak of."""
    found: dict[tuple[str, str, str], float] = {}
    for part in ("steps", "overhead"):
        for name, row in results.get(part, {}).items():
            found |= {(part, name, key): value for key, value in row.items() if isinstance(value, float)}
    if "data" in results:
        found["data", "ratio", "ratio"] = results["data"]["ratio"]
    return found


def show(results: Results) -> tuple[bool, bool]:
    """Print all tables; whether no teacher was touched, and whether every limit that applies is kept."""
    console = Console(width=max(120, Console().width))
    for name, value in results["machine"].items():
        console.print(f"[bold]{name:<10}[/] {value}", highlight=False, soft_wrap=True)
    settings = results["settings"]
    if "steps" in results:
        title = "resnet56 teaches resnet20, batch {batch}; {rounds} rounds of {steps} steps".format(**settings)
        memory = results.get("memory", {})
        columns = ["ms a step", "rho = t/(S+T)", "quartiles", "t/S", "t/hand KD", *(["peak MiB"] if memory else [])]
        rows = {
            name: [
                f"{x['ms']:.1f}",
                f"{x['rho']:.2f}",
                "{:.2f} to {:.2f}".format(*x["rho_quartiles"]),
                f"{x['of_student']:.2f}",
                f"{x['of_hand']:.2f}",
                *([f"{memory[name]:.0f}" if name in memory else ""] if memory else []),
            ]
            for name, x in results["steps"].items()
        }
        table(console, title, columns, rows)
    elif "memory" in results:
        table(console, "Peak memory", ["MiB"], {name: [f"{x:.0f}"] for name, x in results["memory"].items()})
    if "overhead" in results:
        rows = {
            x["name"]: [f"{x['ms']:.3f}", f"{x['over_hand']:+.3f}", f"{x['over_lean']:+.3f}", f"{x['of_hand']:.2f}"]
            for x in results["overhead"].values()
        }
        columns = ["ms a step", "ms over hand loop", "ms over Lightning", "t/hand loop"]
        table(console, "Fixed cost: a linear layer on 3 x 4 x 4", columns, rows)
    if "data" in results:
        rows = {name: [f"{x:,.0f}"] for name, x in results["data"]["images_per_second"].items()}
        rows["ratio"] = [f"{results['data']['ratio']:.1f}"]
        table(console, "Data path: 32 x 32, pad 4, crop, flip, normalize; batch 128", ["images/s"], rows)
    verdicts = judged(numbers(results), settings["bf16"])
    rows = {
        f"{limit.contestant}: {limit.means}": [
            f"{value:.2f}",
            f"{'≥' if limit.at_least else '≤'} {limit.bound}",
            verdict,
        ]
        for limit, value, verdict in verdicts
    }
    table(console, "Limits", ["measured", "limit", ""], rows)
    for sentence in results.get("said", []):
        console.print(f"· {sentence}", highlight=False)
    untouched = True
    for name, complaints in results.get("wrong", {}).items():
        theirs = "torchdistill" in name
        untouched &= theirs
        word = "note" if theirs else "FAIL"
        console.print(f"{word}: {name} touched its teacher: {'; '.join(complaints)}.", markup=False)
    kept = all(verdict != NOT_KEPT for *_, verdict in verdicts)
    if not kept:
        console.print("FAIL: a limit is not kept.")
    return untouched, kept


def table(console: Console, title: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    """Print a table whose first column names the rows."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    shown.add_column("")
    for column in columns:
        shown.add_column(column, justify="right")
    for name, cells in rows.items():
        shown.add_row(name, *cells)
    console.print(shown)
