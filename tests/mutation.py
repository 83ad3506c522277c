"""A sampled mutation run: change the code in one place, and see whether a test fails.

Mutants are made by the operators of cosmic-ray, in a copy of the working tree; a fork per mutant runs the tests that
guard its module, nearest first, up to the first failure. Run with ``python tests/mutation.py --sample 200 --seed 0``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.pop(0)  # the folder of this script: its files are imported as ``tests.x``, from the copy
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "WANDB_MODE": "offline"}
sys.dont_write_bytecode = True  # Python would take a mutant for its compiled original, of the same size and second

import parso  # noqa: E402
import pytest  # noqa: E402
import pytorch_lightning  # noqa: E402, F401
import torch  # noqa: E402
import torchmetrics  # noqa: E402, F401
import torchvision  # noqa: E402, F401
from cosmic_ray.ast import ast_nodes  # noqa: E402
from cosmic_ray.mutating import mutate_code  # noqa: E402
from cosmic_ray.operators.operator import Operator  # noqa: E402
from cosmic_ray.operators.provider import OperatorProvider  # noqa: E402
from parso.tree import NodeOrLeaf  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("kdlab/losses", "kdlab/members", "kdlab/teaching", "kdlab/metrics.py", "kdlab/outputs/task_format.py")
SOURCES += ("kdlab/modules/cache_setup.py", "kdlab/modules/evaluation.py", "kdlab/modules/repeated_samples.py")
LOSSES = ["tests/losses/test_defaults.py", "tests/losses/test_contract.py", "tests/test_oracles.py"]
LOSSES += ["tests/test_readme.py::test_every_loss_has_a_config_with_its_own_weight"]
MODULES = [*(f"tests/modules/test_{name}.py" for name in ("cotrainer", "targets", "evaluation")), "tests/modules"]
WIDE = {
    "losses": ["tests/losses", "tests/test_knowledge.py"],
    "members": ["tests/members", *MODULES, "tests/teaching"],
    "teaching": ["tests/teaching", *MODULES, "tests/members"],
    "outputs": ["tests/outputs", "tests/test_metrics.py", "tests/losses/response", *MODULES],
}
"""Tests that run where the near ones pass, by part of kdlab; those of modules for the rest."""

KINDS = ({"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}, {"BitOr", "BitAnd", "BitXor"}, {"RShift", "LShift"})
KINDS += ({"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"}, {"Is", "IsNot"})
"""Operators that are exchanged among themselves; between these kinds, the code fails or means the same."""

MEMORY = 12 << 30
"""Bytes of address space of a process that runs tests."""


class Mutant(NamedTuple):
    """One change: an operator of cosmic-ray at its n-th occurrence in a file."""

    file: str
    position: tuple[int, int]
    operator: str
    occurrence: int

    def code(self, source: str) -> str | None:
        """Return the changed source, or ``None`` where it is no Python."""
        code = mutate_code(source, OperatorProvider()[self.operator](), self.occurrence)
        try:
            compile(code, self.file, "exec")
        except (SyntaxError, TypeError):
            return None
        return None if code == source else code

    def __str__(self) -> str:
        line = (ROOT / self.file).read_text().splitlines()[self.position[0] - 1].strip()
        return f"{self.file}:{self.position[0]}:{self.position[1]} {self.operator}: {line}"


def operators() -> dict[str, Operator]:
    """Return the operators that take no arguments and exchange what is of one kind."""
    provider, chosen = OperatorProvider(), {}
    for name in provider:
        exchanged = set(name.split("_")[1:]) if name.startswith(("ReplaceBinary", "ReplaceComparison")) else set()
        if not provider[name].arguments() and (not exchanged or any(exchanged <= kind for kind in KINDS)):
            chosen[name] = provider[name]()
    return chosen


UNSEEN = re.compile(r"strict=True|validate_args=False|non_blocking=True")
"""Keyword arguments that check what holds by construction, or when a copy ends: no value depends on them."""


def orders_words(node: NodeOrLeaf, operator: str) -> bool:
    """Whether a comparison with a word, which is equal or not, becomes one of the order in the alphabet."""
    if node.parent is None or not re.match(r".*_(Eq|NotEq)_(Lt|LtE|Gt|GtE)$", operator):
        return False
    return any(child.type == "string" for child in node.parent.children)


def has_no_effect(node: NodeOrLeaf | None) -> bool:
    """Whether the place is an annotation, an error with its message, an f-string, ``__all__`` or for type checkers."""
    child: NodeOrLeaf | None = None
    while node is not None:
        text = node.get_code(include_prefix=False) if node.type in {"expr_stmt", "if_stmt", "atom_expr"} else ""
        if (
            node.type in {"fstring", "raise_stmt", "tfpdef"}
            or (node.type == "argument" and UNSEEN.fullmatch(node.get_code(include_prefix=False)))
            or (node.type == "parameters" and child is not None and child.type != "param")
            or (node.type == "annassign" and child is node.children[1])
            or (node.type == "funcdef" and child is not None and child is node.annotation)
            or re.match(r"__all__|if TYPE_CHECKING|\w+Error\(", text)
        ):
            return True
        child, node = node, node.parent
    return False


def mutants(file: str) -> Iterator[Mutant]:
    """All mutants of a file."""
    nodes = list(ast_nodes(parso.parse((ROOT / file).read_text())))
    for name, operator in operators().items():
        count = 0
        for node in nodes:
            for position, _ in operator.mutation_positions(node):
                if not has_no_effect(node) and not orders_words(node, name):
                    yield Mutant(file, position, name, count)
                count += 1


def sample(files: list[str], size: int, seed: int) -> list[Mutant]:
    """Draw places, and one operator for each: a place with many operators counts once."""
    places: dict[tuple[str, tuple[int, int]], list[Mutant]] = {}
    for file in files:
        for mutant in mutants(file):
            places.setdefault((file, mutant.position), []).append(mutant)
    print(f"{len(files)} files, {len(places)} places, {sum(map(len, places.values()))} mutants", flush=True)
    chance = random.Random(seed)
    drawn = (chance.choice(places[place]) for place in chance.sample(sorted(places), len(places)))
    valid = (mutant for mutant in drawn if mutant.code((ROOT / mutant.file).read_text()) is not None)
    return [mutant for mutant, _ in zip(valid, range(size), strict=False)]


def near(file: str) -> list[str]:
    """Options of pytest for the module's doctest, its mirror and the tests that name what it defines."""
    path = Path(file)
    module = ".".join(path.with_suffix("").parts)
    names = re.findall(r"^(?:class|def) ([A-Za-z]\w+)", (ROOT / file).read_text(), re.MULTILINE)
    word = re.compile(rf"\b(?:{'|'.join(map(re.escape, [module, *names]))})\b")
    mirror = Path("tests", *path.parts[1:-1], f"test_{path.name}")
    tests = [test.relative_to(ROOT) for test in sorted((ROOT / "tests").rglob("test_*.py"))]
    rooms = {path.parts[1], "test_metrics.py", "test_knowledge.py"}
    tests = [t for t in tests if t == mirror or (t.parts[1] in rooms and word.search((ROOT / t).read_text()))]
    tests.sort(key=lambda test: (test != mirror, test.parent != mirror.parent))
    more = LOSSES if path.parts[1] == "losses" else []
    return [file, *map(str, tests), *more, "-k", " or ".join(["not test_contract", *names]), "-m", "not nightly"]


