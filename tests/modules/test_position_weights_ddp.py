"""Two processes (gloo, CPU) with unequal numbers of labels have the gradient of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from kdlab import Distiller, Knowledge
from kdlab.losses import ForwardKL
from kdlab.losses.tokens import TokenCrossEntropy
from tests.modules.test_token_training import networks, sequences
from tests.modules.tiny import trainer

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")]


class Shared(DataLoader[Any]):
    """Batches that each process takes its half of: rows 0, 2, ... or 1, 3, ... of those of one process."""

    def __init__(self, rows: list[dict[str, Tensor]], size: int, rank: int, processes: int) -> None:
        chosen = rows[rank::processes]
        super().__init__(chosen, batch_sampler=BatchSampler(SequentialSampler(chosen), size // processes, False))  # type: ignore[arg-type]


class Data(pl.LightningDataModule):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.rows = rows

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return Shared(self.rows, 4, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class Keep(pl.Callback):
    """Writes the student's weights after its only step."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            torch.save(pl_module.student.state_dict(), self.path)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_have_the_gradient_of_one(accumulate: int, tmp_path: Path) -> None:
    rows = sequences()
    counts = [sum(int(row["labels"].ne(-100).sum()) for row in rows[rank:4:2]) for rank in (0, 1)]
    assert counts == [8, 3], "the halves of the first batch are to differ"
    student, teacher = (network.double() for network in networks())
    labeled = torch.stack([row["labels"] for row in rows[: 4 * accumulate]])
    batch = {key: torch.stack([row[key] for row in rows[: 4 * accumulate]]) for key in ("input_ids", "attention_mask")}
    counted = labeled != -100
    log_q = student(**batch)["logits"][counted].log_softmax(-1)
    log_p = teacher(**batch)["logits"][counted].log_softmax(-1).detach()
    task = -log_q.gather(1, labeled[counted][:, None]).mean()
    (task + 0.5 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()).backward()  # over all labels of all processes
    expected = {name: parameter.grad for name, parameter in student.named_parameters()}
    before = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
    for processes in (1, 2):
        student, teacher = networks()
        module = Distiller(
            student,
            teacher,
            {"tokens": Knowledge(ForwardKL(), 0.5)},
            task=TokenCrossEntropy(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        )
        strategy = {"strategy": "ddp_fork", "devices": processes} if processes > 1 else {}
        keep = Keep(tmp_path / f"{processes}.pt")
        options = {"accumulate_grad_batches": accumulate, "use_distributed_sampler": False, **strategy}
        run = trainer(1, precision="64-true", callbacks=[keep], **options)
        run.fit(module, datamodule=Data(rows[: 4 * accumulate]))
        after = torch.load(keep.path, weights_only=True)
        for name, value in expected.items():
            assert value is not None
            gradient = (before[name] - after[name]) / 0.5
            assert float((gradient - value).abs().max()) < 1e-12, (processes, name)
            assert float(value.abs().max()) > 1e-4
