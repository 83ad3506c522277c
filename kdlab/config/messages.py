"""Messages of Lightning that are not shown."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

SILENCED = (
    "LightningCLI's args parameter is intended",
    r".*isinstance\(treespec, LeafSpec\)",
    r"Precision .* is not supported by the model summary",
    "Experiment logs directory .* exists",  # claimed_folder checks it
    "Checkpoint directory .* exists and is not empty",  # likewise
    "The dirpath has changed from",  # a resumed run has a folder of its own
)
"""Warnings of Lightning that no user of kdlab can act on."""
UNNEEDED = (
    "Tip:",
    "will override existing callbacks",  # a knowledge or a check in place of the same one, of a second fit
    "TPU available: False",
    "Seed set to",  # config.yaml has it
)
"""Parts of messages of Lightning that are not shown."""


def _is_needed(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in UNNEEDED)


def silence() -> None:
    """Drop warnings and log messages of Lightning that no user of kdlab can act on."""
    for message in SILENCED:
        warnings.filterwarnings("ignore", message)
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_needed)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Suppress Lightning's notes, which would appear once for each config."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
