"""Taps where a layer's output is not one tensor of one call: repeated, overwritten, compiled, nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from kdlab.errors import InputError
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import Fast
from kdlab.members.member import Learner
from kdlab.outputs import Batch, Head, Observer, split_call
from kdlab.outputs.observer import observe
from kdlab.outputs.split_views import with_views

PLAIN = Fast(fold=False, channels_last=False)


def calls_of(network: nn.Module, name: str, inputs: Tensor) -> list[Tensor]:
    """Copies of what a layer returns, call by call, as torch's own hooks give them."""
    calls: list[Tensor] = []
    with network.get_submodule(name).register_forward_hook(lambda module, args, output: calls.append(output.clone())):
        network(inputs)
    return calls


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", [Observer, lambda *given: FastObserver(*given, PLAIN, only_layers=True)])
def test_each_call_of_a_repeated_layer(make: Callable[..., Observer]) -> None:
    torch.manual_seed(0)
    network, x, relu = resnet18(num_classes=5).eval().requires_grad_(False), images(), "layer1.0.relu"
    first, second = calls_of(network, relu, x)
    assert not torch.equal(first, second)
    observer = make(network, [f"{relu}@1", "layer1.0", f"{relu}@0"])
    for _ in range(3):
        seen = observer(x)
        assert seen.names == (f"{relu}@1", "layer1.0", f"{relu}@0")
        assert torch.equal(seen.layers[0], second)
        assert torch.equal(seen.layers[1], second)  # the block ends with it
        assert torch.equal(seen.layers[2], first)
    with pytest.raises(InputError, match=f"'{relu}' ran 2 times .* not one output: tap '{relu}@0', '{relu}@1'"):
        make(network, [relu])(x)
    with pytest.raises(InputError, match=f"ran 2 times .* so '{relu}@2' is not one"):
        make(network, [f"{relu}@2"])(x)
    with pytest.raises(InputError, match=r"'bn1' ran once .* so 'bn1@1' is not one output: tap 'bn1@0'"):
        make(network, ["bn1@1"])(x)
    assert torch.equal(make(network, ["bn1@0"])(x).layers[0], make(network, ["bn1"])(x).layers[0])


def test_the_forward_stops_after_the_call_that_is_read() -> None:
    network, x = resnet18(num_classes=5).eval().requires_grad_(False), images()
    ran: list[str] = []
    for name, part in network.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    for call, last in ((0, "layer2.1.bn1"), (1, "layer2.1.bn2")):
        observer = FastObserver(network, [f"layer2.1.relu@{call}"], PLAIN, only_layers=True)
        observer(x)
        ran.clear()
        observer(x)
        assert [name for name in ran if not name.endswith("relu")][-1] == last


