"""Writing a file of a recipe's own teacher's outputs for every training sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses.tokens import top_k_of
from kdlab.members.output_file import writer
from kdlab.modules.cache_setup import describe
from kdlab.modules.first_batch import every_batch, first_batch
from kdlab.outputs import Batch, Outputs
from kdlab.outputs.factored import FactoredLogits
from kdlab.schedules import Progress


class Choice(NamedTuple):
    """What is written.

    Attributes:
        views: epochs of augmentation; 1 for data without.
        dtype: of the numbers.
        top_k: the number of tokens or classes of each row; ``None`` for all.
        hidden: last hidden states and the head instead of logits.
        embedding: embeddings too.
    """

    views: int = 1
    dtype: torch.dtype = torch.float32
    top_k: int | None = None
    hidden: bool = False
    embedding: bool = False


@torch.no_grad()
def write_outputs(module: Any, path: Path, choice: Choice) -> int:
    """Write the teacher's outputs on every training sample, as a training sees it; return the bytes of the file.

    The file is whole or it is not there. Called at the start of a fit of one process, which is not to go on: epochs are
    counted here.

    Raises:
        InputError: there is no frozen teacher, no fingerprint or index, augmentation without ``views``, a number that
            is not finite, or something is asked for that the teacher does not give.
    """
    data = module.trainer.datamodule
    about = {"views": choice.views, "augmented": _check(module, data, choice), "data": data.fingerprint()}
    about["teacher"] = [
        {"class": type(network).__name__, "weights": describe(network)["weights"]}
        for member in module.plan.frozen
        for network, _ in member.networks_of(member.name)
    ]
    first, sample = first_batch(module), next(_observed(module, choice, 0))
    assert first.samples is not None
    tensors = {name: value.cpu() for name, value in _rows(*sample, choice).items()}
    about["num_classes"] = sample[1].logits.shape[-1]
    fixed: dict[str, Tensor] = {} if first.labels is None else {"labels": first.labels.long()}
    by_token = sample[1].logits.dim() == 3
    if by_token:
        fixed["ends"] = _lengths(module, first.samples).cumsum(0)
    if choice.hidden:
        factors: Any = sample[1].logits
        fixed["head.weight"] = factors.weight.cpu()
        fixed |= {} if factors.bias is None else {"head.bias": factors.bias.cpu()}
    count = int(fixed["ends"][-1]) if by_token else first.samples
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    shapes = {name: ((count * choice.views, value.shape[1]), value.dtype) for name, value in tensors.items()}
    shapes |= {name: (tuple(value.shape), value.dtype) for name, value in fixed.items()}
    written = torch.zeros(count * choice.views, dtype=torch.bool)
    with writer(path, shapes, about) as places:
        for name, value in fixed.items():
            places[name].copy_(value)
        for view in range(choice.views):
            for batch, outputs in _observed(module, choice, view):
                at = _places(batch, fixed.get("ends")) + view * count
                for name, value in _rows(batch, outputs, choice).items():
                    places[name][at] = value.cpu()
                written[at] = True
        if not bool(written.all()):
            raise InputError(
                f"{int((~written).sum())} of {len(written)} rows never came: the loader leaves samples out."
            )
    return path.stat().st_size


def _check(module: Any, data: Any, choice: Choice) -> bool:
    """Check that the outputs are functions of the sample and view; return whether the data augments."""
    if module.trainer.world_size > 1:
        raise InputError("kdlab cache runs in one process: set --trainer.devices=1.")
    owner = module.plan.owners.get("teacher")
    if owner is None or not owner.is_frozen:
        raise InputError("kdlab cache writes the outputs of a frozen teacher named 'teacher', and the recipe has none.")
    if getattr(owner, "batchnorm", "") == "batch":
        raise InputError("With teacher_batchnorm='batch' a sample's outputs depend on its batch: they are not stored.")
    if not callable(getattr(data, "fingerprint", None)):
        raise InputError("kdlab cache needs a data module with fingerprint(), as those of kdlab.data have.")
    augments = bool(getattr(data, "augments", False))
    if augments and data.distinct_epochs != choice.views:
        raise InputError(
            "The recipe's data augments, so each epoch shows other inputs: --views=K writes those of K epochs, for "
            "trainings with data.distinct_epochs=K; --data.padding=0 --data.flip=false writes the images as they are."
        )
    return augments


def _observed(module: Any, choice: Choice, view: int) -> Iterator[tuple[Batch, Outputs]]:
    """Iterate over the batches of an epoch with the teacher's outputs."""
    trainer, plan = module.trainer, module.plan
    trainer.fit_loop.epoch_progress.current.processed = view  # the epoch that data and sampler see
    trainer.fit_loop.epoch_progress.current.completed = view
    for member in plan.frozen:
        member.factors = choice.hidden
    progress = Progress(view, 0) if choice.hidden else None
    for batch in every_batch(module):
        with trainer.precision_plugin.forward_context():
            seen = module.observe(batch._replace(progress=progress), plan.frozen)
        yield batch, seen["teacher"]


