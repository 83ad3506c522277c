"""Runs the contestants of the benchmark in alternation, and puts its parts together."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data_path
import framework
import hand
import memory
import overhead
import peers
import report
import torch
from inputs import Setting
from limits import METHODS, PARTS


def run(given: argparse.Namespace) -> report.Results:
    """Measure what is asked for."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    said = framework.quieten()
    setting = Setting(torch.device(given.device), given.rounds, given.steps, given.clock == "processor")
    methods = [name for name in given.only if name not in PARTS]
    results: report.Results = {
        "machine": report.machine(setting),
        "settings": {
            "batch": setting.batch,
            "rounds": given.rounds,
            "steps": given.steps,
            "quick": given.quick,
            "device": given.device,
            "clock": given.clock,
            "bf16": hand.student_in_bf16(setting),
        },
    }
    if given.against:
        results["machine"]["against"] = f"torchdistill {peers.version()}"
    if methods:
        with tempfile.TemporaryDirectory() as folder:
            turns, wrong = race(contestants(methods, setting, Path(folder), given.against), setting)
        results["steps"], results["wrong"] = report.steps(turns), wrong
    if "overhead" in given.only:
        steps = 30 if given.quick else 300
        others = [peers.TrivialBox(setting, steps)] if given.against else []
        results["overhead"] = report.overhead(overhead.measure(setting, steps, others))
    if "data" in given.only:
        results["data"] = report.data(data_path.measure(setting, *((40, 4) if given.quick else (390, 40))))
    if "memory" in given.only:
        forms = [("kd", "plain")] if given.quick else framework.forms(methods or METHODS)
        names = [hand.HAND, *(f"{method}/{form}" for method, form in forms if form != "bare")]
        results["memory"] = memory.measure(names, given.device)
    results["said"] = said.sentences
    return results


def peak_of(name: str, given: argparse.Namespace) -> float:
    """Extra MiB of one contestant, in this process."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    framework.quieten()
    setting = Setting(torch.device(given.device), given.rounds, given.steps)
    with tempfile.TemporaryDirectory() as folder:
        (chosen,) = contestants(METHODS, setting, Path(folder), None, name)
        return memory.extra(lambda: chosen.turn(memory.STEPS), setting.device)


def contestants(
    methods: list[str], setting: Setting, folder: Path, against: str | None, only: str | None = None
) -> list[Any]:
    """All contestants, the references S, T and hand KD first; with ``only``, the one of that name."""
    made: list[Any] = [*hand.floor(setting), *hand.hand(setting)]
    made += [hand.review(setting)] if "reviewkd" in methods else []
    if only is None:
        made += hand.levers(setting)
    forms = [(method, form) for method, form in framework.forms(methods) if only in (None, f"{method}/{form}")]
    made += [framework.Fit(method, form, setting, folder) for method, form in forms]
    made += peers.contestants(methods, setting) if against and only is None else []
    return made if only is None else [each for each in made if each.name == only]


def memory_of(methods: list[str], setting: Setting) -> list[str]:
    """The contestants whose memory is measured."""
    return [hand.HAND, *(f"{method}/{form}" for method, form in framework.forms(methods) if form != "bare")]


def race(field: Sequence[Any], setting: Setting) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Seconds a step of every turn by contestant, and what is wrong with whose teacher.

    In every round the references run first and last and count as the mean of both, so that a machine that grows slower
    or faster during the round does not favour anyone; the others run in order, and in the next round in reverse.
    """
    references, others = field[:3], field[3:]
    found: dict[str, list[float]] = {each.name: [] for each in field}

    def turns(row: Sequence[Any]) -> dict[str, float]:
        return {each.name: each.turn(setting.steps).typical() for each in row}

    for number in range(setting.rounds):
        first = turns(references)
        for name, seconds in turns(others[:: -1 if number % 2 else 1]).items():
            found[name].append(seconds)
        for name, seconds in turns(references).items():
            found[name].append((first[name] + seconds) / 2)
        print(f"round {number + 1} of {setting.rounds} is done", file=sys.stderr)
    return found, {each.name: complaints for each in field if (complaints := each.complaints())}
