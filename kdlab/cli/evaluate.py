"""``kdlab evaluate``: what a run's features are worth, without a classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from kdlab.cli.printing import csv_text, titled_table
from kdlab.config.trained_run import TrainedRun, trained_run
from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.files import write_text
from kdlab.outputs import Batch
from kdlab.probes import CORRUPTIONS, ProbeFeatures, corrupted, features_of, fine_tuned_accuracy, knn_accuracy

COLUMNS = ("measure", "value")


def evaluate(
    run: Path,
    overrides: list[str],
    few_labels: str = "",
    corruptions: bool = False,
    severity: int = 3,
    neighbors: int = 20,
    epochs: int = 5,
    samples: int = 10000,
    out: Path | None = None,
) -> None:
    """Probe the features of a run's student on its data, or on other data.

    On labeled data: accuracy of nearest neighbors (knn) and of a linear probe (linear), trained on the training samples
    and tested on the validation samples. For every teacher that is a network, on the validation samples (without
    labels too): linear CKA (cka), cosine after a linear map (cosine), shared neighbors (neighbors).

    A transfer probe names other data: kdlab evaluate RUN --data=kdlab.data.CIFAR10 --data.root=DATA. --KEY=VALUE are
    options of kdlab fit.

    Args:
        run: folder of a run, or one of its checkpoints
        overrides: options of ``kdlab fit``
        few_labels: shares of the labels to fine-tune a copy with, such as 0.01,0.1,1
        corruptions: the accuracy of neighbors on corrupted validation images too
        severity: of the corruptions, 1 to 5
        neighbors: of knn and neighbors
        epochs: of fine-tuning
        samples: at most so many training and validation samples of the probes
        out: also write the table to this CSV file
    """
    try:
        shares = [float(share) for share in few_labels.split(",") if share]
    except ValueError:
        raise InputError(f"--few-labels is numbers with commas between them, not {few_labels!r}.") from None
    trained = trained_run(run, overrides)
    data: Any = trained.data
    if not isinstance(data, ImageData):
        raise InputError(f"kdlab evaluate probes image data of kdlab, not {type(data).__name__}.")
    probe = ProbeFeatures(neighbors=neighbors, samples=samples)
    values = probe.values(trained.module, data, trained.network)
    for share in shares:
        values[f"fine-tuned, {share:.0%} of labels"] = fine_tuned_accuracy(trained.network, data, share, epochs)
    if corruptions:
        values |= dict(_robustness(trained, probe, severity))
    rows = [(name, f"{value:.4f}") for name, value in values.items()]
    Console().print(titled_table(f"{trained.identity['run']} on {type(data).__name__}", COLUMNS, rows, COLUMNS[1:]))
    if out is not None:
        write_text(out, csv_text([COLUMNS, *rows]))


def _robustness(trained: TrainedRun, probe: ProbeFeatures, severity: int) -> Iterator[tuple[str, float]]:
    """Yield the accuracy of neighbors on images with each corruption."""
    data: Any = trained.data
    train = features_of(trained.network, probe.batches(trained.module, data, "train"))
    for name in CORRUPTIONS:

        def changed(batch: Batch, name: str = name) -> Batch:
            return batch._replace(inputs=corrupted(batch.inputs, name, severity))

        test = features_of(trained.network, probe.batches(trained.module, data, "val", changed))
        yield f"knn, {name} {severity}", knn_accuracy(train, test, probe.neighbors)
