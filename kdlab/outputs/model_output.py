"""What networks and layers return, in all its forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdlab.errors import InputError


def logits_of(raw: Any) -> Tensor:
    """The class scores in what a network returned.

    Raises:
        InputError: there are none.
    """
    if isinstance(raw, Tensor):
        return raw
    for name in ("logits", "out"):
        value = raw.get(name) if isinstance(raw, Mapping) else getattr(raw, name, None)
        if isinstance(value, Tensor):
            return value
    if isinstance(raw, Sequence) and raw and isinstance(raw[0], Tensor):
        return raw[0]
    raise InputError(
        f"The network returns {form_of(raw)}; logits must be the output itself, its first element, or named 'logits'."
    )


def tensor_of(output: Any) -> Tensor | None:
    """A layer's tensor: the output itself, or the first tensor of a tuple or of a model output."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, Sequence) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def is_compiled(module: nn.Module) -> bool:
    """Whether this very module was given to ``torch.compile``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def class_of(network: nn.Module) -> str:
    """The name of a network's class, also of a compiled one."""
    return type(getattr(network, "_orig_mod", network)).__name__


def form_of(value: Any) -> str:
    """What kind of value this is, for a message."""
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(repr, value)) or 'no keys'}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"
