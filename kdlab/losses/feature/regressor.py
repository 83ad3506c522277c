"""A convolution that brings a student's map to a teacher's shape and finds its sizes at the first forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter, is_lazy

from kdlab.errors import InputError


class Geometry(NamedTuple):
    """Kernel size, stride (padding is 1 with stride 2, else 0) and whether the convolution is transposed."""

    kernel: tuple[int, int]
    stride: int = 1
    transposed: bool = False


def geometry(student: torch.Size, teacher: torch.Size) -> Geometry | None:
    """The convolution of RepDistiller from one map size to another; ``None`` where it has none.

    Twice as large: 3 x 3 with stride 2; half as large: 4 x 4 transposed with stride 2; else not smaller: a valid
    convolution with kernel 1 + Hs - Ht, which is 1 x 1 for equal sizes.
    """
    (hs, ws), (ht, wt) = student[2:], teacher[2:]
    if (hs, ws) == (2 * ht, 2 * wt):
        return Geometry((3, 3), stride=2)
    if (2 * hs, 2 * ws) == (ht, wt):
        return Geometry((4, 4), stride=2, transposed=True)
    if hs >= ht and ws >= wt:
        return Geometry((1 + hs - ht, 1 + ws - wt))
    return None


class ConvRegressor(LazyModuleMixin, nn.Module):
    """Convolution, batch normalisation and ReLU from student maps (B, Cs, Hs, Ws) to the shape (B, Ct, Ht, Wt).

    All sizes follow from the first two maps seen, or from the state dict loaded; initial values are drawn then, from
    the global generator, as PyTorch's own convolutions draw them. The state dict has ``weight``, ``bias``, ``norm.*``.

    Args:
        linear: 1 x 1 convolution alone, without bias, normalisation and ReLU, drawn from (-0.005, 0.005).
        device, dtype: of the parameters, as in ``torch.nn.Conv2d``.

    Raises:
        InputError: no convolution leads from one size to the other, or it is not the one set up before; or training
            mode with one value a channel.
    """

    weight: Tensor
    bias: Tensor | None
    norm: nn.BatchNorm2d | None

    def __init__(
        self, linear: bool = False, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.linear = linear
        self.weight = UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]
        self.bias = None if linear else UninitializedParameter(device=device, dtype=dtype)  # type: ignore[call-arg]
        self.norm = None  # not nn.LazyBatchNorm2d: an unsized buffer can be neither copied nor pickled

    def initialize_parameters(self, student: Tensor, teacher: Tensor) -> None:
        """Size and draw what is not sized yet."""
        if not is_lazy(self.weight):
            return
        assert isinstance(self.weight, UninitializedParameter)
        with torch.inference_mode(False), torch.no_grad():  # so that a first forward in validation can be trained later
            self.weight.materialize(self._weight_shape(student, teacher))
            if self.linear:
                nn.init.uniform_(self.weight, -0.005, 0.005)
                return
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
            assert isinstance(self.bias, UninitializedParameter)
            self.bias.materialize((teacher.shape[1],))
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
            self._normalise(teacher.shape[1])

    def _normalise(self, channels: int) -> None:
        self.norm = nn.BatchNorm2d(channels, device=self.weight.device, dtype=self.weight.dtype).train(self.training)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Before loading: sized normalisation, as weight and bias are sized by the mixin."""
        scale = state_dict.get(f"{prefix}norm.weight")
        if is_lazy(self.weight) and not self.linear and scale is not None:
            self._normalise(len(scale))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _weight_shape(self, student: Tensor, teacher: Tensor) -> tuple[int, ...]:
        form = self.form(student, teacher)
        channels = (student.shape[1], teacher.shape[1])
        return (*(channels if form.transposed else channels[::-1]), *form.kernel)

    def form(self, student: Tensor, teacher: Tensor) -> Geometry:
        """The convolution between these two maps."""
        found = geometry(student.shape, teacher.shape)
        if found is None or (self.linear and found.kernel != (1, 1)):
            raise InputError(
                f"No {'1x1' if self.linear else 'conv'} regressor leads from a map {tuple(student.shape)} to a map "
                f"{tuple(teacher.shape)}: tap layers of {'the same' if self.linear else 'equal or twice the'} size."
            )
        return found

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The student's map in the teacher's shape; of the teacher only the shape is used."""
        form = self.form(student, teacher)
        wanted = self._weight_shape(student, teacher)
        if tuple(self.weight.shape) != wanted:
            raise InputError(
                f"The regressor holds weights {tuple(self.weight.shape)}, but maps {tuple(student.shape)} and "
                f"{tuple(teacher.shape)} need {wanted}: tap the layers that it was set up with."
            )
        padding = 1 if form.stride == 2 else 0
        convolve = F.conv_transpose2d if form.transposed else F.conv2d
        out: Tensor = convolve(student, self.weight, self.bias, stride=form.stride, padding=padding)
        if self.norm is None:
            return out
        if self.training and out.numel() == out.shape[1]:
            raise InputError(
                f"Batch normalisation needs more than one value a channel to train, not {tuple(out.shape)}."
            )
        return F.relu(self.norm(out))
