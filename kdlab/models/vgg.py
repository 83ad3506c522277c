"""VGG networks with batch normalization for small images, as in the CIFAR-100 distillation benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kdlab.errors import InputError
from kdlab.models.blocks import initialize_convolutions
from kdlab.models.weights import load_weights

_WIDTHS = {
    8: ((64,), (128,), (256,), (512,), (512,)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
    19: ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions, each with batch normalization and ReLU, and one linear classifier.

    The last ReLU of a block is outside it. Layers to tap, for images of H x W: ``relu0`` (H x W), ``relu1``
    (H/2 x W/2), ``relu2`` (H/4 x W/4), ``relu3`` and ``relu4`` (H/8 x W/8) are after that ReLU, ``block0`` to
    ``block4`` BEFORE it. As in the published code, images of height 64 are pooled once more before the last block, so
    their ``relu4`` is H/16 x W/16. ``classifier`` gives the logits; its input is ``relu4`` averaged over all positions.
    The keys of ``state_dict`` are those of RepDistiller's and mdistiller's ``vgg*_bn``.

    Args:
        widths: for each of the five blocks, the channels of its convolutions.
        num_classes: K, the number of logits.
        in_channels: channels of the images.

    Shapes:
        input (B, in_channels, H, W) of at least 8 x 8; output (B, K).

    Raises:
        InputError: ``widths`` does not give five blocks of at least one convolution each.
    """

    def __init__(self, widths: Sequence[Sequence[int]], num_classes: int = 100, in_channels: int = 3) -> None:
        super().__init__()
        if len(widths) != 5 or not all(widths):
            raise InputError(f"widths must be five lists of channels, one per block and none empty, not {widths!r}.")
        self.block0 = _block(in_channels, widths[0])
        self.relu0 = nn.ReLU()
        self.block1 = _block(widths[0][-1], widths[1])
        self.relu1 = nn.ReLU()
        self.block2 = _block(widths[1][-1], widths[2])
        self.relu2 = nn.ReLU()
        self.block3 = _block(widths[2][-1], widths[3])
        self.relu3 = nn.ReLU()
        self.block4 = _block(widths[3][-1], widths[4])
        self.relu4 = nn.ReLU()
        self.classifier = nn.Linear(widths[4][-1], num_classes)
        initialize_convolutions(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, K) of images (B, in_channels, H, W)."""
        tall = x.shape[2] == 64
        x = F.max_pool2d(self.relu0(self.block0(x)), 2)
        x = F.max_pool2d(self.relu1(self.block1(x)), 2)
        x = F.max_pool2d(self.relu2(self.block2(x)), 2)
        x = self.relu3(self.block3(x))
        if tall:
            x = F.max_pool2d(x, 2)
        x = self.relu4(self.block4(x))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _block(before: int, widths: Sequence[int]) -> nn.Sequential:
    """Return a convolution, batch normalization and ReLU for every width, without the last ReLU."""
    layers: list[nn.Module] = []
    for channels, after in itertools.pairwise((before, *widths)):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _build(depth: int, num_classes: int, in_channels: int, weights: str | None) -> VGG:
    """Build a VGG and load its weights file, if any."""
    network = VGG(_WIDTHS[depth], num_classes, in_channels)
    return network if weights is None else load_weights(network, weights)


def vgg8(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> VGG:
    """Build VGG-8, the :class:`VGG` of one convolution per block.

    It has 3,965,028 parameters for 100 classes.

    Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, arXiv
    1409.1556; in the form for small images, with batch normalization and one linear classifier, and initialized as in
    the code of Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv 1910.10699
    (convolutions Kaiming, fan out; classifier normal with standard deviation 0.01; biases zero). The numbers in the
    names count the paper's three linear layers, of which one is left. The other VGGs of this module are built the same
    way.

    Args:
        num_classes: number of logits.
        in_channels: channels of the images (1 for MNIST and digits).
        weights: a weights file, see :func:`kdlab.models.load_weights`; published teachers load unchanged.

    Raises:
        InputError: the weights do not fit.
    """
    return _build(8, num_classes, in_channels, weights)


def vgg11(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> VGG:
    """Build VGG-11 (1, 1, 2, 2, 2 convolutions) with 9,277,284 parameters; arguments as for :func:`vgg8`."""
    return _build(11, num_classes, in_channels, weights)


def vgg13(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> VGG:
    """Build VGG-13 (2, 2, 2, 2, 2 convolutions) with 9,462,180 parameters; arguments as for :func:`vgg8`."""
    return _build(13, num_classes, in_channels, weights)


def vgg16(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> VGG:
    """Build VGG-16 (2, 2, 3, 3, 3 convolutions) with 14,774,436 parameters; arguments as for :func:`vgg8`."""
    return _build(16, num_classes, in_channels, weights)


def vgg19(num_classes: int = 100, in_channels: int = 3, weights: str | None = None) -> VGG:
    """Build VGG-19 (2, 2, 4, 4, 4 convolutions) with 20,086,692 parameters; arguments as for :func:`vgg8`."""
    return _build(19, num_classes, in_channels, weights)
