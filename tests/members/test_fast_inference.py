"""The fast teacher: what a plain one gives, from a copy that leaves the network as it is."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from kdlab.errors import InputError
from kdlab.members import fast_options
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import Fast, supports_bf16
from kdlab.outputs import Observer, Outputs

ONLY_STOP = Fast(False, False, "same", False)


@pytest.fixture(autouse=True)
def _no_grad_and_heard(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "kdlab.teaching")
    with torch.no_grad():
        yield


def trained(network: nn.Module) -> nn.Module:
    """With statistics and weights as a training leaves them: none at its initial value."""
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            for value, low in ((part.weight, 0.5), (part.bias, -1), (part.running_mean, -1), (part.running_var, 0.5)):
                if value is not None:
                    value.uniform_(low, 1.5)
    return network.eval().requires_grad_(False)


def images(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def close(seen: Outputs, expected: Outputs, tolerance: float = 2e-5) -> bool:
    pairs = list(zip(seen.tensors(), expected.tensors(), strict=True))
    return all(float((a - b).abs().max()) <= tolerance * float(b.std()) for a, b in pairs if b.numel())


def fast_network(observer: FastObserver) -> nn.Module:
    assert observer._copy is not None
    return observer._copy.runner.network


def norms(network: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())


class Small(nn.Module):
    """A convolution, its BatchNorm, and ``how`` else the convolution's output is used."""

    def __init__(self, how: str = "plain") -> None:
        super().__init__()
        self.how, self.runs = how, 0
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.box = nn.Sequential(nn.Conv2d(4, 4, 1))
        self.bn2, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)
        if how == "shared bn":
            self.bn2 = self.bn
        if how == "two names":
            self.again = self.conv

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        made = self.conv(x)
        if self.how == "relu_":
            made.relu_()
        y = self.bn(made).relu()
        if self.how == "skip":
            y = y + made
        elif self.how == "hidden skip":  # through its memory: no hook and no dispatch sees it
            y = y + torch.empty(0).set_(made.untyped_storage(), 0, made.shape, made.stride())
        elif self.how == "two norms":
            y = y + self.bn2(made)
        elif self.how == "twice":
            y = y + self.bn(self.conv(x * 2))
        elif self.how == "branch" and float(x.mean()) > -10:
            y = y * 2
        elif self.how == "raises":
            try:
                y = self.box(y)
            except Exception:
                y = y * 0
        z = self.bn2(self.box(y))
        return self.fc(z.relu_().mean((2, 3)))


def test_batch_statistics_are_left_to_the_network() -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net)
    observer(x)
    for norm in (net.bn, net.bn2):
        norm.training, norm.track_running_stats = True, False
    assert torch.equal(observer(x).logits, net(x))
    for norm in (net.bn, net.bn2):
        norm.training, norm.track_running_stats = False, True
    assert close(observer(x), Observer(net)(x))


@pytest.mark.parametrize("fast", [ONLY_STOP, Fast()])
def test_stops_after_the_last_tapped_layer(fast: Fast, caplog: Any) -> None:
    net, x = trained(Small("raises")), images()
    observer = FastObserver(net, ["conv", "box.0@1"], fast, only_layers=True)
    reference = Observer(net, ["conv", "box.0@1"])(x)
    observer(x)
    ran: list[str] = []
    for name, part in fast_network(observer).named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    seen = observer(x)
    assert close(Outputs(x, seen.layers), Outputs(x, reference.layers))
    assert seen.logits.shape == (3, 0)
    # The box runs twice; "raises" would go on after an exception of the usual kind.
    assert ran == ["conv", "bn", "box.0", "box", "box.0"]
    assert "stops after 'box.0@1'" in caplog.text
    ran.clear()
    observer.only_layers = False
    assert close(observer(x), reference)
    assert ran[-1] == ""
    assert all(name in ran for name in ("fc", "bn2"))
    assert len(fast_network(observer).box[0]._forward_hooks) == 1  # type: ignore[index]


