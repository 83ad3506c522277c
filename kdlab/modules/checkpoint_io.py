"""Checkpoints: atomic writes, reads that verify checksums and run no code, and modules that say what does not fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn
from typing_extensions import Self

from kdlab.errors import InputError
from kdlab.files import atomic_write
from kdlab.models.checkpoint_reader import read_checkpoint
from kdlab.models.weights import fitting

BETWEEN_PROCESSES = ".temp.ckpt"
"""Lightning's file for the weights alone, from a process that it started to itself (``ddp_spawn``, ``ddp_fork``)."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint plugin that writes beside the target and renames, and reads what :func:`read_checkpoint` accepts.

    Lightning writes to the system's temporary folder and moves the file; where that is another disk the move is a copy,
    and a kill during the copy leaves half a file in place of the last good checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        if not is_local(path):  # object stores have transactions of their own
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the content of a checkpoint; with ``weights_only=False`` as Lightning does, code included."""
        if not is_local(path) or weights_only is False or Path(path).name == BETWEEN_PROCESSES:
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(Path(path))


def is_local(path: Any) -> bool:
    """Return whether a checkpoint is a file here, and not a URL or a file object."""
    return isinstance(path, str | os.PathLike) and "://" not in str(path)


def use_atomic_io(trainer: pl.Trainer) -> None:
    """Put :class:`AtomicCheckpointIO` in the place of Lightning's own plugin; a user's plugin stays."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def check_checkpoint(path: Path, resume: bool) -> dict[str, Any]:
    """Return the content of a checkpoint, its tensors left on the disk, with all that a run needs.

    Raises:
        InputError: it cannot be read, or holds too little to ``resume`` from.
    """
    content = read_checkpoint(path, mmap=True)
    if resume and not {"optimizer_states", "loops", "callbacks"} <= content.keys():
        raise InputError(
            f"Checkpoint {str(path)!r} holds weights only (save_weights_only), and a run cannot be resumed from it: "
            "start a run from them with the student's init_args.weights, or save whole checkpoints."
        )
    return content


def check_fit(
    module: nn.Module, networks: Iterable[nn.Module], checkpoint: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Check that a checkpoint fits networks in a module, before adapters have their sizes.

    Raises:
        InputError: it does not.
    """
    names = {id(part): name for name, part in module.named_modules()}
    for network in networks:
        fitting(network, checkpoint["state_dict"], names[id(network)], f"Checkpoint {str(path)!r}")


class CheckpointedModule(pl.LightningModule):
    """A LightningModule whose checkpoints, if they do not fit, are an :class:`InputError`."""

    _resumed: tuple[str | None, list[int]] | None = None  # the optimizer in the checkpoint: class, sizes of its groups

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the class of the optimizer."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["kdlab_optimizer"] = next((type(x).__name__ for x in self.trainer.optimizers), None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the optimizer in the checkpoint, and continue with every digit of the weights."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None:  # Lightning converts only after loading, which rounds float64 to float32
            self.trainer.precision_plugin.convert_module(self)
        if states := checkpoint.get("optimizer_states"):
            sizes = [len(group["params"]) for group in states[0]["param_groups"]]
            self._resumed = checkpoint.get("kdlab_optimizer"), sizes

    def check_resumed(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that the optimizer is of the class, and its groups of the sizes, that the checkpoint has.

        Raises:
            InputError: they are not; torch would mix the states of both, or stop in a traceback.
        """
        if self._resumed is None:
            return
        (then, sizes), self._resumed = self._resumed, None
        now, groups = type(optimizer).__name__, [len(group["params"]) for group in optimizer.param_groups]
        if then not in (None, now) or sizes != groups:
            raise InputError(
                f"The checkpoint is of another optimizer ({then or 'one'} of {sizes} tensors) than this {now} of "
                f"{groups}: resume with the config.yaml beside it, or start a run with its weights.",
                key="model.optimizer",
            )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state dict.

        Raises:
            InputError: it does not fit.
        """
        with _explained(type(self).__name__):
            return super().load_state_dict(*args, **kwargs)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Return a new module with a checkpoint's weights; the networks are arguments, since it holds tensors only.

        Raises:
            InputError: an argument is missing, or the file is no checkpoint of such a module.
        """
        if is_local(checkpoint_path) and kwargs.get("weights_only") is not False:
            read_checkpoint(Path(checkpoint_path), mmap=True)
        try:
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)
        except TypeError as error:
            if "missing" not in str(error):
                raise
            raise InputError(
                f"{cls.__name__}.load_from_checkpoint needs the networks as arguments, since a checkpoint holds "
                f"tensors only: {cls.__name__}.load_from_checkpoint(path, student=..., ...) with all that the "
                f"config.yaml beside it names; kdlab.models.load_weights reads one network ({error})."
            ) from error


@contextmanager
def _explained(module: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a state can raise almost anything
        lines = [line.strip() for line in str(error).splitlines()]
        text = " ".join(line if len(line) < 200 else f"{line[:200]}..." for line in lines[1:4] or lines)
        raise InputError(
            f"The checkpoint does not fit this {module}: use the config.yaml beside it. {text or type(error).__name__}"
        ) from error
