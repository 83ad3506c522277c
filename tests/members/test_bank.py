"""Banks: recorded rows by sample index, when they are written and what a sample without one gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab import InputError
from kdlab.members import Bank
from kdlab.members.bank import NEVER
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress

SAMPLES, CLASSES = 6, 4


def logits(seed: int, count: int = 3) -> Tensor:
    return torch.randn(count, CLASSES, generator=torch.Generator().manual_seed(seed))


def at(epoch: int | None, index: list[int], target: Any = None) -> Batch:
    """A batch of these samples in that epoch, or in evaluation."""
    progress = None if epoch is None else Progress(epoch, epoch)
    labels = torch.tensor(index) % CLASSES if target is None else target
    return Batch(torch.empty(len(index), 1), labels, torch.tensor(index), progress=progress)


def outputs(values: Tensor, index: list[int]) -> dict[str, Outputs]:
    return {"net": Outputs(values.requires_grad_(), index=torch.tensor(index))}


def bank(*, ready: bool = True, **options: Any) -> Bank:
    """A bank that is sized by a dry run."""
    made = Bank("net@past", "net", "net", **options)
    made.setup(SAMPLES)
    if ready:
        made.is_dry_run = True
        made(at(0, [0, 1, 2]), outputs(logits(0), [0, 1, 2]))
        made.is_dry_run = False
    return made


def test_rows_come_back_by_index_and_detached() -> None:
    made, first, second = bank(), logits(1), logits(2)
    made.record(at(0, [0, 2, 4]), outputs(first, [0, 2, 4]))
    made.record(at(0, [5, 1, 3]), outputs(second, [5, 1, 3]))
    rows = made(at(1, [4, 5, 0]), outputs(logits(3), [4, 5, 0]))["net@past"]
    assert torch.equal(rows.logits, torch.stack([first[2], second[0], first[0]]))
    assert not rows.logits.requires_grad
    assert rows.index is not None
    assert rows.index.tolist() == [4, 5, 0]


@pytest.mark.parametrize(("every", "written"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2])])
def test_rows_are_written_every_n_epochs(every: int, written: list[int]) -> None:
    made, index = bank(every=every), [0, 1, 2]
    for epoch in range(4):
        before = made.remembered.clone()
        made.record(at(epoch, index), outputs(logits(epoch), index))
        assert torch.equal(made.remembered, before) == (epoch not in written)


def test_wait_gives_nothing_before_the_first_recording() -> None:
    made, index = bank(every=2, wait=True), [0, 1, 2]
    given = [bool(made(at(epoch, index), outputs(logits(0), index))) for epoch in range(4)]
    assert given == [False, False, True, True]


def test_unknown_samples_have_the_distribution_of_their_label() -> None:
    made = bank(label_unknown=True)
    made.record(at(0, [1]), outputs(logits(1, 1), [1]))
    rows = made(at(1, [0, 1, 3]), outputs(logits(2), [0, 1, 3]))["net@past"].logits
    probabilities = rows.softmax(1)
    assert torch.equal(probabilities[0], F.one_hot(torch.tensor(0), CLASSES).float())
    assert torch.equal(rows[1], logits(1, 1)[0])
    assert torch.equal(probabilities[2], F.one_hot(torch.tensor(3), CLASSES).float())


def test_labels_are_not_read_unless_they_stand_for_unknown_samples() -> None:
    rows = bank()(at(1, [0], torch.rand(1, CLASSES)), outputs(logits(2, 1), [0]))["net@past"].logits
    assert not rows.any()


def test_evaluation_reads_and_writes_nothing() -> None:
    made, index = bank(), [0, 1, 2]
    assert made(at(None, index), outputs(logits(1), index)) == {}
    made.record(at(None, index), outputs(logits(1), index))
    assert not made.known.any()


def test_no_rows_for_an_empty_reader() -> None:
    assert bank()(at(1, [0]), outputs(logits(0, 0), [])) == {}


def test_rows_have_the_banks_dtype_and_are_read_in_the_networks() -> None:
    made, index = bank(dtype=torch.float16), [0, 1, 2]
    made.record(at(0, index), outputs(logits(1), index))
    assert made.remembered.dtype == torch.float16
    rows = made(at(1, index), outputs(logits(2).double(), index))["net@past"].logits
    assert torch.equal(rows, logits(1).half().double())


def test_a_state_dict_sizes_and_fills_a_new_bank() -> None:
    made, index = bank(), [0, 1, 2]
    made.record(at(0, index), outputs(logits(1), index))
    fresh = bank(ready=False)
    fresh.load_state_dict(made.state_dict())
    assert fresh.remembered.shape == (SAMPLES, CLASSES)
    assert torch.equal(fresh.remembered, made.remembered)
    assert torch.equal(fresh.known, made.known)


def dry(made: Bank, batch: Batch, seen: dict[str, Outputs]) -> None:
    made.is_dry_run = True
    made(batch, seen)


def sized(samples: int | None) -> Bank:
    made = bank(ready=False)
    made.setup(samples)
    return made


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: dry(sized(None), at(0, [0]), outputs(logits(0, 1), [0])), "a data set with a length, and a loader"),
        (
            lambda: dry(sized(6), at(0, [0])._replace(index=None), outputs(logits(0, 1), [0])),
            r"yields \(inputs, labels, index\)",
        ),
        (lambda: dry(sized(6), at(0, [0]), outputs(logits(0, 1)[:, None], [0])), r"logits \(B, K\), not \(1, 1, 4\)"),
        (lambda: dry(sized(6), at(0, [0]), outputs(logits(0, 1)[0], [0])), r"logits \(B, K\), not \(4,\)"),
        *(
            (
                lambda target=target: bank(label_unknown=True)(at(0, [0], target), outputs(logits(0, 1), [0])),
                r"class indices \(B,\) as labels: drop mixing",
            )
            for target in (torch.rand(1, CLASSES), torch.rand(1), torch.zeros(1, 1).long(), torch.tensor(0))
        ),
    ],
)
def test_data_that_cannot_be_kept_raises(run: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run()


def test_ignored_labels_are_all_classes_alike() -> None:
    labels = torch.tensor([-100, -1, 0])
    rows = bank(label_unknown=True)(at(0, [0, 1, 2], labels), outputs(logits(2), [0, 1, 2]))["net@past"].logits
    assert rows.tolist() == [[0.0] * 4, [0.0] * 4, [0.0, NEVER, NEVER, NEVER]]


def test_recording_keeps_no_graph() -> None:
    made, index = bank(), [0, 1, 2]
    made.record(at(0, index), outputs(logits(1), index))
    assert not made.remembered.requires_grad
