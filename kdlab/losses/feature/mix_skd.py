"""MixSKD: consistency of mixed images and mixed outputs, with a self-teacher (Yang et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, same_logits
from kdlab.losses.feature.last_map import whole_number
from kdlab.losses.feature.stage_heads import Fused, StageHead, discriminator, reversed_gradient
from kdlab.losses.functional import full_precision, kl_divergence
from kdlab.losses.lazy import Lazy
from kdlab.outputs import Outputs

VIEW = "mixed"


class MixSKD(Lazy):
    r"""Cross-entropies of plain and mixed images at all stages, and consistency of mixed inputs and mixed outputs.

    .. math:: L = \sum_{i<n} H(y, z_i) + \sum_{i \le n} H_\lambda(\tilde z_i) + H_\lambda(\bar e) + H_\lambda(\tilde e)
              + \sum_{i<n} \big( D(\tilde z_i \to \bar z_i) + D(\bar z_i \to \tilde z_i) \big)
              + D(\tilde e \to \bar z_n) + D(\bar e \to \tilde z_n)
              + w_f \sum_{i \le n} \overline{(\bar f_i - \tilde f_i)^2} + w_a \sum_{i \le n} \mathrm{BCE}_i

    of the student's n tapped stages, the last of which is the input of its classifier. :math:`f_n` is the last map and
    :math:`z_n` the student's own logits; for the others :math:`f_i` is the map after a trained head of ``blocks``
    residual blocks for every later stage, with the last map's shape, and :math:`z_i` a linear layer on its mean
    over the positions. Tilde marks outputs on the mixed image, bar the mixture of the outputs on the plain ones,
    :math:`\bar x_b = \lambda_b x_b + (1 - \lambda_b) x_{p(b)}`, with p the partner in the batch. :math:`\bar e` and
    :math:`\tilde e` are the self-teacher's logits: a trained 1 x 1 convolution of all :math:`\bar f_i` (or
    :math:`\tilde f_i`) concatenated, mean over the positions, linear layer. H is the cross-entropy with the labels y,
    :math:`H_\lambda` that with y of weight :math:`\lambda` and the partner's label of weight :math:`1 - \lambda`, and
    :math:`D(a \to b) = T^2 \mathrm{KL}(\mathrm{softmax}(a / T) \| \mathrm{softmax}(b / T))` with a detached, each the
    mean over the batch.

    :math:`\mathrm{BCE}_i` is the binary cross-entropy (element mean over two outputs) of a trained discriminator on
    the maps' means that separates :math:`\bar f_i` from :math:`\tilde f_i`. The discriminator minimizes it and all
    layers below get the reversed gradient, in one step of one optimizer. Heads and discriminators are discarded after
    the training. No teacher is read, and the cross-entropy of :math:`z_n` with y is the task loss. In training mode the
    heads normalize with the statistics of plain and mixed images together. Computed in float32, or in float64 if an
    input or weight is float64.

    Recipe: CIFAR-100 ResNet-18 weight 1 beside weight 1 on the labels of the plain images, with the defaults here, the
    ends of all four stages; the view "mixed" with lambda from Beta(0.4, 0.4); 64 plain images a batch, 205 epochs.

    Args:
        temperature: T, positive.
        blocks: residual blocks a stage, at least 1; the released code repeats the network's own stages.
        features: w_f, not negative.
        adversarial: w_a, not negative.

    Shapes:
        logits: (B, K), the same for both networks, and in the view "mixed", whose ``mix`` has partners and lambdas.
        student_layers: maps (B, C_i, H_i, W_i), from shallow to deep, and the same in the view.
        target: (B,) integer class labels of the plain images.

    Raises:
        InputError: a number out of range; no view "mixed", or one that is not B mixed images with their ``mix``; no
            layers, or layers that are not maps; networks that differ in classes or batch; labels that are not class
            indices; an empty batch; training with one value a channel.

    Paper: C. Yang, Z. An, H. Zhou, L. Cai, X. Zhi, J. Wu, Y. Xu, Q. Zhang, "MixSKD: Self-Knowledge Distillation from
    Mixup for Image Recognition", ECCV 2022, arXiv 2208.05768. Follows the authors' code (Self-KD-Lib, the ImageNet
    script) with two differences: its discriminators are never trained and its maps minimize their cross-entropy too,
    where this reverses the gradient, as in adversarial training; and its heads copy the network's blocks. The code for
    CIFAR-100 omits all :math:`H_\lambda`, so that its self-teacher is not trained.

    >>> from dataclasses import replace
    >>> from kdlab.outputs import Mix
    >>> plain, mixed = (Outputs(torch.zeros(2, 5), (torch.rand(2, 3, 8, 8), torch.rand(2, 6, 4, 4))) for _ in range(2))
    >>> mix = Mix(torch.tensor([1, 0]), torch.tensor([0.7, 0.6]))
    >>> student = replace(plain, views={"mixed": replace(mixed, mix=mix)})
    >>> loss = MixSKD()
    >>> loss(student, student.detach(), torch.tensor([0, 1])).shape
    torch.Size([])
    >>> [name for name, _ in loss.named_children()]
    ['heads', 'self_teacher', 'discriminators']
    """

    needs: ClassVar[tuple[str, ...]] = ("logits", "student_layers", "classes", "views")
    views: ClassVar[tuple[str, ...]] = (VIEW,)
    recipe_weight: ClassVar[float] = 1.0
    minimum: ClassVar[float | None] = None  # the teacher is not read
    order_matters: ClassVar[bool] = True  # partners are positions in the batch
    true_gradient: ClassVar[bool] = False  # detached targets, adversarial discriminators

    def __init__(
        self, temperature: float = 3.0, blocks: int = 2, features: float = 1.0, adversarial: float = 1.0
    ) -> None:
        super().__init__()
        self.temperature = at_least("temperature", temperature, 0, strictly=True)
        self.blocks = whole_number("blocks", blocks)
        self.features = at_least("features", features, 0)
        self.adversarial = at_least("adversarial", adversarial, 0)

    def build(self, classes: int, channels: Sequence[int], strides: Sequence[int]) -> None:
        """Build a head for every stage but the last, the self-teacher, and a discriminator for every stage."""
        count, last = len(channels), channels[-1]
        self.heads = nn.ModuleList(StageHead(classes, channels[i:], strides[i:], self.blocks) for i in range(count - 1))
        self.self_teacher = Fused(classes, last, count)
        self.discriminators = nn.ModuleList(discriminator(last) for _ in range(count))

    @full_precision
    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the weighted sum, a scalar; gradient to the student and to all trained parts."""
        same_logits(student, teacher)
        labels = class_labels(target, student.logits)
        view, partner, lam = _mixed_view(student)
        stages = _stages(student, view)
        strides = tuple(max(x.shape[2] // y.shape[2], 1) for x, y in pairwise(stages))
        self.materialize(student.logits, student.logits.shape[1], tuple(x.shape[1] for x in stages), strides)
        count, size = len(labels), stages[-1].shape[2:]
        stage_outputs = [head(x, size) for head, x in zip(self.heads, stages[:-1], strict=True)]
        stage_outputs.append((stages[-1], torch.cat([student.logits, view.logits])))

        def mix(x: Tensor) -> Tensor:
            weight = lam.view(-1, *[1] * (x.dim() - 1))
            return weight * x[:count] + (1 - weight) * x[:count][partner]

        maps = [(mix(f), f[count:]) for f, _ in stage_outputs]
        logits_pairs = [(mix(z), z[count:]) for _, z in stage_outputs]
        fused = [self.self_teacher(torch.cat(stage_maps, 1)) for stage_maps in zip(*maps, strict=True)]
        plain = [F.cross_entropy(z[:count], labels) for _, z in stage_outputs[:-1]]
        pairs = ((labels, lam), (labels[partner], 1 - lam))
        mixed = [
            (weight * F.cross_entropy(z, y, reduction="none")).mean()
            for z in (*(logits for _, logits in logits_pairs), *fused)
            for y, weight in pairs
        ]
        value = torch.stack([*plain, *mixed, *self._divergences(logits_pairs, fused)]).sum()
        feature_distance = torch.stack([F.mse_loss(mixture, mixed_map) for mixture, mixed_map in maps]).sum()
        adversarial = [_discriminator_loss(net, *pair) for net, pair in zip(self.discriminators, maps, strict=True)]
        return value + self.features * feature_distance + self.adversarial * torch.stack(adversarial).sum()

    def _divergences(self, logits_pairs: Sequence[tuple[Tensor, Tensor]], fused: Sequence[Tensor]) -> list[Tensor]:
        """Return the divergences of each stage's two logits, and of the last ones from the self-teacher's."""
        pairs = [pair for one, other in logits_pairs[:-1] for pair in ((one, other), (other, one))]
        pairs += zip(logits_pairs[-1], reversed(fused), strict=True)
        return [kl_divergence(logits, target.detach(), self.temperature) for logits, target in pairs]


def _discriminator_loss(net: nn.Module, mixture: Tensor, mixed: Tensor) -> Tensor:
    """Return the cross-entropy of a discriminator, with reversed gradient to the maps."""
    scores = net(reversed_gradient(torch.cat([mixture, mixed]).mean((2, 3))))
    kinds = torch.eye(2, dtype=scores.dtype, device=scores.device).repeat_interleave(len(mixture), 0)
    return F.binary_cross_entropy_with_logits(scores, kinds)


def _mixed_view(student: Outputs) -> tuple[Outputs, Tensor, Tensor]:
    """Return the view, the partners (B,) and the lambdas (B,)."""
    view, count = student.views.get(VIEW), len(student.logits)
    if view is None or view.mix is None:
        raise InputError(
            f"MixSKD reads the view {VIEW!r} with its mix, which the student lacks: add kdlab.data.Mixed to data.views."
        )
    partner, lam = view.mix
    if view.logits.shape != student.logits.shape or partner.shape != (count,) or lam.shape != (count,):
        raise InputError(
            f"MixSKD needs one mixed image for each of {count}, but the view {VIEW!r} has logits "
            f"{tuple(view.logits.shape)}, partners {tuple(partner.shape)} and lambdas {tuple(lam.shape)}."
        )
    return view, partner.to(view.logits.device), lam.to(view.logits)


def _stages(student: Outputs, view: Outputs) -> list[Tensor]:
    """Return the tapped maps of the plain images, then of the mixed ones, (2 B, C, H, W)."""
    plain, mixed = ([tuple(x.shape) for x in each.layers] for each in (student, view))
    if not plain:
        raise InputError("MixSKD reads the student's stages and none is tapped: name their ends in student_layers.")
    if plain != mixed or any(len(shape) != 4 or shape[0] != len(student.logits) or 0 in shape for shape in plain):
        raise InputError(
            f"MixSKD needs maps (B, C, H, W) of a batch of {len(student.logits)}, plain and mixed alike, but the "
            f"layers give {plain} and {mixed}."
        )
    return [torch.cat(both) for both in zip(student.layers, view.layers, strict=True)]
