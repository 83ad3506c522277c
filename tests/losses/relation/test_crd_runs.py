"""CRD in a run: kept in checkpoints, and the same between processes."""

import dataclasses
import multiprocessing
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from kdlab import Knowledge
from kdlab.losses import CRD
from tests.losses.relation.test_crd import SAMPLES, ready, sides, step
from tests.modules.tiny import digits, distiller, network, same, sgd, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")


def crd_run(epochs, folder, path=None, stop=None, **options):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == stop

    checkpoint = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_epochs=1)
    knowledge = {"crd": Knowledge(CRD(negatives=50, width=8), 0.8)}
    module = distiller(student=network(), teacher=network(1, (24,)), knowledge=knowledge, optimizer=sgd)
    run = trainer(epochs, callbacks=[checkpoint, Stop()], enable_checkpointing=True, **options)
    pl.seed_everything(3 if path is None else 99, verbose=False)
    run.fit(module, digits(train_size=150), ckpt_path=path)
    return module


def test_a_run_goes_on_bit_for_bit(tmp_path):
    whole = weights(crd_run(4, tmp_path / "whole"))
    assert (whole["losses.crd.memory.student"].norm(dim=1) - 1).abs().max() < 1e-5
    crd_run(4, tmp_path / "parts", stop=1)
    assert same(whole, weights(crd_run(4, tmp_path / "parts", tmp_path / "parts/last.ckpt")))


def test_a_data_set_of_items_alone():
    class Items:
        def __len__(self):
            return 24

        def __getitem__(self, index):
            if index >= 24:
                raise IndexError
            return torch.full((64,), index / 24), index % 3, index

    loss = CRD(negatives=5, width=8)
    trainer(1).fit(distiller(knowledge={"crd": Knowledge(loss)}), DataLoader(Items(), 8))
    assert loss.memory.labels.tolist() == [index % 3 for index in range(24)]
    for side in (loss.memory.student, loss.memory.teacher):
        assert (side.norm(dim=1) - 1).abs().max() < 1e-5  # every row is written: before, it is shorter


def test_two_processes_of_a_run_write_all_rows(tmp_path):
    crd_run(1, tmp_path, strategy="ddp_fork", devices=2)
    memory = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    for side in ("student", "teacher"):
        assert (memory[f"losses.crd.memory.{side}"].norm(dim=1) - 1).abs().max() < 1e-5


def one_process(rank, parts, folder, world=2):
    """A step of each process on its own part, twice, with given negatives."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    loss = ready()
    table = torch.stack([(torch.arange(7) * 3 + i) % SAMPLES for i in range(SAMPLES)])
    loss.draw = lambda index, labels: table[index]
    loss.known = None
    for number, index in enumerate(parts[rank]):
        student, teacher, labels = sides(index=torch.arange(SAMPLES), seed=10 * number)
        student = dataclasses.replace(student.map(lambda x, i=index: x[i]), index=index)
        step(loss, (student, teacher.map(lambda x, i=index: x[i]), labels[index]))
    torch.save(loss.state_dict(), Path(folder) / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_keep_the_memory_of_one(tmp_path):
    first, second = torch.tensor([3, 4, 17]), torch.tensor([8, 5])
    third, fourth = torch.tensor([3, 1]), torch.tensor([8, 3, 2, 9])  # sample 3 in both: that of process 0 counts
    parts = [[first, third], [second, fourth]]
    processes = [
        multiprocessing.get_context("fork").Process(target=one_process, args=(rank, parts, tmp_path)) for rank in (0, 1)
    ]
    for each in processes:
        each.start()
    one_process(0, [[torch.cat([first, second]), torch.cat([third, fourth])]], tmp_path, world=1)
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    one, zero, other = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for name in ("memory.student", "memory.teacher", "memory.log_z", "memory.labels"):
        assert torch.equal(zero[name], other[name]), name
        assert torch.allclose(one[name], zero[name], atol=1e-9), name
