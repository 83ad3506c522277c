"""Mixup and CutMix, with shares that are a function of (seed, epoch, index)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.errors import InputError
from kdlab.outputs.containers import Mix

TRIES = 32


class Mixing:
    """A mixture of every image of a batch with the previous one.

    In a shuffled batch the previous image is a random one; no further permutation is drawn. Each process mixes its part
    of the batch, so the partners depend on the number of processes.

    Args:
        alpha: of the symmetric Beta distribution of the shares, above 0 and at most 1, where it is uniform.

    Raises:
        InputError: alpha is out of this range.
    """

    def __init__(self, alpha: float) -> None:
        if not 0 < alpha <= 1:
            raise InputError(f"{type(self).__name__} takes an alpha above 0 and at most 1, not {alpha}.")
        self.alpha = alpha

    def __repr__(self) -> str:
        return f"{type(self).__name__}(alpha={self.alpha})"

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> tuple[Tensor, Mix]:
        """Return the mixed images and the mix.

        Args:
            images: (B, C, H, W), uint8, or floating point from 0 to 1; not modified.
            index: (B,) int64, the samples' positions in their data set.
            seed: seed of the augmentation.
            epoch: the epoch number.

        Returns:
            (B, C, H, W) images, and the mix with float32 shares, on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__().")


class MixUp(Mixing):
    r"""Each image is a weighted mean of two (mixup).

    .. math:: \tilde x = \lambda x + (1 - \lambda) x', \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    One share is drawn per image; the released code draws one per batch, and a random permutation.

    Recipe: alpha = 1 on CIFAR-10 in the released code.

    Paper: H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    arXiv 1710.09412.

    Args:
        alpha: of the Beta distribution, above 0 and at most 1.

    Raises:
        InputError: alpha is out of this range.

    >>> import torch
    >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    >>> mixed, mix = MixUp(1.0)(images, torch.tensor([5, 9]), seed=0, epoch=0)
    >>> mix.partner
    tensor([1, 0])
    >>> torch.allclose(mixed.flatten(), torch.stack([1 - mix.share[0], mix.share[1]]))
    True
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> tuple[Tensor, Mix]:
        """Return the weighted means, in floating point from 0 to 1, and the mix."""
        share = beta(self.alpha, seed, epoch, index).float()
        floats = images if images.is_floating_point() else images.float().div_(255)
        mixed = floats.roll(1, 0).lerp_(floats, share.to(floats.dtype).view(-1, 1, 1, 1))
        return mixed, Mix(before(index), share)


class CutMix(Mixing):
    r"""A box of each image is replaced by the same box of another (CutMix).

    With lambda from Beta(alpha, alpha), the box measures ``floor(W * sqrt(1 - lambda))`` by ``floor(H * sqrt(1 -
    lambda))`` pixels, rounded down to even numbers, has a center that is uniform over the image, and is clipped at the
    edges; the share is then the exact fraction of pixels outside the box.

    Share and box are drawn per image; the released code draws them per batch, and does not mix some batches at random
    (``cutmix_prob``), which this class does not do.

    Recipe: alpha = 1.

    Paper: S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe, Y. Yoo, "CutMix: Regularization Strategy to Train Strong
    Classifiers with Localizable Features", ICCV 2019, arXiv 1905.04899.

    Args:
        alpha: of the Beta distribution, above 0 and at most 1.

    Raises:
        InputError: alpha is out of this range.

    >>> import torch
    >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    >>> mixed, mix = CutMix(1.0)(images, torch.tensor([5, 9]), seed=0, epoch=0)
    >>> torch.equal(mixed.mean((1, 2, 3)), torch.stack([1 - mix.share[0], mix.share[1]]))
    True
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__(alpha)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> tuple[Tensor, Mix]:
        """Return the images with their boxes, dtype unchanged, and the mix."""
        height, width = images.shape[2:]
        side = (1 - beta(self.alpha, seed, epoch, index)).sqrt()
        rows = _inside(side, height, counter_rng.integers(height, seed, epoch, index, counter_rng.BOX_DOWN))
        columns = _inside(side, width, counter_rng.integers(width, seed, epoch, index, counter_rng.BOX_RIGHT))
        share = 1 - (rows.sum(1) * columns.sum(1)).float() / (height * width)
        box = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(box, images.roll(1, 0), images), Mix(before(index), share)


def _inside(side: Tensor, length: int, center: Tensor) -> Tensor:
    """Return which of ``length`` pixels lie in the box, (B, length); ``side`` is the box's fraction of the length."""
    half = (side * length).long() // 2
    pixels = torch.arange(length, device=side.device)
    return (pixels >= (center - half)[:, None]) & (pixels < (center + half)[:, None])


def before(index: Tensor) -> Tensor:
    """Return every image's partner in the batch, (B,) int64: the previous image, and the last one for the first."""
    return torch.arange(len(index), device=index.device).roll(1)


def beta(alpha: float, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Draw a number from Beta(alpha, alpha) for every sample, (B,) float64, without a device synchronization.

    Jöhnk's rejection sampling: for uniform u, v take ``u**(1/alpha) / (u**(1/alpha) + v**(1/alpha))`` if the
    denominator is at most 1, which holds for at least half of all pairs if alpha is at most 1. The first valid one of
    32 tries is used.
    """
    tries = index * TRIES + torch.arange(TRIES, device=index.device)[:, None]  # (32, B)
    # Logarithms, because the powers underflow for a small alpha; 1 - u is never 0.
    log_u, log_v = (
        torch.log1p(-counter_rng.uniform(seed, epoch, tries, stream)) / alpha
        for stream in (counter_rng.OWN, counter_rng.OTHER)
    )
    first = (torch.logaddexp(log_u, log_v) <= 0).to(torch.uint8).argmax(0, keepdim=True)
    return torch.sigmoid((log_u - log_v).gather(0, first)[0])


def mixed_labels(target: Tensor, mix: Mix, classes: int) -> Tensor:
    """Return the class probabilities (B, classes) float32 of mixed images from the labels (B,) of their parts."""
    numbers = torch.arange(classes, device=target.device)
    first, second = (labels[:, None] == numbers for labels in (target, target[mix.partner]))
    share = mix.share.float()[:, None]
    return first * share + second * (1 - share)