class Late(nn.Module):
    """Overwrites in place what its first layer gave, but not at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.runs, self.whole = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        y = self.first(x)
        z = self.second(y if self.runs == 1 else y.mul_(0))
        self.whole += 1
        return self.fc(z.mean((2, 3)))


def test_what_is_overwritten_before_the_stop_is_found_by_one_more_run_up_to_the_stop() -> None:
    net, x = Late().eval(), images()
    observer = FastObserver(net, ["first", "second"], ONLY_STOP, only_layers=True)
    observer(x)
    for runs in (3, 4):  # once more where it is found, then a copy at every call
        seen = observer(x)
        assert seen.logits.shape == (3, 0)
        assert torch.equal(seen.layers[0], net.first(x))
        assert torch.equal(seen.layers[1], net.second(net.first(x) * 0))
        assert (net.runs, net.whole) == (runs, 1)


def test_a_whole_forward_where_it_must_be() -> None:
    net, x = trained(Small()), images()
    for layers in ((), ("0",)):
        wrapped = nn.Sequential(net) if not layers else _Parts(net)
        for _ in range(2):
            assert FastObserver(wrapped.eval(), layers, only_layers=True)(x).logits.shape == (3, 5)


class _Parts(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return [self.net(x), x]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision(precision: Any, caplog: Any) -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net, ["bn", "box"], Fast(precision=precision))
    with torch.autocast("cpu", torch.bfloat16):
        seen = observer(x)
    reference = Observer(copy.deepcopy(net).double(), ["bn", "box"])(x.double())
    assert all(each.dtype == torch.float32 for each in seen.tensors())
    assert close(seen, reference, 0.05)
    assert not close(seen, reference, 1e-5)
    half = torch.bfloat16 if precision == "bf16" else torch.float16
    made = fast_network(observer)
    assert {made.conv.weight.dtype, made.fc.weight.dtype} == {half}  # type: ignore[union-attr]
    if not supports_bf16(torch.device("cpu")):
        assert f"no instructions for {precision}, so it is slower" in caplog.text


def test_precision_alone_makes_a_copy() -> None:
    observer = FastObserver(trained(Small()), (), Fast(fold=False, channels_last=False, precision="bf16"))
    observer(images())
    assert fast_network(observer).conv.weight.dtype == torch.bfloat16  # type: ignore[union-attr]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_auto_is_the_precision_of_the_training_if_not_timed(device: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(fast_options, "supports_bf16", lambda device: True)
    observer = FastObserver(trained(Small()), (), Fast(precision="auto"))
    observer(images())
    assert observer.used == Fast()
    tried = {option.precision for option in Fast(precision="auto").combinations(torch.device(device))}
    assert tried >= {"same", "bf16"}


CHANGES: dict[str, Callable[[Small], object]] = {
    "in place": lambda net: [weight.mul_(1.5) for weight in net.parameters()],
    "data": lambda net: [weight.data.mul_(1.5) for weight in net.parameters()],
    "one data": lambda net: net.fc.weight.data.mul_(1.5),
    "new data": lambda net: setattr(net.fc.weight, "data", net.fc.weight * 1.5),
    "vector": lambda net: vector_to_parameters(parameters_to_vector(net.parameters()) * 1.5, net.parameters()),
    "buffer": lambda net: net.bn.running_mean.add_(1.0),
    "buffer data": lambda net: net.bn.running_var.data.mul_(9.0),
    "load": lambda net: net.load_state_dict(trained(Small()).state_dict()),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_changed_network_is_seen(how: str) -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net, ["bn"])
    before = observer(x)
    made = fast_network(observer)
    assert close(observer(x), before)
    assert fast_network(observer) is made
    CHANGES[how](net)
    assert close(observer(x), Observer(net, ["bn"])(x))
    assert not close(observer(x), before)
    again = fast_network(observer)
    observer(x)
    assert again is fast_network(observer) is not made


@pytest.mark.parametrize("odd", ["nan", "expanded", "int", "channels_last"])
def test_odd_tensors_make_no_new_copy(odd: str) -> None:
    net, x = trained(Small()), images()
    if odd == "nan":
        net.register_buffer("odd", torch.full((3,), torch.nan))
    elif odd == "expanded":
        net.register_buffer("odd", torch.ones(1).expand(99))
    elif odd == "int":
        net.register_buffer("odd", torch.arange(3))
    else:
        net.to(memory_format=torch.channels_last)
    observer = FastObserver(net)
    observer(x)
    made = fast_network(observer)
    observer(x)
    assert fast_network(observer) is made


def test_mappings_pass_through() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.conv, self.fc = nn.Embedding(9, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, ids: Tensor, picture: Tensor, scale: Tensor) -> Tensor:
            self.strides = picture.stride()
            return self.fc(self.embed(ids).mean(1) + self.conv(picture).mean((2, 3)) * scale)

    net = Text().eval().requires_grad_(False)
    inputs = {"ids": torch.arange(6).view(2, 3), "picture": torch.randn(2, 4, 5, 5), "scale": torch.ones(2, 1)}
    observer = FastObserver(net, ["conv"], only_layers=True)
    observer({**inputs, "unused": inputs["ids"]})
    assert observer({**inputs, "unused": inputs["ids"]}).logits.shape == (2, 0)
    observer.only_layers = False
    seen = observer(inputs)
    assert fast_network(observer).strides == (100, 1, 20, 4)  # channels innermost
    assert close(seen, Observer(net, ["conv"])(inputs))
    assert seen.layers[0].is_contiguous()


def test_autocast_stays_and_a_failing_copy_is_left(caplog: Any) -> None:
    net, x = trained(Small()), images()
    with torch.autocast("cpu", torch.bfloat16):
        assert FastObserver(net)(x).logits.dtype == torch.bfloat16

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).view(len(x), -1))

    views = Views().eval().requires_grad_(False)
    assert torch.equal(FastObserver(views)(x).logits, views(x))
    assert "a fast copy fails: view size is not compatible" in caplog.text


def test_tolerance(caplog: Any) -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net, (), Fast(precision="bf16", tolerance=1e-6))
    assert torch.equal(observer(x).logits, net(x))
    assert "(1e-06 is allowed)" in caplog.text


@pytest.mark.full
def test_compiled_copy() -> None:
    torch._dynamo.reset()
    net, x = trained(Small()), images()
    observer = FastObserver(net, ["bn"], Fast(compile=True), only_layers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            assert close(observer(x), Observer(net, ["bn"])(x))
    assert fast_network(observer)._compiled_call_impl is not None
    assert net._compiled_call_impl is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "int8"}, "'same', 'auto', 'bf16' or 'fp16', not 'int8'"),
        ({"tolerance": 0.0}, "positive number, not 0.0"),
        ({"tolerance": -1.0}, "positive number, not -1.0"),
        ({"tolerance": float("nan")}, "positive number, not nan"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Fast(**arguments)


def test_an_unknown_layer_leaves_no_hooks() -> None:
    with pytest.raises(InputError, match="no layer 'cnov'"):
        FastObserver(trained(Small()), ["cnov"])(images())
    assert not nn.modules.module._global_forward_hooks


def test_plain_runs_the_network_itself_as_a_whole() -> None:
    net, x = trained(Small()), images()
    observer = FastObserver(net, ["box"], Fast(precision="bf16", tolerance=9.0), only_layers=True)
    for has_copy in (False, True):
        before = observer._copy
        observer.plain = True
        seen, expected = observer(x), Observer(net, ["box"])(x)
        observer.plain = False
        assert all(torch.equal(a, b) for a, b in zip(seen.tensors(), expected.tensors(), strict=True))
        assert observer._copy is before
        assert (before is not None) is has_copy
        observer(x)
