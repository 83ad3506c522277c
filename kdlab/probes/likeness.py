"""How like two networks' features of the same samples are, without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdlab.errors import InputError


def linear_cka(one: Tensor, other: Tensor) -> float:
    r"""Return the linear centered kernel alignment of features (N, D1) and (N, D2), from 0 to 1.

    .. math:: CKA = \frac{\|X^T Y\|_F^2}{\|X^T X\|_F \, \|Y^T Y\|_F}

    with centered columns; rotations and one factor do not change it. (S. Kornblith et al., Similarity of Neural Network
    Representations Revisited, ICML 2019, arXiv 1905.00414.)
    """
    x, y = (features.double() - features.double().mean(0) for features in _same_samples(one, other))
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    return float((x.T @ y).square().sum() / scale) if scale > 0 else 0.0


def neighbor_agreement(one: Tensor, other: Tensor, neighbors: int = 10) -> float:
    """Return the mean share of a sample's nearest neighbors by cosine that both features have in common, 0 to 1."""
    x, y = _same_samples(one, other)
    count = min(neighbors, len(x) - 1)
    near = [_neighbors(features, count) for features in (x, y)]
    shared = (near[0][:, :, None] == near[1][:, None]).any(2).double().mean()
    return float(shared)


def mapped_cosine(one: Tensor, other: Tensor) -> float:
    """Return the mean cosine of the second features and a linear map of the first ones that is fitted to them.

    The map, with bias, is fitted by least squares on the samples of even position, and the cosine is that on the rest.

    Raises:
        InputError: fewer than two samples.
    """
    x, y = (features.double() for features in _same_samples(one, other))
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(x[::2], y[::2], driver="gelsd").solution
    return float(F.cosine_similarity(x[1::2] @ solution, y[1::2]).mean())


def _neighbors(features: Tensor, count: int) -> Tensor:
    """Return the positions of the nearest others of each sample, (N, count)."""
    unit = F.normalize(features.float(), dim=1)
    parts = []
    for start in range(0, len(unit), 2048):
        products = unit[start : start + 2048] @ unit.T
        rows = torch.arange(len(products))
        products[rows, rows + start] = -2.0
        parts.append(products.topk(count).indices)
    return torch.cat(parts)


def _same_samples(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    if one.dim() != 2 or other.dim() != 2 or len(one) != len(other) or len(one) < 2:
        raise InputError(
            f"Features (N, D) of the same two samples or more are compared, not {tuple(one.shape)} and "
            f"{tuple(other.shape)}."
        )
    return one, other
