"""The ``kdlab`` command."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from kdlab.errors import InputError, causes, nearest

COMMANDS = {
    "fit": "train a student, or networks that learn together",
    "validate": "evaluate on the validation set",
    "test": "evaluate on the test set",
    "predict": "write the predictions of the student, or of what is deployed",
    "demo": "distill a small student from a teacher on real digits, in under three minutes",
    "recipes": "list the recipes that ship with kdlab",
    "init": "copy a recipe, with what it is laid over, to make it your own",
    "check": "run one dry batch of a config: parts, layers, loss terms, memory, warnings",
    "tune": "measure in which setting a recipe trains fastest here, and write it as a config to lay over it",
    "layers": "list the layers of a network that can be tapped",
    "methods": "list the losses and what each needs",
    "cache": "write the outputs of a recipe's teacher on every training sample to a file",
    "export": "write the student of a run: safetensors, torch, ONNX, ExecuTorch or OpenVINO, checked; int8",
    "profile": "measure networks and exported files: size, operations, latency, memory, accuracy",
    "evaluate": "probe a run's features: neighbors, linear probe, few labels, likeness to its teachers, corruptions",
    "plot": "draw a run: curves, calibration, agreement, similarity of layers; curves of several runs",
    "reproduce": "train what is missing of a study (data, pairs, methods, seeds) and print its table",
    "report": "print and write the table of a study, beside the published numbers",
    "generations": "train a student again and again, each time taught by the one before",
}
FILES = {
    "export": "export_command",
    "init": "recipes",
    **dict.fromkeys(("reproduce", "report", "generations"), "study_commands"),
}
"""Files of commands that are not named like the command: no two modules of kdlab have the same name."""

QUICK = ("recipes", "init")
"""Commands that import neither PyTorch nor Lightning, which takes seconds."""

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
CONFIGURED = (*TRAINER_COMMANDS, "check")
"""Commands with the arguments of ``kdlab fit``."""

RANKS = ("LOCAL_RANK", "RANK", "SLURM_PROCID")
"""Variables with the number of this process, where there are several; Lightning or torchrun sets them."""
PATIENCE = 30.0
"""Seconds in which the first of several processes has ended if it met the same error."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an :class:`InputError` is printed without a traceback; the exit status is its own, 2 or 3."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # A console script does not import from the working directory: without this a user's own file is not found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not arguments or arguments[0] in ("-h", "--help"):
        summaries = "\n".join(f"  {name:<13}{summary}" for name, summary in COMMANDS.items())
        print(f"usage: kdlab COMMAND ...\n\n{summaries}\n\nkdlab COMMAND --help shows the options of one command.")
        return
    if arguments[0] == "--version":
        from kdlab import __version__

        print(f"kdlab {__version__}")
        return
    command, rest, parent = arguments[0], arguments[1:], os.getppid()
    try:
        if command not in COMMANDS:
            raise InputError(f"There is no command {command!r}; the nearest are {nearest(command, COMMANDS)}.")
        with _loading(command, rest):
            run = _command(command)
        run(rest)
    except InputError as error:
        if _is_reporting(parent):
            notes = [note for cause in causes(error) for note in getattr(cause, "__notes__", ())]
            print("\n".join([f"kdlab {command}: {error}", *notes]), file=sys.stderr)
        raise SystemExit(error.status) from error
    except KeyboardInterrupt:
        print(f"kdlab {command}: interrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _command(name: str) -> Callable[[list[str]], Any]:
    """Import what a command needs; return the function of its arguments."""
    if name in TRAINER_COMMANDS:
        from kdlab.config.lightning_cli import build
        from kdlab.config.part_help import print_part_help

        return lambda rest: print_part_help(rest) or build([name, *rest])
    from kdlab.cli.command import call

    function = getattr(import_module(f"kdlab.cli.{FILES.get(name, name)}"), name)
    return lambda rest: call(name, function, rest)


@contextmanager
def _loading(command: str, rest: Sequence[str]) -> Iterator[None]:
    """Read the configs first, then say that imports take a while.

    At Ctrl-C exit at once, since libraries turn the interrupt into errors. Garbage is not collected meanwhile, nor ever
    searched for among what was imported, which takes a fifth of the imports and most of Python's exit.
    """

    def interrupted(*_: object) -> None:
        print(f"kdlab {command}: interrupted.", file=sys.stderr, flush=True)
        os._exit(130)

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, interrupted) if is_main else None
    is_slow = command not in QUICK and "pytorch_lightning" not in sys.modules
    try:
        if is_slow:
            _announce(command, rest)
            gc.disable()
            atexit.register(gc.freeze)
        yield
    finally:
        if is_slow:
            gc.enable()
            gc.freeze()
        if is_main:
            signal.signal(signal.SIGINT, before)


def _announce(command: str, rest: Sequence[str]) -> None:
    """Print which configs a command reads and what takes time; the first of several processes does."""
    from kdlab import __version__

    files = list[str]()
    if command in CONFIGURED and not {"-h", "--help"} & {*rest}:
        from kdlab.config.config_merge import named_first, read_configs

        files = read_configs(named_first(rest) if command == "check" else rest)
    if _is_first():
        read = f"{', '.join(files)} read; " if files else ""
        print(f"kdlab {__version__}: {read}loading PyTorch and Lightning ...", file=sys.stderr, flush=True)


def _is_first() -> bool:
    """Return whether this is the first of several processes, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def _is_reporting(parent: int) -> bool:
    """Return whether this process reports an error: of several the first, another only where its parent goes on."""
    is_first = _is_first()
    end = time.monotonic() + PATIENCE
    while not is_first and os.getppid() == parent:
        if time.monotonic() > end:
            return True
        time.sleep(0.1)  # the parent is the first process, which ends with the same error, or ends this one
    return is_first
