"""Setup checks on the first batch: pixels of frozen teachers, files of stored outputs, labels of causal networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from kdlab.compat import uncompiled
from kdlab.data import ImageData
from kdlab.errors import InputError
from kdlab.losses.tokens import TopK
from kdlab.members.frozen import Frozen
from kdlab.members.output_file import OutputFile
from kdlab.members.stored import Stored
from kdlab.modules.first_batch import FirstBatch, warn_of_pixels
from kdlab.outputs import Batch
from kdlab.teaching import OnPolicy

_log = logging.getLogger("kdlab.modules")

CONTENT = ("images", "texts")
"""Keys of a fingerprint: the samples and their order, without what is done to them."""
SHOWN = (*CONTENT, "normalized")
"""Keys that matter where nothing is augmented."""
ROWS = 4096
"""Rows of a file that are compared with labels."""


def check_sources(module: Any, first: FirstBatch) -> FirstBatch:
    """Check the first batch against frozen teachers, stored outputs and generation; return it.

    Raises:
        InputError: a file does not belong to the data or to the losses.
    """
    plan = module.plan
    _check_generation(module, first)
    if plan.frozen:
        warn_of_pixels(module.trainer, first.batch)
    data = getattr(module.trainer, "datamodule", None)
    for member in plan.members.values():
        if isinstance(member, Stored):
            _check_samples(member, first)
            _check_data(member, data)
            _check_losses(member, module)
            _check_labels(member, first.labels)
            if (missing := member.missing_mass()) is not None:
                _log.info(
                    "%r leaves out %.3g of a row's probability on average, at most %.3g: losses on all classes spread "
                    "it over the others, TopK(missing='rest') keeps it as one bucket.",
                    *(member.path, *missing),
                )
            member.index_of = host_index(data)
    return first


def match_normalization(module: Any, data: Any) -> None:
    """Set how images are normalized: in the data what it leaves open, in frozen teachers what the data does.

    Every use of the networks on the data needs it: training, evaluation, figures, export.
    """
    student = getattr(module, "student", None)
    if callable(adopt := getattr(data, "adopt", None)) and isinstance(student, nn.Module):
        adopt(student)
    for member in module.plan.frozen:
        if isinstance(teacher := getattr(member, "teacher", member), Frozen):  # behind a cache too
            teacher.normalized = (data.mean, data.std) if isinstance(data, ImageData) else None


def _check_generation(module: Any, first: FirstBatch) -> None:
    """Check on-policy distillation, and that labels of causal networks are those of the next token.

    Raises:
        InputError: there is no knowledge, the network cannot generate, or labels are not shifted.
    """
    for name, network in module.learners.items():
        _check_shifted(name, uncompiled(network), module.task, first.batch)
    if isinstance(teaching := module.teaching, OnPolicy):
        if not module.knowledge:
            raise InputError("OnPolicy needs knowledge: of generated tokens there are no labels.")
        with isolate_rng():
            teaching.check(first.few)


def _check_shifted(name: str, network: Any, task: Any, batch: Batch) -> None:
    ids = batch.inputs.get("input_ids") if isinstance(batch.inputs, Mapping) else None
    can_generate = getattr(network, "can_generate", None)
    if (
        ids is None
        or not callable(can_generate)
        or not can_generate()
        or getattr(network.config, "is_encoder_decoder", False)
    ):
        return
    labels = batch.target
    if labels.shape != ids.shape or labels.is_floating_point():
        return
    if isinstance(task, nn.CrossEntropyLoss):
        raise InputError(
            f"The {name} gives logits (B, L, V), and torch.nn.CrossEntropyLoss takes classes at axis 1: set "
            "model.task=kdlab.losses.tokens.TokenCrossEntropy.",
            key="model.task",
        )
    counted = labels != -100
    same, shifted = (labels == ids)[counted], (labels[:, :-1] == ids[:, 1:])[counted[:, :-1]]
    if len(same) > 1 and bool(same.all()) and not bool(shifted.all()):
        raise InputError(
            f"The labels are the tokens themselves, but the {name} ({type(network).__name__}) predicts the next token: "
            "shift them once, by kdlab.losses.tokens.next_token_labels (TextData with task 'causal' does), and use "
            "kdlab.losses.tokens.TokenCrossEntropy."
        )


def host_index(data: Any) -> Any:
    """Return a function that gives the positions of a batch's samples, on the host where the data keeps them."""
    # A user's own hook may change which samples a batch has after its transfer.
    hook = getattr(type(data), "on_after_batch_transfer", None)
    is_own = not isinstance(data, ImageData) or hook is not ImageData.on_after_batch_transfer

    def index_of(batch: Batch) -> Any:
        return batch.index if is_own or data.host_index is None else data.host_index

    return index_of


def _check_samples(member: Stored, first: FirstBatch) -> None:
    if first.batch.index is None:
        raise InputError("A stored teacher needs the sample index: let the loader yield (inputs, labels, index).")
    if first.samples is None:
        raise InputError("A stored teacher needs a training set of known size.")
    if first.samples != member.file.samples:
        raise InputError(
            f"{member.path!r} has outputs of {member.file.samples} samples, but the training set has {first.samples}: "
            "use the data that it was written with (validation, train_size and omit choose samples)."
        )


