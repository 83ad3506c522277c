"""Floating-point operations of a forward pass, or the reason why they cannot be counted."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from kdlab.errors import InputError

MULTIPLYING = re.compile(r"(?:^|_)(?:\w*mm|matmul|conv\w*|linear|attention|lstm|gru|rnn|transformer|cdist)(?:_|$)")
"""Words in the name of an operator whose cost is that of products; the others count as nothing, as is usual."""


def flops_of(network: nn.Module, example: Tensor) -> int:
    """Return the floating-point operations of one input's forward: 2 for each multiplication with its addition.

    PyTorch's counter counts convolutions, matrix products and attention. Attention runs through the math kernel and
    transformer layers without their fused path: the counter reads 0 for both otherwise.

    Args:
        network: the network; it is set to eval mode.
        example: (B, ...) inputs, of which the first counts.

    Raises:
        InputError: "not counted", with the operator that the counter does not know.
    """
    counter, unknown = FlopCounterMode(display=False), _Unknown()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), counter, unknown:
            network.eval()(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    total = int(counter.get_total_flops())
    if unknown.names or not total:
        reason = ", ".join(sorted(unknown.names)) or "no operator of the counter"
        raise InputError(f"not counted ({reason})")
    return total


class _Unknown(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the operators that multiply and that the counter has no formula for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        space, name = func.namespace, packet.__name__
        is_product = space not in ("aten", "prim", "prims", "profiler") or MULTIPLYING.search(name)
        if is_product and packet not in flop_registry:
            self.names.add(f"{space}.{name}")
        return func(*args, **(kwargs or {}))
