"""What is measured, and the limits that kdlab is held to with ``--gate``."""

from __future__ import annotations

from dataclasses import dataclass

METHODS = ["kd", "kd+at", "at", "rkd", "sp", "reviewkd", "crd"]
PARTS = ["overhead", "data", "memory"]
NOT_KEPT = "NOT KEPT"


@dataclass(frozen=True)
class Limit:
    """One limit.

    Attributes:
        part: the part of the results: ``steps``, ``overhead`` or ``data``.
        contestant: whose number.
        of: which number.
        bound: the largest allowed, or with ``at_least`` the smallest.
        means: the number in words.
        needs: ``"bf16"`` where the limit is for hardware that is faster in it.
    """

    part: str
    contestant: str
    of: str
    bound: float
    means: str
    at_least: bool = False
    needs: str | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` keeps it."""
        return value >= self.bound if self.at_least else value <= self.bound


RHO, OF_STUDENT, OF_HAND = "time over floor (S + T)", "time over the student's own step", "time over fp32 hand KD"
OF_REVIEW = "time over hand ReviewKD, with its fusion modules"

LIMITS = [
    Limit("steps", "kd/plain", "rho", 1.05, RHO),
    Limit("steps", "kd+at/plain", "rho", 1.05, RHO),
    Limit("steps", "at/plain", "rho", 1.10, RHO),
    Limit("steps", "rkd/plain", "rho", 1.10, RHO),
    Limit("steps", "sp/plain", "rho", 1.10, RHO),
    Limit("steps", "reviewkd/plain", "of_review", 1.10, OF_REVIEW),
    Limit("steps", "crd/plain", "rho", 1.40, RHO),
    Limit("steps", "kd/fast", "of_hand", 0.55, OF_HAND, needs="bf16"),
    Limit("steps", "kd/cached", "of_student", 1.05, OF_STUDENT),
    Limit("steps", "kd/cached+fast", "of_hand", 0.36, OF_HAND, needs="bf16"),
    Limit("overhead", "full", "over_lean", 0.40, "ms over Lightning alone, with bar, CSV, metrics and checkpoint"),
    Limit("overhead", "bare", "over_lean", 0.20, "ms over Lightning alone, without bar and logger"),
    Limit("overhead", "short", "of_full", 2.0, "time a step in epochs of 20 steps over that in one long epoch"),
    Limit("data", "ratio", "ratio", 4.0, "images a second over torchvision's PIL pipeline", at_least=True),
]


def judged(values: dict[tuple[str, str, str], float], bf16: bool) -> list[tuple[Limit, float, str]]:
    """Every limit whose number was measured, the number, and ``"kept"``, ``"NOT KEPT"`` or why it does not apply."""
    found = []
    for limit in LIMITS:
        value = values.get((limit.part, limit.contestant, limit.of))
        if value is None:
            continue
        verdict = "kept" if limit.holds(value) else NOT_KEPT
        if limit.needs == "bf16" and not bf16:
            verdict = "does not apply: bf16 is not faster here"
        found.append((limit, value, verdict))
    return found
