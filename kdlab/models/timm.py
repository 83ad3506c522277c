"""Networks of timm by name."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from torch import nn

from kdlab.errors import InputError, nearest
from kdlab.models.weights import load_weights


def timm_model(
    name: str,
    num_classes: int = 0,
    pretrained: bool | Literal["auto"] = False,
    in_chans: int = 3,
    weights: str | None = None,
) -> nn.Module:
    """Build a network of timm (``pip install timm``).

    ``timm.create_model`` works by class path too, but takes ``num_classes`` only through ``dict_kwargs``, not as
    ``--model.student.num_classes=10``.

    Args:
        name: timm's name of the network, e.g. ``"resnet18"`` or ``"vit_tiny_patch16_224"``.
        num_classes: number of logits; 0 for a backbone without classifier, whose embedding is its pooled output.
        pretrained: whether to load timm's pretrained weights, downloaded on first use; ``"auto"`` to do so where they
            can be fetched, and else to warn that they are random.
        in_chans: channels of the images.
        weights: a weights file, see :func:`kdlab.models.load_weights`.

    Raises:
        InputError: timm is not installed, has no network of that name, its weights cannot be fetched, or the weights do
            not fit.
    """
    try:
        import timm  # an optional dependency
    except ImportError as error:
        raise InputError(f"Network {name!r} needs timm: install it with `pip install timm`.") from error
    if ":" not in name and not timm.is_model(name.partition(".")[0]):  # timm checks "hf-hub:..." names
        raise InputError(f"timm has no network {name!r}; the nearest names are {nearest(name, timm.list_models())}.")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    network: nn.Module
    try:
        network = timm.create_model(name, pretrained=bool(pretrained), **options)
    except Exception as error:  # of the hub and of urllib
        if not pretrained:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        if pretrained is True:
            raise InputError(
                f"The weights of {name!r} cannot be fetched ({reason}): give a file with weights=..., or "
                "pretrained=false for random ones."
            ) from error
        network = timm.create_model(name, **options)
        warnings.warn(
            f"The weights of {name!r} cannot be fetched, so they are RANDOM: as a teacher it teaches nothing; give a "
            f"file with weights=... ({reason}).",
            stacklevel=2,
        )
    return network if weights is None else load_weights(network, weights)
