"""A frozen teacher, augmentations, chunked losses and exports on a GPU give the values of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kdlab.data import RandAugment, Rotations
from kdlab.data.augment import augment, normalize
from kdlab.losses import GeneralizedJSD
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import Fast, supports_bf16
from kdlab.models import resnet8
from kdlab.outputs import Observer, Outputs


def trained(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = resnet8(num_classes=10)
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("precision", ["same", "auto", "fp16"])
@torch.no_grad()
def test_a_fast_teacher_gives_the_plain_teachers_outputs(precision: Any, device: torch.device) -> None:
    net, images = trained().to(device), torch.randn(16, 3, 32, 32, device=device)
    plain = Observer(net, ["layer3"])(images)
    seen = FastObserver(net, ["layer3"], Fast(precision=precision, tolerance=0.25))(images)
    share = 1e-2 if precision == "same" else 5e-2
    for fast, slow in zip(seen.tensors(), plain.tensors(), strict=True):
        assert fast.dtype == slow.dtype
        assert float((fast - slow).norm() / slow.norm()) < share
    assert seen.logits.argmax(1).eq(plain.logits.argmax(1)).float().mean() > 0.9


@pytest.mark.full
@torch.no_grad()
def test_a_compiled_teacher_gives_the_plain_teachers_outputs(device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("test_fast_inference.py compiles on the CPU")
    net, images = trained().to(device), torch.randn(16, 3, 32, 32, device=device)
    seen = FastObserver(net, [], Fast(compile=True, tolerance=0.25))(images)
    torch.testing.assert_close(seen.logits, net(images), rtol=1e-2, atol=1e-2)


def test_bf16_is_asked_of_the_device(device: torch.device) -> None:
    assert isinstance(supports_bf16(device), bool)
    if device.type == "cuda":
        assert supports_bf16(device) == (torch.cuda.get_device_capability(device)[0] >= 8)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_token_losses_are_those_of_the_cpu(beta: float, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 7, 50, generator=generator) for _ in range(2))
    labels = torch.randint(50, (2, 7), generator=generator)
    loss = GeneralizedJSD(beta=beta)

    def value(on: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        logits = student.to(on).clone().requires_grad_()
        made = loss(Outputs(logits.flatten(0, 1)), Outputs(teacher.to(on).flatten(0, 1)), labels.to(on).flatten())
        made.backward()
        assert logits.grad is not None
        return made.detach().cpu(), logits.grad.cpu()

    for seen, expected in zip(value(device), value(torch.device("cpu")), strict=True):
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)


def test_augmented_images_are_those_of_the_cpu(device: torch.device) -> None:
    images = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(32) * 7
    expected = augment(images, index, seed=3, epoch=5, padding=4, flip=True)
    seen = augment(images.to(device), index.to(device), seed=3, epoch=5, padding=4, flip=True)
    assert torch.equal(seen.cpu(), expected)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    torch.testing.assert_close(normalize(seen, mean, std).cpu(), normalize(expected, mean, std), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("view", [Rotations(), RandAugment()])
def test_views_are_those_of_the_cpu(view: Any, device: torch.device) -> None:
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(8)
    seen, expected = view(images.to(device), index.to(device), 3, 5).cpu(), view(images, index, 3, 5)
    # A few pixels may be rounded otherwise where an operation interpolates.
    assert float((seen.float() - expected.float()).abs().gt(1).float().mean()) < 0.01
