"""Image sets in memory as uint8 tensors, where a batch is one gather."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from kdlab.data.fingerprint import of_images
from kdlab.data.samplers import Draw
from kdlab.outputs import Batch


class Images(Dataset[Batch]):
    """Images and labels in memory; ``images[draw]`` is a full batch.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        rows: (n,) int64, the positions in use; ``None`` for all. A batch's index counts within them.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.images = images
        self.all_labels = labels
        self.labels = labels if rows is None else labels[rows]
        self.rows = rows

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, draw: Draw) -> Batch:
        rows = draw.positions if self.rows is None else self.rows[draw.positions]
        return Batch(self.images[rows], self.labels[draw.positions], draw.positions)

    def content(self) -> str:
        """Return the SHA-256 of all images and of all labels, in use or not, hexadecimal."""
        labels = self.all_labels
        return f"{of_images(self.images, None)} {of_images(labels[:, None], None)}"
