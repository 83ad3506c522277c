"""The copy of a fast teacher: what is folded in it, when it is made, and when it may be used."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from kdlab.members import fast_copy as module
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import Fast
from kdlab.models import mlp, resnet8x4, wrn_16_2
from kdlab.outputs import Observer, Outputs
from tests.members.test_fast_inference import Small, close, fast_network, images, norms, trained


@pytest.fixture(autouse=True)
def _no_grad_and_heard(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "kdlab.teaching")
    with torch.no_grad():
        yield


@pytest.mark.parametrize("make", [resnet8x4, wrn_16_2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_equals_the_network_in_float64(make: Any, layout: torch.memory_format, caplog: Any) -> None:
    net = trained(make(7))
    layers = {resnet8x4: ["layer1", "layer2", "layer2.0.bn1"], wrn_16_2: ["block1", "block2.layer.0.bn1"]}[make]
    x = images().contiguous(memory_format=layout)
    reference = Observer(copy.deepcopy(net).double(), layers)(x.double())
    observer, plain = FastObserver(net, layers), Observer(net, layers)(x)
    first = observer(x)
    assert close(first, reference)
    assert norms(fast_network(observer)) == (0 if make is resnet8x4 else 6)
    assert fast_network(observer).conv1.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]
    assert [each.stride() for each in first.tensors()] == [each.stride() for each in plain.tensors()]
    assert [each.dtype for each in first.tensors()] == [each.dtype for each in plain.tensors()]
    assert all(map(torch.equal, first.tensors(), observer(x).tensors()))
    assert "BatchNorms folded, channels_last; outputs differ most in" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Linear(3, 4), nn.BatchNorm1d(4), (5, 3)),
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (5, 3, 7)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), (5, 3, 7, 7)),
        (nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), (5, 3, 7, 7, 7)),
    ],
)
def test_every_layer_with_a_norm_of_its_kind_is_folded(layer: Any, norm: Any, shape: tuple[int, ...]) -> None:
    net = trained(nn.Sequential(layer, norm, nn.Flatten()))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    observer = FastObserver(net)
    assert close(observer(x), Observer(copy.deepcopy(net).double())(x.double()))
    assert norms(fast_network(observer)) == 0


def test_taps_on_a_convolution_a_norm_and_a_block_that_adds_in_place(caplog: Any) -> None:
    net, x = trained(resnet18(num_classes=5)), images(2, 32)
    layers = ["layer1.0.conv1", "layer1.0.bn2", "layer1.1.bn1", "layer1", "layer2.0.downsample"]
    reference = Observer(copy.deepcopy(net).double(), layers)(x.double())
    for only_layers in (False, True):
        observer = FastObserver(net, layers, only_layers=only_layers)
        for _ in range(3):
            seen = observer(x)
            assert all(map(torch.Tensor.is_contiguous, seen.layers))
            if only_layers:
                assert seen.logits.shape == (2, 0)
                assert seen.embedding is None
            expected = Outputs(seen.logits, reference.layers) if only_layers else reference
            assert close(Outputs(seen.logits, seen.layers, seen.embedding), expected)
    assert norms(fast_network(observer)) == 1
    assert "19 BatchNorms folded, 1 not, since the layer before is tapped" in caplog.text


FOLDED = {"plain": 2, "branch": 2, "two norms": 0, "skip": 1, "relu_": 1, "twice": 1, "shared bn": 0, "two names": 1}


@pytest.mark.parametrize(("how", "folded"), FOLDED.items())
def test_folds_what_nothing_else_reads(how: str, folded: int) -> None:
    net, x = trained(Small(how)), images()
    observer = FastObserver(net)
    assert close(observer(x), Observer(copy.deepcopy(net).double())(x.double()))
    left = fast_network(observer)
    assert sum(isinstance(part, nn.Identity) for part in left.modules()) == folded


@pytest.mark.parametrize(("how", "prevented"), [("plain", ", 1 not, since"), ("skip", "")])
def test_a_tapped_convolution_is_not_folded(how: str, prevented: str, caplog: Any) -> None:
    """With a skip it would not be in any case, which is not the tap's doing."""
    net, x = trained(Small(how)), images()
    observer = FastObserver(net, ["conv"])
    assert close(observer(x), Observer(copy.deepcopy(net).double(), ["conv"])(x.double()))
    assert norms(fast_network(observer)) == 1
    (message,) = caplog.messages
    assert f"1 BatchNorm folded{prevented or ', channels_last'}" in message