def _rows(batch: Batch, outputs: Outputs, choice: Choice) -> dict[str, Tensor]:
    """Return what is written of a batch, (B, width), or (T, width) of its T tokens."""
    logits, embedding = outputs.logits, outputs.embedding
    mask = batch.mask
    if logits.dim() not in (2, 3) or (logits.dim() == 3 and mask is None):
        raise InputError(
            f"kdlab cache writes logits (B, K), or (B, L, K) of inputs with a mask, not {tuple(logits.shape)}."
        )
    if choice.hidden and not (isinstance(logits, FactoredLogits) and logits.computed is None and not logits.after):
        raise InputError(
            "--hidden stores the input of the teacher's last linear layer, but the logits are not its plain output: "
            "use --top-k=K, or leave both away."
        )
    if choice.embedding and (embedding is None or embedding.dim() != logits.dim()):
        raise InputError("The teacher gives no embedding of each row of its logits: drop --embedding.")

    def pick(value: Tensor) -> Tensor:
        return value if logits.dim() == 2 else value[mask.bool()]  # type: ignore[union-attr]

    rows: dict[str, Tensor] = {}
    if choice.hidden:
        rows["hidden"] = pick(logits.hidden)  # type: ignore[attr-defined]
    elif choice.top_k is not None:
        if not 1 <= choice.top_k < logits.shape[-1]:
            raise InputError(f"--top-k must be from 1 to {logits.shape[-1] - 1}, not {choice.top_k}.")
        log_p, tokens = top_k_of(pick(logits), choice.top_k)
        rows["log_probabilities"], rows["tokens"] = log_p, tokens.int()
    else:
        rows["logits"] = pick(logits)
    if choice.embedding:
        rows["embedding"] = pick(embedding)  # type: ignore[arg-type]
    rows = {name: value if name == "tokens" else value.to(choice.dtype) for name, value in rows.items()}
    for name, value in rows.items():
        if name != "tokens" and not bool(value.isfinite().all()):
            raise InputError(f"The teacher's {name} has a number that is not finite, or too large for the dtype.")
    return rows


def _places(batch: Batch, ends: Tensor | None) -> Tensor:
    """Return the rows of a batch's samples, or of all their tokens."""
    assert batch.index is not None
    index = batch.index.cpu()
    if ends is None:
        return index
    starts = torch.where(index > 0, ends[(index - 1).clamp(min=0)], 0)
    return torch.cat([torch.arange(int(a), int(b)) for a, b in zip(starts, ends[index], strict=True)])


def _lengths(module: Any, samples: int) -> Tensor:
    """Return the number of tokens of each sample, (N,) int64."""
    lengths = torch.zeros(samples, dtype=torch.int64)
    for batch in every_batch(module):
        assert batch.index is not None
        assert batch.mask is not None
        lengths[batch.index.cpu()] = batch.mask.bool().sum(1).cpu()
    return lengths
