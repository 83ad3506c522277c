"""What a module arranges before a training: DDP, the data's views, logging, names."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from kdlab import InputError, Knowledge
from kdlab.losses import RKDDistance, SoftTargets
from kdlab.modules.dry_run import DryRun
from kdlab.modules.setup_checks import configure_ddp, report_batch, setup_logging
from kdlab.teaching import Classmate, Peers
from tests.modules.cotraining import cotrainer
from tests.modules.tiny import digits, distiller, network, trainer


def configured(update: Any, dry_run: DryRun, **options: Any) -> Any:
    """What DDP expects of parameters without gradient."""
    module = cotrainer(teaching=Peers(update))
    strategy = DDPStrategy(**options)
    module.trainer = SimpleNamespace(strategy=strategy)
    configure_ddp(module, module.plan, dry_run)
    return strategy._ddp_kwargs.get("find_unused_parameters")


def test_ddp_expects_what_has_no_gradient_and_nothing_else() -> None:
    assert configured("simultaneous", DryRun(5)) is None
    assert configured("sequential", DryRun(5)) is True  # while one network learns the other gets none
    assert configured("simultaneous", DryRun(5, idle=["networks.a.fc.weight"])) is True
    assert configured("simultaneous", DryRun(5, resting=["networks.a.fc.weight"])) is True


def test_parts_without_gradient_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        configured("simultaneous", DryRun(5, idle=["networks.a.fc.weight", "networks.a.fc.bias"]))
    assert caplog.messages == [
        "DDP looks for unused parameters at each step: at times there is no gradient for networks.a.fc."
    ]


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_a_users_word_to_ddp_counts(update: Any) -> None:
    assert configured(update, DryRun(5, idle=["networks.a.fc.weight"]), find_unused_parameters=False) is False


def reported(caplog: pytest.LogCaptureFixture, processes: int, **options: Any) -> str:
    caplog.set_level(logging.INFO)
    module = distiller(**options)
    optimizer = torch.optim.SGD([{"params": module.student.parameters(), "lr": 0.05}])
    settings = {"world_size": processes, "accumulate_grad_batches": 2, "optimizers": [optimizer]}
    module.trainer = cast(Any, SimpleNamespace(**settings))
    report_batch(module, module.knowledge, DryRun(1, 16))
    return caplog.text


def test_batch_and_learning_rate_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    text = reported(caplog, 2)
    assert "A step takes 64 samples (16 in each of 2 processes, 2 accumulated batches); learning rate 0.05." in text
    assert "BatchNorm" not in text


def test_what_two_processes_compute_otherwise_is_named(caplog: pytest.LogCaptureFixture) -> None:
    student = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10), nn.SyncBatchNorm(10))
    knowledge = {"near": Knowledge(RKDDistance()), "all": Knowledge(RKDDistance(), gather=True)}
    assert "student.1" not in reported(caplog, 1, student=student, knowledge=knowledge)
    with pytest.warns(UserWarning, match="BatchNorm normalizes") as warned:
        text = reported(caplog, 2, student=student, knowledge=knowledge)
    part = "the 16 samples of one process, not all 32"
    (message,) = [str(one.message) for one in warned]
    assert f"BatchNorm normalizes with {part}, so this run differs from that of one process: student.1." in message
    assert "Its statistics stay those of each process: torch synchronizes BatchNorm on GPUs only" in message
    assert f"Knowledge 'near' (RKDDistance) compares {part}: gather=true compares all." in text
    assert "Knowledge 'all'" not in text


def test_plain_training_takes_back_what_a_teaching_asked_of_the_data() -> None:
    data = digits()
    trainer(max_steps=1).fit(cotrainer({"net": network()}, teaching=Classmate()), data)
    trainer(max_steps=1).fit(distiller(teacher=None, knowledge=None), data)
    assert data.prepare(next(iter(data.train_dataloader())), 0).views is None


@contextmanager
def unarranged() -> Iterator[logging.Logger]:
    """The log as if nobody had arranged anything."""
    log = logging.getLogger("kdlab")
    before = log.handlers, logging.root.handlers, log.level
    log.handlers, logging.root.handlers = [], []
    log.setLevel(logging.NOTSET)
    try:
        yield log
    finally:
        log.handlers, logging.root.handlers = before[:2]
        log.setLevel(before[2])


@pytest.mark.parametrize(("rank", "level"), [(0, logging.INFO), (1, logging.WARNING)])
def test_the_log_is_heard_once_and_in_full_from_one_process(rank: int, level: int) -> None:
    with unarranged() as log:
        for _ in range(2):
            setup_logging(rank)
        assert log.level == level
        assert len(log.handlers) == 1


@pytest.mark.parametrize("name", ["kdlab", None])
def test_a_users_own_log_is_left_alone(name: str | None) -> None:
    with unarranged() as log:
        logging.getLogger(name).addHandler(own := logging.NullHandler())
        log.setLevel(logging.ERROR)
        setup_logging(0)
        assert log.level == logging.ERROR
        assert [*log.handlers, *logging.root.handlers] == [own]


def test_no_knowledge_is_called_like_the_sum_of_all() -> None:
    with pytest.raises(InputError, match=r"must be a plain word .* not 'total'"):
        cotrainer(knowledge={"total": Knowledge(SoftTargets())})
