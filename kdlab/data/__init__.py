"""Data as LightningDataModules whose order and augmentation are functions of (seed, epoch, index)."""

from kdlab.data.cifar import CIFAR10, CIFAR100
from kdlab.data.digits import Digits
from kdlab.data.folder import ImageFolder
from kdlab.data.images import ImageData
from kdlab.data.mnist import MNIST
from kdlab.data.views import RandAugment, Rotations, View

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "Digits", "ImageData", "ImageFolder", "RandAugment", "Rotations", "View"]