class TwoHeads(nn.Module):
    """Heads on one trunk, with one activation in both places of each."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.a, self.b = (nn.ModuleDict({"fc": nn.Linear(4, 3), "act": nn.Tanh()}) for _ in range(2))

    @property
    def heads(self) -> dict[str, Head]:
        return {"": Head(self.a["fc"], "a.{}".format), "other": Head(self.b["fc"], "b.{}".format)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = (part["fc"](part["act"](part["act"](x * n))) for n, part in ((1, self.a), (2, self.b)))
        return {"logits": a, "other": b}


def test_each_head_has_its_own_calls() -> None:
    x = torch.randn(2, 4)
    seen = observe(TwoHeads(), x, ["act@0", "act@1"])
    for outputs, own in ((seen, x), (seen.heads["other"], 2 * x)):
        assert torch.equal(outputs.layers[0], own.tanh())
        assert torch.equal(outputs.layers[1], own.tanh().tanh())


def test_a_classifier_that_runs_twice_has_no_embedding() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.fc(2 * x)

    seen = observe(Twice(), torch.ones(2, 4), ["fc@1"])
    assert seen.embedding is None
    assert seen.layers[0].shape == (2, 4)


def test_names_of_calls() -> None:
    names = ("a.relu@1", "relu", "@1", "relu@", "relu@x", "a@b@2")
    assert [split_call(name) for name in names] == [
        *(("a.relu", "@1"), ("relu", ""), ("@1", ""), ("relu@", ""), ("relu@x", ""), ("a@b", "@2")),
    ]


def overwriting() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3))


def test_an_overwritten_tap_costs_no_second_step() -> None:
    """The dry run finds it; a second forward in a step would move BatchNorm and the random numbers twice."""
    network, batch = overwriting(), Batch(torch.randn(5, 4), torch.zeros(5).long())
    member = Learner("student", network)
    member.set_taps(["1"])
    member(batch, {})  # the dry run
    member.set_taps(["1"])  # the start of the fit
    norm: Any = network[1]
    norm.reset_running_stats()
    (layer,) = member(batch, {})["student"].layers
    assert norm.num_batches_tracked == 1
    hidden = network[0](batch.inputs)
    right = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + norm.eps).sqrt()
    assert (right < 0).any()  # which the ReLU would overwrite
    assert torch.allclose(layer, right, atol=1e-6)


def test_an_overwritten_embedding_is_the_one_that_was_read() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            logits = self.fc(x)
            x.zero_()
            return logits

    network, x = Net().eval(), torch.randn(3, 4)
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(observe(network, x).embedding, network.first(x))  # type: ignore[arg-type]
            assert torch.equal(observe(network, x, ["first"]).layers[0], network.first(x))


def test_outputs_of_a_network_with_inference_mode_can_teach() -> None:
    class Teacher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = overwriting().eval().requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.net(x)

    teacher, x, scale = Teacher().eval(), torch.randn(3, 4), torch.ones((), requires_grad=True)
    for observer in (Observer(teacher, ["net.1"]), FastObserver(teacher, ["net.1"], PLAIN, only_layers=True)):
        for _ in range(2):
            with torch.no_grad():
                seen = observer(x)
            (scale * seen.layers[0]).sum().backward()
            assert torch.equal(seen.layers[0], teacher.net[1](teacher.net[0](x)))
    (scale * observe(teacher, x).logits).sum().backward()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    class Encoder(nn.Module):
        def __init__(self, nested: bool) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True)
            self.encoder, self.fc = nn.TransformerEncoder(layer, 1, enable_nested_tensor=nested), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool)
            mask[:, -1] = True
            return self.fc(self.encoder(x, src_key_padding_mask=mask)[:, 0])

    x, layers = torch.randn(2, 3, 8), ["encoder.layers.0", "encoder.layers.0.linear1"]
    with torch.no_grad(), pytest.raises(InputError, match=r"nested tensor, .*enable_nested_tensor=False"):
        observe(Encoder(True).eval(), x, layers)
    network = Encoder(False).train()
    expected = observe(network, x, layers)
    with torch.no_grad():  # hooks keep torch's fused layer from running
        seen = observe(network.eval(), x, layers)
    for ours, theirs in zip(seen.layers, expected.layers, strict=True):
        assert torch.allclose(ours[:, :2], theirs[:, :2], atol=1e-5)


def test_a_layer_without_samples_first_has_no_views() -> None:
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.swap, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.swap(x.transpose(0, 1)).mean(0))

    views = {"second": torch.randn(2, 3, 4)}
    batch = Batch(torch.randn(2, 3, 4), torch.zeros(2).long(), views=views)  # type: ignore[arg-type]
    seen = observe(SequenceFirst(), torch.cat([batch.inputs, views["second"]]), ["swap"])
    with pytest.raises(InputError, match=r"'swap' gives \(3, 4, 4\), whose first dimension is not the samples"):
        with_views(seen, batch, ["second"])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Tanh()
        self.block, self.fc = nn.Sequential(nn.Linear(4, 4), self.act, nn.Linear(4, 4), self.act), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(self.block, x, use_reentrant=False))


def test_recomputed_calls_are_not_counted() -> None:
    torch.manual_seed(0)
    network, x = Checkpointed(), torch.randn(3, 4)
    observer = Observer(network, ["act@0", "act@1"])
    for _ in range(2):
        network.zero_grad()
        seen = observer(x)
        (seen.layers[0].sum() + seen.layers[1].square().sum() + seen.logits.sum()).backward()
    ours = [parameter.grad.clone() for parameter in network.parameters()]  # type: ignore[union-attr]
    network.zero_grad()
    first = network.block[0](x).tanh()
    second = network.block[2](first).tanh()
    (first.sum() + second.square().sum() + network.fc(second).sum()).backward()
    for mine, parameter in zip(ours, network.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-6)  # type: ignore[arg-type]
