"""LightningDataModules whose order and augmentation are functions of (seed, epoch, index)."""

from kdlab.data.cifar import CIFAR10, CIFAR100
from kdlab.data.digits import Digits
from kdlab.data.folder import ImageFolder
from kdlab.data.images import ImageData
from kdlab.data.mixing import CutMix, Mixing, MixUp
from kdlab.data.mnist import MNIST
from kdlab.data.paired_views import LastBatch, SameClass, SecondView
from kdlab.data.preprocessing import Preprocessing
from kdlab.data.text import TextData
from kdlab.data.unlabeled import UnlabeledImages
from kdlab.data.views import Mixed, RandAugment, Rotations, View

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "CutMix",
    "Digits",
    "ImageData",
    "ImageFolder",
    "LastBatch",
    "MixUp",
    "Mixed",
    "Mixing",
    "Preprocessing",
    "RandAugment",
    "Rotations",
    "SameClass",
    "SecondView",
    "TextData",
    "UnlabeledImages",
    "View",
]
