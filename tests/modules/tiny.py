"""Small networks, data and a silent trainer for the tests of the modules."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kdlab import Distiller, Knowledge
from kdlab.data import Digits
from kdlab.losses import Hint, SoftTargets
from kdlab.models import mlp


def digits(**options: Any) -> Digits:
    """160 training images, 5 batches of 32."""
    return Digits(**({"train_size": 160, "batch_size": 32} | options))


def network(seed: int = 0, hidden: tuple[int, ...] = (16,), dropout: float = 0.0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(64, list(hidden), classes, dropout=dropout)


def pairs(size: int = 40, batch_size: int = 8, classes: int = 10, shuffle: bool = False) -> DataLoader[Any]:
    """A user's own (x, y) loader."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(size, 64, generator=generator), torch.arange(size) % classes
    return DataLoader(TensorDataset(x, y), batch_size, shuffle=shuffle)


class Silent(pl.Trainer):
    """Lightning warns where a loader to train comes without one to validate; here it never does."""

    def fit(  # type: ignore[override]
        self, model: Any, train: Any = None, val: Any = None, datamodule: Any = None, **options: Any
    ) -> None:
        if datamodule is None and not isinstance(train, pl.LightningDataModule) and val is None:
            val = pairs()
        super().fit(model, train, val, datamodule, **options)


def trainer(epochs: int = 1, **options: Any) -> Silent:
    silent = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
    }
    if "max_steps" not in options:
        options["max_epochs"] = epochs
    return Silent(**(silent | options))


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def knowledge(weight: float = 0.9, layers: tuple[str, str] = ("hidden.0", "3")) -> dict[str, Knowledge]:
    student, teacher = layers
    return {
        "soft": Knowledge(SoftTargets(4.0), weight),
        "hint": Knowledge(Hint(), weight, student_layers=[student], teacher_layers=[teacher]),
    }


def distiller(**options: Any) -> Distiller:
    defaults = {"student": network(), "teacher": network(1), "knowledge": {"soft": Knowledge(SoftTargets(2.0), 0.5)}}
    return Distiller(**({"optimizer": sgd} | defaults | options))


class Logged(pl.loggers.Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = "logged"
    version = 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, metrics))


def terms(metrics: dict[str, float]) -> set[str]:
    return {name.split("/")[1] for name in metrics if name.startswith("loss/") and not name.endswith("_weighted")}


def count_calls(net: nn.Module) -> list[int]:
    calls: list[int] = []
    net.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    return calls
