"""Logits kept as hidden states and the linear layer that projects them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

ROWS = 64
"""Rows that are projected at a time where the largest logits are looked for."""


class FactoredLogits(Tensor):
    r"""Logits (..., V) that are not computed: hidden states (..., D) and the head that projects them.

    .. math:: z = g(h W^T + b)

    A loss that compares a few rows at a time projects those alone: tokens x vocabulary is never stored. Detaching,
    flattening and selecting rows, slices of the vocabulary, casts, and scaling or soft-capping (``*``, ``/``, ``tanh``)
    keep the factors, and ``argmax`` goes row by row. Any other operation computes the logits, once, with the gradient
    that they have without factors: what knows nothing of this class is right and only needs the memory.

    Attributes:
        hidden: (..., D).
        weight: (V, D).
        bias: (V,) or ``None``.
        after: elementwise functions on the logits, in order.
        computed: the logits, once something needed them; they may have been changed in place since, so they count.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    after: tuple[Callable[[Tensor], Tensor], ...]
    computed: Tensor | None

    @staticmethod
    def __new__(
        cls,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        after: tuple[Callable[[Tensor], Tensor], ...] = (),
        dtype: torch.dtype | None = None,
    ) -> FactoredLogits:
        """Return the logits of ``hidden``, whose dtype is that of the product and of ``after``."""
        made: FactoredLogits = Tensor._make_wrapper_subclass(
            cls, (*hidden.shape[:-1], weight.shape[0]), dtype=dtype or hidden.dtype, device=hidden.device
        )
        made.hidden, made.weight, made.bias, made.after, made.computed = hidden, weight, bias, after, None
        return made

    def with_(self, **changes: Any) -> FactoredLogits:
        """Return the same with other parts."""
        parts = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias, "after": self.after}
        return type(self)(**{"dtype": self.dtype, **parts, **changes})

    def dense(self) -> Tensor:
        """Return the logits as an ordinary tensor."""
        if self.computed is None:
            device = self.hidden.device.type  # the head's own precision is in the dtypes of the factors
            with torch.autocast(device, enabled=False):
                self.computed = self.finish(self.product())
        return self.computed

    def product(self) -> Tensor:
        """Return what the head puts out."""
        return F.linear(self.hidden, self.weight, self.bias)

    def finish(self, product: Tensor) -> Tensor:
        """Apply what follows the head."""
        for function in self.after:
            product = function(product)
        return product

    @property
    def requires_grad(self) -> bool:  # type: ignore[override]
        """Return whether a factor requires a gradient."""
        return any(part is not None and part.requires_grad for part in (self.hidden, self.weight, self.bias))

    @property
    def grad_fn(self) -> Any:  # type: ignore[override]
        """Return where the gradient of the logits goes on."""
        return self.hidden.grad_fn

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"FactoredLogits({tuple(self.shape)}, hidden={tuple(self.hidden.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Keep the factors where ``func`` allows it, else compute the logits."""
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        first = args[0] if args else None
        if func in RULES and isinstance(first, FactoredLogits) and first.computed is None:
            result = RULES[func](first, *args[1:], **(kwargs or {}))
            if result is not None:
                return result
        args, kwargs = tree_map(_dense, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what comes here past autograd."""
        return NotImplemented


def _dense(value: Any) -> Any:
    return value.dense() if isinstance(value, FactoredLogits) else value


METADATA = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__, Tensor.is_complex),
    *(
        vars(torch._C.TensorBase)[name].__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "is_nested", "is_cpu", "is_cuda", "is_meta")
    ),
}
"""What is read off the tensor without its values."""


def _detach(logits: FactoredLogits) -> Tensor:
    bias = logits.bias
    return logits.with_(
        hidden=logits.hidden.detach(), weight=logits.weight.detach(), bias=None if bias is None else bias.detach()
    )


def _cast(logits: FactoredLogits, *args: Any, **kwargs: Any) -> Tensor | None:
    if kwargs or len(args) != 1 or not isinstance(args[0], torch.dtype) or not args[0].is_floating_point:
        return None
    dtype = args[0]
    return logits.with_(after=(*logits.after, lambda z: z.to(dtype)), dtype=dtype)


def _flatten(logits: FactoredLogits, start_dim: int = 0, end_dim: int = -1) -> Tensor | None:
    if end_dim % logits.dim() == logits.dim() - 1:
        return None
    return logits.with_(hidden=logits.hidden.flatten(start_dim, end_dim))


def _movedim(logits: FactoredLogits, source: Any, destination: Any) -> Tensor | None:
    unmoved = isinstance(source, int) and isinstance(destination, int) and (source - destination) % logits.dim() == 0
    return logits if unmoved else None


def _select(logits: FactoredLogits, index: Any) -> Tensor | None:
    if isinstance(index, tuple) and len(index) == 2 and index[0] is Ellipsis and isinstance(index[1], slice):
        if type(logits) is not FactoredLogits:
            return None
        bias = logits.bias
        return logits.with_(weight=logits.weight[index[1]], bias=None if bias is None else bias[index[1]])
    rows = isinstance(index, slice) or (isinstance(index, Tensor) and index.dtype in (torch.bool, torch.int64))
    if not rows or logits.dim() < 2 or (isinstance(index, Tensor) and index.dim() > 1):
        return None
    return logits.with_(hidden=logits.hidden[index])


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    def rule(logits: FactoredLogits, *args: Any) -> Tensor | None:
        if not all(isinstance(arg, (int, float)) for arg in args):
            return None
        return logits.with_(after=(*logits.after, lambda z: function(z, *args)))

    return rule


@torch.no_grad()
def _argmax(logits: FactoredLogits, dim: int | None = None, keepdim: bool = False) -> Tensor | None:
    if dim is None or keepdim or dim % logits.dim() != logits.dim() - 1:
        return None
    rows = logits.with_(hidden=logits.hidden.flatten(0, -2))
    parts = [rows[start : start + ROWS].dense().argmax(1) for start in range(0, len(rows), ROWS)]  # type: ignore[attr-defined]
    whole = torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=logits.device)
    return whole.reshape(logits.shape[:-1])


RULES: dict[Any, Callable[..., Any]] = {
    Tensor.detach: _detach,
    Tensor.to: _cast,
    Tensor.float: lambda logits: _cast(logits, torch.float32),
    Tensor.double: lambda logits: _cast(logits, torch.float64),
    Tensor.flatten: _flatten,
    Tensor.movedim: _movedim,
    Tensor.__getitem__: _select,
    Tensor.argmax: _argmax,
    Tensor.is_inference: lambda logits: logits.hidden.is_inference(),
    **{each: _elementwise(torch.mul) for each in (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul)},
    **{each: _elementwise(torch.div) for each in (Tensor.div, Tensor.__truediv__, torch.div)},
    **{each: _elementwise(torch.tanh) for each in (Tensor.tanh, torch.tanh)},
}
"""What keeps the factors; a rule that does not apply returns ``None``."""


@contextmanager
def factored(head: nn.Module) -> Iterator[None]:
    """Let a plain linear layer return its factors, for the time of the context."""
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return

    weights: tuple[Tensor, Tensor | None] = head.weight, head.bias

    def forward(hidden: Tensor) -> Tensor:
        (weight, bias), device = weights, hidden.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        return FactoredLogits(hidden, weight, bias)

    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward
