"""The first training batch, read before the first step without using any of the data up."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.data import sized_len
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import BatchSampler

from kdlab.compat import is_lazy, process_train_dataloader, train_dataloader, transfer_batch
from kdlab.data import ImageData
from kdlab.data.samplers import Shuffled
from kdlab.errors import InputError
from kdlab.outputs.containers import Batch, Mix, inputs_of

SAMPLES = 8
"""The number of samples of the first batch that a dry run takes."""


class FirstBatch(NamedTuple):
    """The first batch of the training, and what its loader declares.

    Attributes:
        batch: the whole first batch, as the networks see it.
        batches: batches an epoch, on this process; ``None`` if the loader has no length.
        samples: size of the data set; ``None`` if it has none.
        labels: (samples,) int64 labels, where the data set has ``labels`` or ``targets``.
        smallest: samples in the smallest batch that this process will train on; ``None`` if unknown.
    """

    batch: Batch
    batches: int | None
    samples: int | None
    labels: Tensor | None
    smallest: int | None = None

    @property
    def few(self) -> Batch:
        """Return the samples of a dry run, see :meth:`first`."""
        return self.first(SAMPLES)

    def first(self, samples: int) -> Batch:
        """Return the first samples of the batch; a view that is still empty has the batch itself."""
        count, views = len(self.batch.target), {}
        for name, view in (self.batch.views or {}).items():
            view = view if len(inputs_of(view)) else self.batch
            apart, rest = divmod(len(inputs_of(view)), count)
            size = samples if rest else apart * samples  # the last batch may be of another size
            views[name] = first_samples(view, size) if isinstance(view, Batch) else view[:size]
        return first_samples(self.batch, samples)._replace(views=views or None)


def first_batch(module: pl.LightningModule) -> FirstBatch:
    """Return the first training batch, prepared as for a step; no random state is used up.

    The batch is where the module is now (on the CPU in ``setup``, whatever the accelerator), in its floating dtype.
    """
    with _loader(module) as loader:
        batch = next(_batches(module, loader), None)
        if batch is None:
            raise InputError("The training loader yields no batch: the data set is empty or smaller than one batch.")
    data: Any = getattr(loader.flattened[0], "dataset", None) if len(loader.flattened) == 1 else None
    samples = len(data) if hasattr(data, "__len__") else None
    labels = getattr(data, "labels", getattr(data, "targets", None))
    labels = torch.as_tensor(labels) if isinstance(labels, (Tensor, Sequence)) and len(labels) == samples else None
    usable = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
    smallest = _last_size(loader.flattened[0], module.trainer) if len(loader.flattened) == 1 else None
    return FirstBatch(batch, sized_len(loader), samples, labels if usable else None, smallest)


def warn_of_pixels(trainer: pl.Trainer, batch: Batch) -> None:
    """Warn of images that are far from mean 0 and standard deviation 1, on which a trained teacher loses accuracy.

    Args:
        trainer: whose data normalizes the images by its ``mean`` and ``std``.
        batch: the first one, normalized.
    """
    data, images = getattr(trainer, "datamodule", None), batch.inputs
    if not isinstance(data, ImageData) or not isinstance(images, Tensor) or images.dim() != 4:
        return
    std, mean = torch.std_mean(images.detach().float(), (0, 2, 3))
    if mean.mean().abs() > 0.5 or not 0.5 <= std.mean() <= 2:
        scale, shift = torch.tensor(data.std).to(std), torch.tensor(data.mean).to(mean)
        raw = [[round(x, 3) for x in values.tolist()] for values in (mean * scale + shift, std * scale)]
        rank_zero_warn(
            f"After normalization the images of the first batch have mean {mean.mean():.2f} and standard deviation "
            f"{std.mean():.2f}, far from 0 and 1; a teacher needs the data.mean and data.std that it was trained with. "
            f"They are {data.mean} and {data.std}, those of these images {raw[0]} and {raw[1]}."
        )


def every_batch(module: pl.LightningModule) -> Iterator[Batch]:
    """Iterate over all samples of one epoch of this process, in batches prepared as by :func:`first_batch`."""
    with _loader(module) as loader:
        for each in loader.flattened:
            if isinstance(sampler := getattr(each, "sampler", None), Shuffled):
                sampler.drop_last = False
        yield from _batches(module, loader)


def _last_size(loader: Any, trainer: pl.Trainer) -> int | None:
    """Return the samples in the last batch of an epoch, the smallest; ``None`` if unknown or if it never comes."""
    batches, limit = sized_len(loader), trainer.limit_train_batches
    if batches is None:
        return None
    run = min(batches, limit if isinstance(limit, int) else int(batches * limit))
    if trainer.max_steps != -1:
        run = min(run, trainer.max_steps * trainer.accumulate_grad_batches)
    if isinstance(order := getattr(loader, "sampler", None), Shuffled):
        sizes = [(end - start) // order.num_replicas for start, end in order.bounds()]
        return min(sizes[:run], default=None)
    batching = getattr(loader, "batch_sampler", None)
    if type(batching) is not BatchSampler or (samples := sized_len(batching.sampler)) is None:
        return None
    rest = 0 if batching.drop_last or run < batches else samples % batching.batch_size
    return rest or batching.batch_size


@contextmanager
def _loader(module: pl.LightningModule) -> Iterator[CombinedLoader]:
    trainer = module.trainer
    with isolate_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning says all this again when it prepares the loader itself
        source = train_dataloader(trainer)
        loader = source if isinstance(source, CombinedLoader) else CombinedLoader(source, "max_size_cycle")
        loader.flattened = [process_train_dataloader(trainer, each) for each in loader.flattened]
        generators = [g for each in loader.flattened if (g := getattr(each, "generator", None)) is not None]
        states = [generator.get_state() for generator in generators]
        yield loader
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _batches(module: pl.LightningModule, loader: CombinedLoader) -> Iterator[Batch]:
    weight = next((each for each in module.parameters() if not is_lazy(each)), torch.empty(0))
    for raw, *_ in iter(loader):
        if raw is None:
            return
        yield _cast(Batch.of(transfer_batch(module, raw, weight.device)), weight.dtype)


def first_samples(batch: Batch, count: int) -> Batch:
    """Return the first samples of a batch, without its views."""
    index, mix = batch.index, batch.mix
    return Batch(
        _first(batch.inputs, len(batch.target), count),
        batch.target[:count],
        None if index is None else index[:count],
        # A partner that is cut off is replaced by one that is not.
        mix=None if mix is None else Mix(mix.partner[:count] % len(mix.partner[:count]), mix.share[:count]),
    )


def _first(inputs: Any, samples: int, count: int) -> Any:
    """Return the first entries of what has one for every sample; all else, such as a number or a word, as it is."""
    if isinstance(inputs, Mapping):
        return {name: _first(value, samples, count) for name, value in inputs.items()}
    if isinstance(inputs, Tensor):
        return inputs[:count] if inputs.dim() and len(inputs) == samples else inputs
    if type(inputs) not in (list, tuple):
        return inputs
    return inputs[:count] if len(inputs) == samples else type(inputs)(_first(part, samples, count) for part in inputs)


def _cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, Batch):  # labels that are probabilities keep their precision
        return inputs._replace(inputs=_cast(inputs.inputs, dtype), views=_cast(inputs.views, dtype))
    if isinstance(inputs, Mapping):
        return {name: _cast(value, dtype) for name, value in inputs.items()}
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
