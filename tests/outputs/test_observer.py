"""Observing a network: every form of output, every layer, and nothing left behind."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from kdlab.errors import InputError
from kdlab.models import mlp
from kdlab.outputs import Batch, Observer, Outputs, classifier_of, observe, run


class ModelOutput(OrderedDict[str, Any]):
    """As in transformers: an ordered dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass
class Scores:
    logits: Tensor
    hidden_states: tuple[Tensor, ...]


class Net(nn.Module):
    """A network with a choice of output form."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form
        self.first, self.unused, self.fc = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        if self.form == "error":
            self.first(x)
            raise RuntimeError("stop")
        hidden = self.first(x) * scale
        logits = self.fc(hidden)
        return {
            "tensor": logits,
            "tuple": (logits, hidden),
            "list": [logits, hidden],
            "dict": {"loss": torch.tensor(0.0), "logits": logits, "hidden_states": (x, hidden)},
            "torchvision": OrderedDict(out=logits, aux=hidden),
            "dataclass": Scores(logits, (x, hidden)),
            "modeloutput": ModelOutput(loss=torch.tensor(0.0), logits=logits, hidden_states=(x, hidden)),
            "text": "no tensor",
        }[self.form]


FORMS = ["tensor", "tuple", "list", "dict", "torchvision", "dataclass", "modeloutput"]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_output_gives_logits_layers_and_embedding(form: str, x: Tensor) -> None:
    net = Net(form)
    hidden = net.first(x)
    seen = observe(net, x, layers=["fc", "first"])
    assert torch.equal(seen.logits, net.fc(hidden))
    assert seen.embedding is not None
    assert torch.equal(seen.embedding, hidden)
    assert seen.names == ("fc", "first")
    assert torch.equal(seen.layers[0], seen.logits)
    assert torch.equal(seen.layers[1], hidden)


@pytest.mark.parametrize("form", ["dict", "dataclass", "modeloutput"])
def test_part_of_the_output_by_path(form: str, x: Tensor) -> None:
    net = Net(form)
    assert torch.equal(observe(net, x, ["hidden_states.1"]).layers[0], net.first(x))
    assert torch.equal(observe(net, x, ["hidden_states.-2"]).layers[0], x)


def test_output_without_logits_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="logits must be"):
        observe(Net("text"), x)


def test_path_to_no_tensor_is_refused(x: Tensor) -> None:
    with pytest.raises(InputError, match="a tuple of 2, not a tensor"):
        observe(Net("dict"), x, ["hidden_states"])


def hooks(net: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())


@pytest.mark.parametrize("form", ["tensor", "error"])
def test_nothing_is_left_on_the_network(form: str, x: Tensor) -> None:
    net = Net(form)
    before = {name: set(vars(module)) for name, module in net.named_modules()}
    observer = Observer(net, ["first"])
    for _ in range(2):
        if form == "error":
            with pytest.raises(RuntimeError, match="stop"):
                observer(x)
        else:
            observer(x)
    assert hooks(net) == 0
    assert {name: set(vars(module)) for name, module in net.named_modules()} == before
    copied = copy.deepcopy(net)
    pickle.loads(pickle.dumps(net))
    assert hooks(copied) == 0


def test_an_observer_can_be_copied_with_its_network(x: Tensor) -> None:
    net = Net()
    copied_net, copied = copy.deepcopy((net, Observer(net, ["first"])))
    with torch.no_grad():
        copied_net.first.weight.zero_()
    assert torch.equal(copied(x).layers[0], copied_net.first(x))


@pytest.mark.parametrize("grad", [True, False])
def test_a_layer_overwritten_in_place_gives_its_value_from_before(grad: bool) -> None:
    torch.manual_seed(0)
    net = resnet18(num_classes=5).eval()
    images = torch.randn(2, 3, 32, 32)
    kept: list[Tensor] = []
    handle = net.layer1[0].bn2.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    expected = net(images)
    handle.remove()
    observer = Observer(net, ["layer1.0.bn2", "layer1.0"])
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            seen = observer(images)
            assert torch.equal(seen.layers[0], kept[0])
            assert torch.equal(seen.logits, expected)
    if grad:  # the copy leads to the weights below it
        (found,) = torch.autograd.grad(seen.layers[0].sum(), [net.conv1.weight])
        assert found.abs().sum() > 0
    with torch.inference_mode():
        observer(images)


def test_unknown_layer_lists_the_nearest(x: Tensor) -> None:
    with pytest.raises(InputError, match=r"Net has no layer 'frist'; the nearest names are 'first'"):
        observe(Net(), x, ["frist"])


def test_layer_that_does_not_run(x: Tensor) -> None:
    with pytest.raises(InputError, match="'unused' did not run in this forward of Net"):
        observe(Net(), x, ["unused"])


def test_layer_without_a_tensor() -> None:
    class Names(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "a name"

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.names, self.fc = Names(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.names(x)
            return self.fc(x)

    with pytest.raises(InputError, match="'names' returns a str, not a tensor"):
        observe(Outer(), torch.zeros(1, 4), ["names"])


def test_keywords_that_the_network_does_not_take_are_left_out(x: Tensor) -> None:
    net = Net()
    inputs = {"x": x, "scale": 2.0, "token_type_ids": x}
    assert torch.equal(observe(net, inputs).logits, net(x, 2.0))
    assert torch.equal(run(net, inputs), net(x, 2.0))

    class AnyKeyword(Net):
        def forward(self, **inputs: Any) -> Tensor:  # type: ignore[override]
            self.seen = set(inputs)
            return self.fc(self.first(inputs["x"]))

    taker = AnyKeyword()
    observe(taker, inputs)
    assert taker.seen == set(inputs)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("called_before", [False, True])
def test_compiled_network_gives_the_same_taps(backend: str, called_before: bool, x: Tensor) -> None:
    torch._dynamo.reset()
    net = mlp(4, [6, 6], 3)
    compiled = torch.compile(net, backend=backend)
    if called_before:
        compiled(x)
    layers = ["hidden.1", "hidden.0.linear"]
    observer = Observer(compiled, layers)
    for scale in (1.0, 2.0, 3.0):
        expected, seen = observe(net, x * scale, layers), observer(x * scale)
        for one, other in zip((*expected.layers, expected.logits), (*seen.layers, seen.logits), strict=True):
            assert torch.equal(one, other)
        assert expected.embedding is not None
        assert seen.embedding is not None
        assert torch.equal(expected.embedding, seen.embedding)


@pytest.mark.full
def test_compiled_network_that_overwrites_in_place() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            out += x
            return self.fc(out)

    torch._dynamo.reset()
    net, x = Adds(), torch.randn(3, 4)
    observer = Observer(torch.compile(net, backend="aot_eager"), ["first"])
    for _ in range(2):
        assert torch.allclose(observer(x).layers[0], net.first(x))


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.first, self.block, self.fc = nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(checkpoint(self.block, self.first(x), use_reentrant=self.reentrant))


def test_activation_checkpointing_gives_gradients(x: Tensor) -> None:
    net = Checkpointed(reentrant=False)
    seen = observe(net, x, ["block.0"])
    seen.layers[0].square().sum().backward()
    with_checkpoint = net.first.weight.grad
    net.zero_grad()
    net.block[0](net.first(x)).square().sum().backward()
    assert with_checkpoint is not None
    assert torch.allclose(with_checkpoint, net.first.weight.grad)
    assert not observe(Checkpointed(reentrant=True), x, ["block.0"]).layers[0].requires_grad


def test_outputs_map_detach_and_only(x: Tensor) -> None:
    seen = observe(Net(), x, ["first", "fc"])
    assert seen.only(["fc"]).names == ("fc",)
    assert seen.only(["fc", "first"]).layers[1] is seen.layers[0]
    cut = seen.detach()
    assert cut.embedding is not None
    assert not any(each.requires_grad for each in (cut.logits, cut.embedding, *cut.layers))
    doubled = Outputs(torch.ones(1, 2)).map(lambda value: value * 2)
    assert doubled.logits.tolist() == [[2.0, 2.0]]
    assert doubled.embedding is None


def test_batches_of_every_form() -> None:
    x, y, index = torch.zeros(2, 3), torch.zeros(2).long(), torch.arange(2)
    assert Batch.of((x, y)).index is None
    assert Batch.of([x, y, index]).index is index
    named = Batch.of({"input_ids": x, "labels": y, "index": index})
    assert (list(named.inputs), named.target is y, named.index is index) == (["input_ids"], True, True)
    batch = Batch(x, y)
    assert Batch.of(batch) is batch
    with pytest.raises(InputError, match="a Tensor"):
        Batch.of(x)
    with pytest.raises(InputError, match="a tuple of 5"):
        Batch.of((x, y, index, None, index))


def test_classifier_is_the_last_linear_layer_or_what_timm_says() -> None:
    net = Net()
    assert classifier_of(net) is net.fc
    assert classifier_of(nn.Conv2d(1, 1, 1)) is None
    net.get_classifier = lambda: net.first  # type: ignore[assignment]
    assert classifier_of(net) is net.first
