"""Runs that are killed at random moments, some inside a file replacement, end with the bits of one never killed."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from tests.faults.forks import compare, fork, killed
from tests.faults.jobs import job, ledger, run_folders

KINDS = ("offline", "cotraining", "cached", "study", "ddp", "text")
PER_RUN = 4
"""Kills of one run; then it goes on to its end."""

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def kill_many(kind: str, folder: Path, kills: int) -> str:
    """Kill runs of a kind; return the figures."""
    run = job(kind, folder)
    whole, since = folder / "whole", time.monotonic()
    _, status = os.waitpid(fork(run, whole), 0)
    assert status == 0, (whole / "output.txt").read_text()[-3000:]
    longest = time.monotonic() - since
    chance, notes = random.Random(f"{kind} {kills}"), list[str]()
    hits = resumes = lost = different = runs = 0
    while hits < kills:
        place, runs = folder / f"killed_{runs}", runs + 1
        found = killed(run, place, chance, min(PER_RUN, kills - hits), longest)
        hits, resumes = hits + found[0], resumes + found[1]
        for one, other in zip(run_folders(kind, whole), run_folders(kind, place), strict=True):
            few, wrong, said = compare(one, other)
            lost, different, notes = lost + few, different + wrong, [*notes, *said]
        print(f"{place.name}: {hits} kills, {lost} lost, {different} different", flush=True)
        if ledger(place) != ledger(whole):
            different, notes = different + 1, [*notes, f"ledger of {place.name}"]
    seconds = time.monotonic() - since
    figures = f"{kind}: {hits} kills, {resumes} resumes, {lost} lost, {different} different, {seconds:.0f} s"
    print(figures)
    assert (lost, different) == (0, 0), f"{figures}: {notes[:10]}"
    return figures


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_two_kills(kind: str, tmp_path: Path) -> None:
    kill_many(kind, tmp_path, 2)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_sixty_kills(kind: str, tmp_path: Path) -> None:
    kill_many(kind, tmp_path, 60)
