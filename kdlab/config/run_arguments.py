"""Run folders on the command line, for their last checkpoint and config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdlab.errors import InputError

CHECKPOINT = "--ckpt_path"


def last_checkpoint(folder: Path) -> Path:
    """Return the path of the checkpoint that a run is resumed from; it need not exist."""
    return folder / "checkpoints" / "last.ckpt"


def with_run_folders(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of ``kdlab fit`` with the last checkpoint for a run's folder in ``--ckpt_path=FOLDER``.

    Where they name neither a config nor a model, the run's config is put first.

    Raises:
        InputError: the folder is no run's.
    """
    changed = list(arguments)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals and index and arguments[index - 1] == CHECKPOINT:
            option, value = "", argument
        elif option != CHECKPOINT or not equals:
            continue
        config = Path(value) / "config.yaml"
        if value and Path(value).is_dir() and not config.is_file() and Path(value).suffix != ".ckpt":  # else sharded
            text = f"{CHECKPOINT}: the folder {value!r} has no config.yaml, so it is no run that kdlab trained."
            raise InputError(text, key="ckpt_path", value=value)
        if value and config.is_file():
            changed[index] = f"{option}{equals}{last_checkpoint(Path(value))}"
            names = {other.partition("=")[0] for other in arguments}
            if not names & {"-c", "--config", "--model"}:
                changed.insert(bool(changed) and not changed[0].startswith("-"), f"--config={config}")
    return changed
