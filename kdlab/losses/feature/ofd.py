"""Overhaul of feature distillation (OFD): partial distance to pre-ReLU maps with margins (Heo et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdlab.compat import BatchNorm
from kdlab.errors import InputError
from kdlab.losses.checks import map_pairs
from kdlab.losses.context import Context
from kdlab.losses.feature.connectors import connector
from kdlab.losses.functional import full_precision
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs, layer_names, split_call


class OFD(Lazy):
    r"""Partial squared difference to the teacher's layer before its ReLU, with a margin ReLU.

    .. math:: L = \frac{1}{B} \sum_{i=1}^{n} 2^{i - n} \sum_{bchw} (r_i(s_i) - t'_i)^2 \,
              [ r_i(s_i) > t'_i \text{ or } t'_i > 0 ], \qquad t' = \max(t, m_c)

    with s and t the layers BEFORE the ReLU and n layers from shallow to deep, of which the last has weight 1, the one
    before it 1/2. r is a trained 1 x 1 convolution without bias and batch normalization. The margin of a channel is the
    expected negative value after the teacher's batch normalization, :math:`m = E[x | x < 0]` for x normal with mean
    :math:`\beta` and deviation :math:`|\gamma|`; or :math:`-3 |\gamma|` where x < 0 has a probability of at most 0.001.
    Computed in float32, or in float64 for float64 layers; margins are rounded to float32 as in the authors' code.

    Recipe: CIFAR-100 weight 0.001 beside weight 1 on the labels, the ends of all stages but the stem, before their
    ReLU; ImageNet weight 0.0001. The authors' teacher normalizes with the batch's statistics
    (``teacher_batchnorm="batch"``).

    Args:
        norms: names of the teacher's batch normalizations, one for each layer. By default the tapped layer itself, else
            the last one inside it, else the last one before it in its block; never one of a shortcut
            (``downsample``, ``shortcut``).

    Shapes:
        layers: pairs of maps (B, Cs, H, W) and (B, Ct, H, W), from shallow to deep.
        target: not used.

    Raises:
        InputError: no batch normalization found, or of other channels than the layer; several teachers; no layers,
            unequal numbers of layers, layers that are not maps or differ in height or width.

    Paper: B. Heo, J. Kim, S. Yun, H. Park, N. Kwak, J. Y. Choi, "A Comprehensive Overhaul of Feature Distillation",
    ICCV 2019, arXiv 1904.01866. The authors' factor 1/1000 is in the weight here, as in mdistiller.

    >>> student = Outputs(torch.zeros(2, 2), layers=(torch.zeros(2, 3, 4, 4),))
    >>> teacher = Outputs(torch.zeros(2, 2), layers=(torch.ones(2, 1, 4, 4),))
    >>> network, loss = nn.Sequential(nn.BatchNorm2d(1)), OFD()
    >>> loss.setup(Context(network, (network,), teacher_layers=("0",)))
    >>> loss.margins
    tensor([-0.7979])
    >>> loss(student, teacher, torch.zeros(2))
    tensor(16., grad_fn=<DivBackward0>)
    """

    needs: ClassVar[tuple[str, ...]] = ("layers",)
    recipe_weight: ClassVar[float] = 0.001
    minimum: ClassVar[float | None] = None  # a fresh connector is not the identity
    margins: Tensor

    def __init__(self, norms: Sequence[str] | None = None) -> None:
        super().__init__()
        self.norms = None if norms is None else tuple(norms)
        self._widths: list[int] = []

    def setup(self, context: Context) -> None:
        """Compute the margins from the teacher's batch normalizations."""
        tapped = context.teacher_layers
        if self.norms is None:
            norms = [_norm_of(context, name) for name in tapped]
        elif len(self.norms) == len(tapped):
            norms = [_checked_norm(context.layer("teacher", name), name) for name in self.norms]
        else:
            raise InputError(f"norms must name one layer for each of {len(tapped)} tapped ones, not {len(self.norms)}.")
        margins = [_margin(norm) for norm in norms]
        self._widths = [len(margin) for margin in margins]
        self.register_buffer("margins", torch.cat(margins) if margins else torch.empty(0), persistent=False)

    def build(self, *channels: tuple[int, int]) -> None:
        """Build one connector for every pair of channels."""
        self.connectors = nn.ModuleList(connector(*each, bias=False, relu=False) for each in channels)
        for each in self.connectors:
            nn.init.kaiming_normal_(each.get_parameter("conv.weight"), mode="fan_out")

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the layers, a scalar; gradient to the student and to the connectors."""
        pairs = map_pairs(student, teacher)
        for pair in pairs:
            if pair.student.shape[2:] != pair.teacher.shape[2:]:
                raise InputError(f"OFD needs maps of one height and width, but {pair.shapes}: tap other layers.")
        widths = [pair.teacher.shape[1] for pair in pairs]
        if widths != self._widths:
            raise InputError(
                f"OFD has margins of the teacher's batch normalizations for {self._widths} channels and the tapped "
                f"layers have {widths}: call setup(context), or name others in norms."
            )
        self.materialize(pairs[0].student, *((pair.student.shape[1], pair.teacher.shape[1]) for pair in pairs))
        margins = torch.split(self.margins, widths)
        values = [
            _distance(connect(pair.student), pair.teacher.detach(), margin) * 2.0 ** (i + 1 - len(pairs))
            for i, (connect, pair, margin) in enumerate(zip(self.connectors, pairs, margins, strict=True))
        ]
        return torch.stack(values).sum() / len(pairs[0].student)


def _distance(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    teacher = torch.maximum(teacher, margin[:, None, None])
    return ((student - teacher).square() * ((student > teacher) | (teacher > 0))).sum()


def _norm_of(context: Context, name: str) -> BatchNorm:
    """Return the batch normalization of the teacher's layer of this name."""
    layer = context.layer("teacher", name)
    if isinstance(layer, BatchNorm) or split_call(name)[1]:  # which norm precedes one call of a layer is unknown
        return _checked_norm(layer, name)
    layers = layer_names(context.teacher)
    names, block = list(layers), name.rpartition(".")[0]
    inside = [each for each in names if each.startswith(f"{name}.")]
    before = [each for each in names[: names.index(name)] if not block or each.startswith(f"{block}.")]
    norms = [
        each
        for each in (*before, *inside)
        if isinstance(layers[each], BatchNorm) and not {"downsample", "shortcut"} & set(each.split("."))
    ]
    return _checked_norm(layers[norms[-1]] if norms else layer, name)


def _checked_norm(layer: nn.Module, name: str) -> BatchNorm:
    if not isinstance(layer, BatchNorm):
        raise InputError(
            f"The teacher's layer {name!r} is no batch normalization, which gives the margins: set norms to the ones "
            "before each ReLU."
        )
    return layer


def _margin(norm: BatchNorm) -> Tensor:
    """Return the expected negative value of each channel, (C,), in float32."""
    scale = torch.ones(norm.num_features) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros(norm.num_features) if norm.bias is None else norm.bias.detach()
    mean, deviation = shift.cpu().double(), scale.cpu().double().abs()
    ratio = mean / deviation.clamp(min=1e-30)
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    margin = torch.where(below > 0.001, mean - deviation * density / below, -3 * deviation)
    return margin.float().to(scale.device)