def _check_data(member: Stored, data: Any) -> None:
    """Compare fingerprints and augmentation."""
    path, about, views = member.path, member.file.about, member.file.views
    augments = bool(getattr(data, "augments", False))
    if getattr(data, "mixing", None) is not None:
        raise InputError(f"{path!r} has no outputs on mixed images: drop data.mixing, or use the teacher itself.")
    if augments and not member.fixed and not about.get("augmented"):
        raise InputError(
            f"{path!r} has outputs without augmentation, but the data augments: switch it off (data.padding=0, "
            "data.flip=false), write augmented views (kdlab cache RECIPE --views=K), or set fixed=true on the teacher, "
            "which is another method (a 'fixed teacher')."
        )
    if about.get("augmented") and (distinct := getattr(data, "distinct_epochs", None)) != views:
        raise InputError(
            f"{path!r} has outputs on {views} views of each sample, but the data repeats its augmentation after "
            f"{distinct or 'no'} epochs: set data.distinct_epochs={views}.",
            key="data.distinct_epochs",
        )
    if "data" not in about:
        return
    if not callable(getattr(data, "fingerprint", None)):
        raise InputError(f"{path!r} has a fingerprint of its data, but the data has no fingerprint() to compare.")
    stored, actual = ({**each} for each in (about["data"], data.fingerprint()))
    keys = CONTENT if member.fixed else actual.keys() if augments else SHOWN
    if not {*CONTENT} & actual.keys():
        keys = actual.keys()  # a user's own fingerprint
    differ = [key for key in keys if _plain(stored.get(key)) != _plain(actual.get(key))]
    if differ:
        raise InputError(
            f"{path!r} was written with other data: {_differing(differ[0], stored, actual)}. Use the same samples in "
            "the same order (data.seed, validation and train_size choose them), or write the file again."
        )


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _differing(key: str, stored: Mapping[str, Any], actual: Mapping[str, Any]) -> str:
    what = {"images": "the samples or their order differ", "texts": "the texts, their order or their tokens differ"}
    values = f"{key} is {stored.get(key)!r} there and {actual.get(key)!r} here"
    return (
        f"{what[key]} ({str(stored.get(key))[:12]} there, {str(actual.get(key))[:12]} here)" if key in what else values
    )


def _check_losses(member: Stored, module: Any) -> None:
    tensors = member.file.tensors
    for name, own in module.knowledge.items():
        if not any(module.plan.owners[edge.teacher] is member for edge, _ in own.edges):
            continue
        what = f"Knowledge {name!r} ({type(own.loss).__name__})"
        if own.teacher_layers or "teacher_classifier" in own.needs:
            raise InputError(f"{what} reads layers of the teacher, and {member.path!r} has its outputs alone.")
        if "logits" in own.needs and not _has_logits(member.file):
            raise InputError(f"{what} compares class scores, and {member.path!r} has an embedding alone.")
        width = tensors["tokens"].shape[1] if "tokens" in tensors else None
        if isinstance(own.loss, TopK) and width is not None and own.loss.k > width:
            raise InputError(
                f"{what} compares {own.loss.k} tokens, and {member.path!r} has {width} a row: set k={width} or less."
            )


def _has_logits(file: OutputFile) -> bool:
    return bool({"logits", "probabilities", "hidden", "log_probabilities"} & file.tensors.keys())


def _check_labels(member: Stored, labels: Tensor | None) -> None:
    """Compare labels of the file with those of the data; warn where nothing shows that the order is right."""
    file, agreement = member.file, ""
    index = file.tensors.get("index", torch.arange(file.samples))
    labels = None if labels is None else labels.cpu()[index]  # in the order of the rows
    if (stored := file.tensors.get("labels")) is not None and labels is not None:
        if not torch.equal(stored.long(), labels.long()):
            row = int((stored.long() != labels).nonzero()[0])
            raise InputError(
                f"{member.path!r}: row {row} has the label {int(stored[row])}, and sample {int(index[row])} of the "
                f"training set {int(labels[row])}: the rows have another order, or classes other numbers."
            )
        return
    if "data" in file.about:
        return
    scores = next((file.tensors[name] for name in ("logits", "probabilities") if name in file.tensors), None)
    if scores is not None and labels is not None and "ends" not in file.tensors:
        chosen = torch.arange(0, len(labels), -(-len(labels) // ROWS))
        predicted, true = scores[chosen].argmax(1), labels[chosen]
        classes = max(scores.shape[1], int(true.max()) + 1)
        shares = [torch.bincount(x[x >= 0], minlength=classes).double() / len(x) for x in (predicted, true)]
        chance, right = float((shares[0] * shares[1]).sum()), float((predicted == true).double().mean())
        if right > chance + 3 * math.sqrt(chance * (1 - chance) / len(chosen)):
            return
        agreement = f", and agrees with {right:.1%} of the labels, where chance gives {chance:.1%}"
    rank_zero_warn(
        f"{member.path!r} has neither a fingerprint nor labels{agreement}: are its rows in the order of the samples' "
        "index? kdlab.members.save_outputs writes a fingerprint."
    )