class Clips(nn.Module):
    """Video (B, T, 3, H, W) through a network of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.flatten(0, 1)).mean((2, 3)).unflatten(0, x.shape[:2]).mean(1))


def test_video_keeps_its_layout() -> None:
    net, x = Clips().eval(), torch.stack([images(), images().flip(0)], 1)
    observer = FastObserver(net)
    assert close(observer(x), Observer(net)(x))
    assert fast_network(observer) is not net


def test_a_use_that_cannot_be_seen_is_caught_on_the_first_batch(caplog: Any) -> None:
    net, x = trained(Small("hidden skip")), images()
    observer = FastObserver(net)
    for _ in range(2):
        assert torch.equal(observer(x).logits, net(x))
    assert fast_network(observer) is net
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "plain network is used" in record.message
    assert "on the first batch (0.001 is allowed)" in record.message


def test_without_watching_dispatch_a_skip_would_be_caught_too(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(module.Flow, "__torch_dispatch__", lambda self, f, t, args=(), kw=None: f(*args, **(kw or {})))
    net, x = trained(Small("skip")), images()
    observer = FastObserver(net)
    assert torch.equal(observer(x).logits, Observer(net)(x).logits)
    assert fast_network(observer) is net
    assert "plain network is used" in caplog.text


def test_hooks_of_a_user_and_taps_under_another_name_prevent_a_fold() -> None:
    net, x = trained(Small()), images()
    calls: list[int] = []
    net.bn.register_forward_hook(lambda *_: calls.append(1))
    observer = FastObserver(net, ["box"])  # box is a container: its output is the convolution's
    reference = Observer(copy.deepcopy(net).double(), ["box"])(x.double())
    assert close(observer(x), reference)
    assert norms(fast_network(observer)) == 2
    before = len(calls)
    observer(x)
    assert len(calls) == before + 1


def test_linear_layers_and_norms_without_affine_part() -> None:
    parts = [nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3)]
    net, x = trained(nn.Sequential(*parts)), torch.randn(9, 4)
    observer = FastObserver(net, ["1"])
    assert close(observer(x), Observer(copy.deepcopy(net).double(), ["1"])(x.double()))
    assert norms(fast_network(observer)) == 0
    tokens = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(36, 2))  # channels are dim 1
    observer = FastObserver(trained(tokens))
    observer(torch.randn(5, 6, 6))
    assert fast_network(observer) is tokens


@pytest.mark.full
@pytest.mark.parametrize("make", [Small, resnet18])
def test_the_network_stays_as_it_is(make: Any) -> None:
    net = trained(make())
    before, names = (
        {k: v.clone() for k, v in net.state_dict().items()},
        {n: set(vars(m)) for n, m in net.named_modules()},
    )
    tensors = [*net.parameters(), *net.buffers()]
    pointers = [each.data_ptr() for each in tensors]
    observer = FastObserver(net, ["bn" if make is Small else "layer1"], Fast(precision="bf16", tolerance=9.0), True)
    for _ in range(3):
        observer(images(2, 32))
    assert fast_network(observer) is not net
    assert not {each.data_ptr() for each in fast_network(observer).parameters()} & set(pointers)
    assert all(a is b for a, b in zip([*net.parameters(), *net.buffers()], tensors, strict=True))
    assert [each.data_ptr() for each in tensors] == pointers
    assert list(before) == list(net.state_dict())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert {name: set(vars(part)) for name, part in net.named_modules()} == names
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    made = fast_network(observer)
    assert not any(part.training for part in made.modules())
    assert not any(each.requires_grad for each in made.parameters())
    again, copied = pickle.loads(pickle.dumps((net, observer)))[1], copy.deepcopy((net, observer))[1]
    for each in (again, copied):
        assert each._copy is None
        assert torch.equal(each(images(2, 32)).layers[0], observer(images(2, 32)).layers[0])


def test_no_copy_where_nothing_would_change(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(module, "altered", None)
    net, x = mlp(4, [6, 6], 3).eval(), torch.randn(5, 4)
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(FastObserver(net)(x).logits, Observer(net)(x).logits)
    assert len(calls) == 2
    conv = trained(Small())
    FastObserver(conv, (), Fast(False, False))(images())
    assert not caplog.records


def test_the_copy_follows_the_network() -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net)
    observer(x)
    first = fast_network(observer)
    observer(x)
    assert fast_network(observer) is first
    net.load_state_dict(trained(Small()).state_dict())
    assert close(observer(x), Observer(net)(x))
    second = fast_network(observer)
    assert second is not first
    observer.find_layers()
    assert observer._copy is None
    assert close(observer(x), Observer(net)(x))
    net.double()
    assert close(observer(x.double()), Observer(net)(x.double()), 1e-12)
    before = fast_network(observer)
    net.to("meta")
    assert observer(x.double().to("meta")).logits.is_meta
    assert fast_network(observer) is not before


@pytest.mark.parametrize("is_nested", [False, True])
def test_a_teacher_that_was_compiled_before_is_left_alone(is_nested: bool) -> None:
    net, x = trained(Small()), images()
    part = net.box if is_nested else net
    part._compiled_call_impl = part._call_impl  # as after compile(), without the wait
    observer = FastObserver(net, ["conv"], only_layers=True)
    for _ in range(2):  # whole ones: a stop would break the graph
        assert torch.equal(observer(x).logits, Observer(net)(x).logits)
    assert fast_network(observer) is net


def test_validation_in_inference_mode_may_come_first() -> None:
    net, x, layers = trained(resnet18(num_classes=5)), images(2, 32), ["layer1.0.bn2", "layer2"]
    reference = Observer(copy.deepcopy(net).double(), layers)(x.double())
    observer = FastObserver(net, layers)
    with torch.inference_mode():
        assert close(Outputs(observer(x).logits), Outputs(reference.logits))
    seen = observer(x)  # layer1.0.bn2 is overwritten in place, which only versions tell
    assert close(seen, reference)
    assert not any(each.is_inference() for each in [*seen.tensors(), *fast_network(observer).parameters()])
    weight = torch.ones((), requires_grad=True)
    with torch.enable_grad():
        (weight * seen.layers[0]).sum().backward()
    assert weight.grad is not None


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        net = trained(Small())
        expected = net(images())
    observer = FastObserver(net)
    for _ in range(2):
        assert close(Outputs(observer(images()).logits), Outputs(expected))
    assert norms(fast_network(observer)) == 0


class Positions(nn.Module):
    """A 4-D weight that is no image filter, and is viewed."""

    def __init__(self) -> None:
        super().__init__()
        self.where, self.conv, self.fc = nn.Parameter(torch.randn(1, 3, 4, 4)), nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).mean((2, 3)) + self.where.view(-1)[:4])


def test_only_filters_of_images_change_their_layout() -> None:
    observer = FastObserver(Positions().eval())
    observer(images())
    made: Any = fast_network(observer)
    assert made is not observer.network
    assert made.where.is_contiguous()
    assert made.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("how", "allowed"), {"same": 1e-3, "half weights": 0.03, "matmul": 0.03, "autocast": 0.03, "bf16": 0.03}.items()
)
def test_how_far_the_copy_may_be_off(how: str, allowed: float, monkeypatch: Any) -> None:
    net, x = trained(Small()), images()
    if how == "half weights":
        net, x = net.bfloat16(), x.bfloat16()
    for off, is_used in ((allowed * 0.98, True), (allowed * 1.02, False)):
        monkeypatch.setattr(module, "largest_error", lambda *_, off=off: ("the logits", off))
        observer = FastObserver(net, (), Fast(precision="bf16" if how == "bf16" else "same"))
        backend: Any = torch.backends.mkldnn.matmul
        before = backend.fp32_precision
        try:  # no attribute that monkeypatch could put back
            backend.fp32_precision = "bf16" if how == "matmul" else before
            with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
                observer(x)
        finally:
            backend.fp32_precision = before
        assert (fast_network(observer) is not net) is is_used


@pytest.fixture(scope="module")
def learnt() -> nn.Module:
    """After a short training: in which quarter is the image bright?"""
    torch.manual_seed(0)
    net = resnet8x4(4).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    with torch.enable_grad():
        for _ in range(25):
            x, y = torch.randn(16, 3, 8, 8), torch.randint(4, (16,))
            for image, quarter in zip(x, y.tolist(), strict=True):
                image[:, quarter // 2 * 4 :, quarter % 2 * 4 :][:, :4, :4] += 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@pytest.mark.full
def test_bf16_of_a_trained_network_is_used_and_not_with_a_layer_of_zeros(learnt: nn.Module, monkeypatch: Any) -> None:
    x, layers = images(8, 8), ["layer1", "layer3"]
    observer = FastObserver(learnt, layers, Fast(precision="bf16"))
    assert close(observer(x), Observer(learnt, layers)(x), 0.25)
    assert fast_network(observer) is not learnt
    made = module.altered
    for name in [name for name, part in learnt.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))]:

        def zeroed(*args: Any, name: str = name) -> nn.Module:
            network: Any = made(*args)
            network.get_submodule(name).weight.zero_()
            return network  # type: ignore[no-any-return]

        monkeypatch.setattr(module, "altered", zeroed)
        observer = FastObserver(learnt, layers, Fast(precision="bf16"))
        observer(x)
        assert fast_network(observer) is learnt, name
