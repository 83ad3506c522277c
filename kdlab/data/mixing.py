"""Images joined two by two, mixup and CutMix, with shares that are a function of (seed, epoch, index)."""

from __future__ import annotations

import torch
from torch import Tensor

from kdlab.data import counter_rng
from kdlab.errors import InputError
from kdlab.outputs.containers import Mix

TRIES = 32


class Mixing:
    """Joins every image of a batch with the one before it.

    In a shuffled batch the image before is any other; no further permutation is drawn. With several processes each
    joins its own part of the batch, so the partners depend on their number.

    Args:
        alpha: of the symmetric Beta distribution of the shares, above 0 and at most 1, where shares are uniform.

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
        """The joined images, and how they were joined.

        Args:
            images: (B, C, H, W), uint8, or floating point from 0 to 1; left as they are.
            index: (B,) int64, the samples' positions in their data set.
            seed: of the augmentation.
            epoch: the epoch number.

        Returns:
            (B, C, H, W) images, and the mix, its shares float32, on the same device.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__().")


class MixUp(Mixing):
    r"""Each image is a weighted mean of two (mixup).

    .. math:: \tilde x = \lambda x + (1 - \lambda) x', \qquad \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    The share is drawn for every image; the released code draws one for the whole batch, and a random permutation.

    Recipe: the released code alpha = 1 on CIFAR-10.

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
        """The weighted means, in floating point from 0 to 1."""
        share = beta(self.alpha, seed, epoch, index).float()
        own = images if images.is_floating_point() else images.float().div_(255)
        mixed = own.roll(1, 0).lerp_(own, share.to(own.dtype).view(-1, 1, 1, 1))
        return mixed, Mix(before(index), share)


class CutMix(Mixing):
    r"""A box of each image is replaced by that of another (CutMix).

    With lambda from Beta(alpha, alpha), the box measures ``floor(W * sqrt(1 - lambda))`` by ``floor(H * sqrt(1 -
    lambda))`` pixels, rounded down to even numbers, about a centre that is uniform over the image, and is clipped at
    the edges; the share is then the exact part of the image that is its own.

    Share and box are drawn for every image; the released code draws one for the whole batch, and leaves batches at
    random as they are (``cutmix_prob``), which this does not.

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
        """The images with their boxes, dtype unchanged."""
        height, width = images.shape[2:]
        side = (1 - beta(self.alpha, seed, epoch, index)).sqrt()
        rows = _inside(side, height, counter_rng.integers(height, seed, epoch, index, counter_rng.BOX_DOWN))
        columns = _inside(side, width, counter_rng.integers(width, seed, epoch, index, counter_rng.BOX_RIGHT))
        share = 1 - (rows.sum(1) * columns.sum(1)).float() / (height * width)
        box = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(box, images.roll(1, 0), images), Mix(before(index), share)


def _inside(side: Tensor, length: int, centre: Tensor) -> Tensor:
    """Which of ``length`` pixels lie in the box, (B, length); ``side`` is the box's part of the whole length."""
    half = (side * length).long() // 2
    place = torch.arange(length, device=side.device)
    return (place >= (centre - half)[:, None]) & (place < (centre + half)[:, None])


def before(index: Tensor) -> Tensor:
    """The position in the batch of every image's partner, (B,) int64: the image before, for the first the last."""
    return torch.arange(len(index), device=index.device).roll(1)


def beta(alpha: float, seed: int, epoch: int, index: Tensor) -> Tensor:
    """A number from Beta(alpha, alpha) for every sample, (B,) float64, drawn without waiting for the device.

    Jöhnk's rejection: of uniform u, v take ``u**(1/alpha) / (u**(1/alpha) + v**(1/alpha))`` where the denominator is at
    most 1, which holds for at least half of all pairs if alpha is at most 1. The first of 32 tries that fits is taken.
    """
    tries = index * TRIES + torch.arange(TRIES, device=index.device)[:, None]  # (32, B)
    # By logarithms: the powers themselves underflow for a small alpha. 1 - u is never 0.
    own, other = (
        torch.log1p(-counter_rng.uniform(seed, epoch, tries, stream)) / alpha
        for stream in (counter_rng.OWN, counter_rng.OTHER)
    )
    first = (torch.logaddexp(own, other) <= 0).to(torch.uint8).argmax(0, keepdim=True)
    return torch.sigmoid((own - other).gather(0, first)[0])


def mixed_labels(target: Tensor, mix: Mix, classes: int) -> Tensor:
    """Class probabilities (B, classes) float32 of mixed images, from the labels (B,) of their parts."""
    numbers = torch.arange(classes, device=target.device)
    own, other = (labels[:, None] == numbers for labels in (target, target[mix.partner]))
    share = mix.share.float()[:, None]
    return own * share + other * (1 - share)