def wide(file: str) -> list[str]:
    """Options of pytest for all tests of the part that the module belongs to."""
    tests = WIDE.get(Path(file).parts[1], MODULES)
    return [*tests, "--ignore=tests/modules/test_speed.py", "-m", "not full and not nightly"]


def run(options: list[str], copy: Path, seconds: float) -> str:
    """Run tests in a fork; return how they failed, or an empty string where all pass."""
    log = copy.parent / "log.txt"
    pid = os.fork()
    if not pid:
        os.setsid()
        os.chdir(copy)
        sys.path[0:0] = [str(copy)]
        os.environ["PYTHONPATH"] = str(copy)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        with log.open("wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        code = 1
        try:
            basic = ["-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            code = pytest.main([*basic, f"--basetemp={copy.parent / 'tmp'}", *options])
        finally:
            sys.stdout.flush()
            os._exit(code)
    end, done, status = time.monotonic() + seconds, 0, 0
    while not done and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # a mutant that hangs, and what a failed test left running
    if not done:
        os.waitpid(pid, 0)
        return f"no end within {seconds:.0f} s"
    if os.waitstatus_to_exitcode(status) in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ""
    text = log.read_text(errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
    return failed[1] if failed else f"exit status {status}"


def copy_tree(copy: Path) -> None:
    """Copy the files of the working tree that git does not ignore."""
    listed = subprocess.check_output(["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)


def failure(mutant: Mutant, options: list[str], copy: Path, seconds: float, sound: dict[str, bool]) -> str:
    """Return the test that fails for a mutant alone, or an empty string; ``sound`` keeps which tests pass without."""
    path, source = copy / mutant.file, (copy / mutant.file).read_text()
    while True:
        broken = [test for test in sound if not sound[test]]
        left_out = [f"--deselect={test}" if "::" in test else f"--ignore={test}" for test in broken]
        path.write_text(mutant.code(source) or source)
        failed = run([*(option for option in options if option not in broken), *left_out], copy, seconds)
        path.write_text(source)
        if ".py" in failed and failed not in sound:
            sound[failed] = not run([failed], copy, seconds)
        if failed in broken or sound.get(failed, True):
            return "" if failed in broken else failed


def main() -> int:
    """Run a sample and print the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="number of mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="path that the files start with")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a mutant is killed by time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kdlab").rglob("*.py"))
    files = [file for file in files if file.startswith(SOURCES) and file.startswith(arguments.only)]
    chosen = sample(files, arguments.sample, arguments.seed)
    left, sound = list(chosen), dict[str, bool]()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy = Path(folder, "tree")
        copy_tree(copy)
        if failed := run(["tests/test_errors.py"], copy, arguments.timeout):
            print(f"The tests do not run without a mutant: {failed}")
            return 1
        for tests in (near, wide):
            for number, mutant in enumerate(list(left), 1):
                start = time.monotonic()
                if failed := failure(mutant, tests(mutant.file), copy, arguments.timeout, sound):
                    left.remove(mutant)
                verdict = f"killed by {failed}" if failed else f"survived the {tests.__name__} tests"
                print(f"{number} {verdict} ({time.monotonic() - start:.0f} s) {mutant}", flush=True)
    print(f"killed {len(chosen) - len(left)} of {len(chosen)}, survived {len(left)}:", *left, sep="\n")
    for test in (test for test in sound if not sound[test]):
        print(f"left out, fails without a mutant: {test}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
