"""Paraphraser (FT): autoencoder of the teacher's layer, the first stage of factor transfer (Kim et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class Paraphraser(Lazy):
    r"""Mean squared error of the teacher's map rebuilt from its factor; the first stage of factor transfer.

    .. math:: L = \frac{1}{|f^t|} \| D(E(f^t)) - f^t \|^2

    where :math:`|f|` counts all B * C * H * W elements. E is three 3 x 3 convolutions (C to C, F, F channels), D three
    transposed ones (F to F, C, C), each with bias and followed by a LeakyReLU of slope 0.1. F is ``rate`` times C,
    rounded down. The student is not trained; :class:`FactorTransfer` compares it with E afterwards. Computed in
    float32, or in float64 for float64 layers.

    Recipe: weight 1, rate 0.5, the end of the teacher's last stage, 30 epochs of CIFAR-100 without anything else, with
    a learning rate of 0.01 for ResNet and WRN students and the student's own for others.

    Args:
        rate: F / C, positive.

    Shapes:
        teacher layers: one map (B, C, H, W).
        target: not used.

    Raises:
        InputError: a rate out of range, or one that leaves no channel; not one layer, or one that is not a map.

    Paper: J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS
    2018, arXiv 1802.04977. This follows RepDistiller.

    >>> student, teacher = Outputs(torch.zeros(2, 2)), Outputs(torch.zeros(2, 2), layers=(torch.rand(2, 8, 4, 4),))
    >>> loss = Paraphraser(rate=0.5)
    >>> loss(student, teacher, torch.zeros(2)).shape
    torch.Size([])
    >>> loss.encode(teacher.layers[0]).shape
    torch.Size([2, 4, 4, 4])
    """

    needs: ClassVar[tuple[str, ...]] = ("teacher_layers",)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the student is not read
    layer_count: ClassVar[int] = 1

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = at_least("rate", rate, 0, strictly=True)

    def factors(self, channels: int) -> int:
        """Return F, the channels of the factor of a layer with ``channels`` channels."""
        if (factors := int(channels * self.rate)) < 1:
            raise InputError(f"rate={self.rate} leaves no channel of {channels}: raise it.")
        return factors

    def build(self, channels: int) -> None:
        """Build the encoder and the decoder."""
        factors = self.factors(channels)
        down = [(channels, channels), (channels, factors), (factors, factors)]
        up = [(factors, factors), (factors, channels), (channels, channels)]
        self.encoder = _chain(nn.Conv2d(*each, 3, padding=1) for each in down)
        self.decoder = _chain(nn.ConvTranspose2d(*each, 3, padding=1) for each in up)

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the mean squared error, a scalar; gradient to the paraphraser only."""
        if len(teacher.layers) != 1 or teacher.layers[0].dim() != 4 or not teacher.layers[0].numel():
            shapes = [tuple(layer.shape) for layer in teacher.layers]
            raise InputError(f"Paraphraser needs one teacher layer of shape (B, C, H, W), not {shapes}.")
        teacher_map = teacher.layers[0].detach()
        if len(student.logits) != len(teacher_map):
            raise InputError(f"The student has {len(student.logits)} samples and the teacher {len(teacher_map)}.")
        self.materialize(teacher_map, teacher_map.shape[1])
        return F.mse_loss(self.decoder(self.encoder(teacher_map)), teacher_map)

    def encode(self, teacher_map: Tensor) -> Tensor:
        """Return the factor (B, F, H, W) of a teacher's map (B, C, H, W), detached and in the map's dtype."""
        self.materialize(teacher_map, teacher_map.shape[1])
        with torch.no_grad():
            weights = {name: weight.to(teacher_map.dtype) for name, weight in self.encoder.named_parameters()}
            factor: Tensor = torch.func.functional_call(self.encoder, weights, (teacher_map,))
        return factor


def _chain(layers: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.LeakyReLU(0.1))))
