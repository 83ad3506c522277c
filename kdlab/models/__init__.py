"""Networks as plain builder functions, and their weights files.

Every builder works by class path in YAML or on the command line, as do torchvision's and ``timm_model``. Users'
networks need nothing from kdlab; :func:`with_weights` loads a weights file into them. :func:`projected`,
:func:`normed`, :func:`embedded`, :func:`without_bias` and :func:`fake_quantized` change a network as a method requires;
:class:`Branched` and :class:`WithExits` add heads.
"""

from kdlab.models.bilstm import BiLSTM, bilstm
from kdlab.models.bottleneck import FourStageResNet, cifar_resnet18, cifar_resnet50
from kdlab.models.branched import Branched
from kdlab.models.exits import WithExits
from kdlab.models.fake_quantized import fake_quantized, without_fake_quantization
from kdlab.models.hugging_face import SentenceEncoder, hugging_face
from kdlab.models.lora import lora
from kdlab.models.mlp import MLP, mlp
from kdlab.models.mobilenet import MobileNetV1, MobileNetV2, mobilenet_v1, mobilenet_v2_half
from kdlab.models.normed import Normed, normed
from kdlab.models.projected import Projected, projected
from kdlab.models.resnet import (
    ResNet,
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from kdlab.models.shufflenet import ShuffleNetV1, ShuffleNetV2, shuffle_v1, shuffle_v2, shuffle_v2_x1_5
from kdlab.models.static_encoder import StaticEncoder, static_encoder
from kdlab.models.surgery import embedded, without_bias
from kdlab.models.timm import timm_model
from kdlab.models.transformer_cut import student_from_teacher
from kdlab.models.vgg import VGG, vgg8, vgg11, vgg13, vgg16, vgg19
from kdlab.models.weights import load_weights, save_weights, with_weights
from kdlab.models.wrn import WideResNet, wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "BiLSTM",
    "Branched",
    "FourStageResNet",
    "MLP",
    "MobileNetV1",
    "MobileNetV2",
    "Normed",
    "Projected",
    "SentenceEncoder",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "StaticEncoder",
    "VGG",
    "WideResNet",
    "WithExits",
    "bilstm",
    "cifar_resnet18",
    "cifar_resnet50",
    "embedded",
    "fake_quantized",
    "hugging_face",
    "load_weights",
    "lora",
    "mlp",
    "mobilenet_v1",
    "mobilenet_v2_half",
    "normed",
    "projected",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet56",
    "resnet110",
    "save_weights",
    "shuffle_v1",
    "shuffle_v2",
    "shuffle_v2_x1_5",
    "static_encoder",
    "student_from_teacher",
    "timm_model",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "with_weights",
    "without_bias",
    "without_fake_quantization",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]
