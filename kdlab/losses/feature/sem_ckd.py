"""SemCKD: all pairs of student and teacher stages, weighted by learned attention (Chen et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.context import Context
from kdlab.losses.feature.connectors import BatchNorm
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.functional import full_precision, pool_to_smaller
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs


class SemCKD(Lazy):
    r"""Attention-weighted squared differences of all pairs of a student's and a teacher's layer.

    .. math:: L = \frac{1}{B S} \sum_{b,i,j} \alpha_{bij} \frac{1}{C_j H W} \| r_{ij}(f^s_{bi}) - f^t_{bj} \|^2, \qquad
              \alpha_{bi\cdot} = \mathrm{softmax}_j \, \langle q_i(G^s_i)_b, k_j(G^t_j)_b \rangle

    with S student layers; G the B x B matrix of scalar products of a layer's samples; q and k trained two-layer
    perceptrons of its rows, of output norm 1; r trained: 1 x 1, 3 x 3 and 1 x 1 convolution without bias, the first two
    with batch normalization and ReLU, on 2 C_j channels. The larger map is pooled (adaptive average) to the smaller.
    Computed in float32, or in float64 for float64 layers.

    The perceptrons have one input for every sample of a full batch: rows of smaller batches are padded with zeros,
    larger batches are an error. So the value depends on the batch size and on the order of the samples, and a run can
    be resumed only with the same batch size.

    Recipe: CIFAR-100 weight 400 beside weight 1 on the labels and KD with T = 4 and weight 1, the ends of
    all stages but the stem; ImageNet weight 50, 90 epochs.

    Args:
        factor: the perceptrons' outputs have the batch size divided by it, at least 1.

    Shapes:
        student_layers: maps (B, C_i, H_i, W_i), of any number; teacher_layers: maps (B, C_j, H_j, W_j), of any number.
        target: not used.

    Raises:
        InputError: a number out of range; no layers, layers that are not maps, batches larger than that of ``setup``;
            training with one value a channel.

    Paper: D. Chen, J.-P. Mei, Y. Zhang, C. Wang, Z. Wang, Y. Feng, C. Chen, "Cross-Layer Distillation with Semantic
    Calibration", AAAI 2021, arXiv 2012.03236. Follows the authors' code, which drops incomplete batches.

    >>> student = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 3, 4, 4), torch.rand(4, 6, 2, 2)))
    >>> teacher = Outputs(torch.zeros(4, 5), layers=(torch.rand(4, 8, 4, 4),))
    >>> loss = SemCKD()
    >>> loss.setup(Context(nn.Identity(), (nn.Identity(),), batch_size=8))
    >>> loss(student, teacher, torch.zeros(4)).shape
    torch.Size([])
    """

    needs: ClassVar[tuple[str, ...]] = ("student_layers", "teacher_layers")
    recipe_weight: ClassVar[float] = 400.0
    minimum: ClassVar[float | None] = None  # fresh projections are not the identity
    order_matters: ClassVar[bool] = True  # the perceptrons have one input for each position in the batch
    couples_samples: ClassVar[bool] = True

    def __init__(self, factor: int = 4) -> None:
        super().__init__()
        self.factor = whole_number("factor", factor)
        self.batch_size: int | None = None

    def setup(self, context: Context) -> None:
        """Store the size of a full batch."""
        self.batch_size = context.batch_size

    def build(self, batch: int, student: Sequence[int], teacher: Sequence[int]) -> None:
        """Build a perceptron for every layer, a projection for every pair."""
        self.queries = nn.ModuleList([self._perceptron(batch) for _ in student])
        self.keys = nn.ModuleList([self._perceptron(batch) for _ in teacher])
        self.projections = nn.ModuleList([nn.ModuleList([_projection(i, j) for j in teacher]) for i in student])

    def _perceptron(self, batch: int) -> nn.Sequential:
        width = max(batch // self.factor, 1)
        return nn.Sequential(nn.Linear(batch, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the value, a scalar; gradient to the student and to all trained parts."""
        student_maps = _maps(student, "student")
        teacher_maps = [x.detach() for x in _maps(teacher, "teacher")]
        if len(student_maps[0]) != len(teacher_maps[0]):
            raise InputError(
                f"The student's maps have {len(student_maps[0])} samples and the teacher's {len(teacher_maps[0])}; "
                "compare one batch."
            )
        full = self._full_batch(len(student_maps[0]))
        self.materialize(
            student_maps[0], full, *(tuple(x.shape[1] for x in side) for side in (student_maps, teacher_maps))
        )
        queries = self._embedded(student_maps, self.queries, full)
        keys = self._embedded(teacher_maps, self.keys, full)
        attention = (queries @ keys.mT).softmax(2)
        pooled = [[pool_to_smaller(x, y) for y in teacher_maps] for x in student_maps]
        projected = [
            [project(x) for project, (x, _) in zip(row, pairs, strict=True)]  # type: ignore[call-overload]
            for row, pairs in zip(self.projections, pooled, strict=True)
        ]
        return combined(projected, [[y for _, y in pairs] for pairs in pooled], attention)

    def _full_batch(self, batch: int) -> int:
        full = self.sizes[0] if self.sizes is not None else self.batch_size
        if full is None:
            raise InputError(
                "SemCKD needs the size of a full batch: use a loader with a fixed batch size, or call setup(context)."
            )
        if batch > full:
            raise InputError(
                f"SemCKD was set up for batches of {full} samples, but now meets {batch}: keep the batch size."
            )
        return int(full)

    def _embedded(self, layers: Sequence[Tensor], perceptrons: nn.ModuleList, full: int) -> Tensor:
        """Return the embedded Gram matrices (B, layers, width), the last axis of norm 1."""
        rows = [x.flatten(1) for x in layers]
        gram = [F.pad(x @ x.mT, (0, full - len(x))) for x in rows]
        embedded = [perceptron(x) for perceptron, x in zip(perceptrons, gram, strict=True)]
        return F.normalize(torch.stack(embedded, 1), dim=2, eps=1e-12)


def combined(student: Sequence[Sequence[Tensor]], teacher: Sequence[Sequence[Tensor]], attention: Tensor) -> Tensor:
    """Return the attention (B, S, T) times the squared differences of ``student[i][j]`` and ``teacher[i][j]``."""
    distances = [
        torch.stack([(x - y.detach()).square().flatten(1).mean(1) for x, y in zip(*rows, strict=True)], 1)
        for rows in zip(student, teacher, strict=True)
    ]
    return (attention * torch.stack(distances, 1)).sum() / (attention.shape[0] * attention.shape[1])


def _projection(student: int, teacher: int) -> nn.Sequential:
    middle = 2 * teacher
    return nn.Sequential(
        nn.Conv2d(student, middle, 1, bias=False),
        BatchNorm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        BatchNorm(middle),
        nn.ReLU(),
        nn.Conv2d(middle, teacher, 1, bias=False),
    )


def _maps(outputs: Outputs, side: str) -> list[Tensor]:
    if not outputs.layers:
        raise InputError(f"SemCKD compares layers and none of the {side}'s is tapped: set {side}_layers.")
    for number, layer in enumerate(outputs.layers):
        if layer.dim() != 4 or len(layer) != len(outputs.layers[0]) or not layer.numel():
            name = outputs.names[number] if number < len(outputs.names) else f"number {number}"
            raise InputError(
                f"SemCKD needs maps (B, C, H, W) of one batch, but {side} layer {name!r} gives {tuple(layer.shape)}."
            )
    return list(outputs.layers)
