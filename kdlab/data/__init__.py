"""Data as LightningDataModules whose order and augmentation are functions of (seed, epoch, index)."""

from kdlab.data.digits import Digits
from kdlab.data.images import ImageData
from kdlab.data.mnist import MNIST

__all__ = ["MNIST", "Digits", "ImageData"]
