"""Atomic checkpoint writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from kdlab.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes beside the target and renames.

    Lightning writes to the system's temporary folder and moves the file; where that is another disk the move is a copy,
    and a kill during the copy leaves half a file in place of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        if "://" in str(path):  # object stores have transactions of their own
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)
