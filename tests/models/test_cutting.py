"""Networks that can and cannot be cut at a layer."""

import pytest
import torch
from torch import nn

from kdlab.errors import InputError
from kdlab.models import Branched, mlp, resnet8, resnet14
from kdlab.models.cutting import around
from kdlab.outputs import heads_of
from tests.models.test_branched import BRANCHES


def test_what_is_registered_around_a_layer():
    assert around(resnet8(5), "layer3") == (("conv1", "bn1", "relu", "layer1", "layer2"), ("fc",), ("",))
    inner = around(mlp(8, [4, 4, 4], 3), "hidden.1")
    assert inner == (("input_dropout", "hidden.0"), ("dropout", "fc", "hidden.2"), ("", "hidden"))


def test_lists_of_layers_are_taken_apart():
    assert around(mlp(8, [4, 4], 3), "fc").before == ("input_dropout", "hidden.0", "hidden.1", "dropout")


def test_a_nested_fork_shares_its_siblings_and_not_its_parent():
    layer = heads_of(Branched(mlp(8, [4, 4], 3), "hidden.1"))["branch1"].layer
    assert [layer(name) for name in ("hidden.0", "hidden.0.relu", "hidden.1", "fc")] == [
        "network.hidden.0",
        "network.hidden.0.relu",
        "branch1.hidden.1",
        "branch1.fc",
    ]


class Odd(nn.Module):
    """Layers whose order of registration, or whose use, does not let the network be cut."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.stem, self.act, self.top = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)
        self.late, self.kind, self.fc = nn.Linear(4, 4), kind, nn.Linear(4, 2)
        if kind == "shared":
            self.stem = nn.Sequential(nn.Linear(4, 4), self.act, nn.Linear(4, 4), self.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "moody" and not isinstance(self.stem, nn.Linear):  # as in a branch
            return self.fc(x)
        if self.kind == "unordered":
            x = self.late(x)
        x = self.act(torch.nn.functional.linear(x, self.stem.weight) if self.kind == "uncalled" else self.stem(x))
        side = x.mul_(0.5) if self.kind == "in place" else x
        if self.kind == "idle":
            return self.fc(x)
        x = self.top(x=x) if self.kind == "named" else self.top(x)
        if self.kind == "twice":
            x = self.stem(x)
        if self.kind == "late":
            side.mul_(0.5)
        return self.fc(self.act(x) + (side if self.kind in ("side", "in place", "late") else 0))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("unordered", "Odd cannot be cut at 'top' because 'late' runs before it, but is registered after it"),
        ("uncalled", "because 'stem' is registered before it, but is not called before it"),
        ("idle", "because it did not run"),
        ("moody", "because a branch did not reach it"),
        ("named", "because it gets no tensor as its first argument"),
        ("twice", "Layer 'stem' runs both before and after the fork"),
    ],
)
def test_networks_that_cannot_be_cut_are_refused(kind, words):
    network = Branched(Odd(kind), "top")
    with pytest.raises(InputError, match=words):
        network(torch.rand(3, 4))
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not getattr(module, "kept", [])


@pytest.mark.parametrize("kind", ["plain", "side", "shared", "in place", "late"])
def test_reused_activations_and_shortcuts_over_the_fork(kind):
    network = Branched(Odd(kind), "top")
    x = torch.rand(3, 4)
    logits = network(x)
    for head in ["", *BRANCHES]:
        assert torch.equal(logits[head or "logits"], network.alone(head)(x))


class Overwriting(nn.Module):
    """A network whose layers write into what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Linear(4, 4), nn.SiLU(inplace=True)
        self.top = nn.Sequential(nn.SiLU(inplace=True), nn.Linear(4, 4))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.top(self.act(self.stem(x)).add_(1)))


def test_what_one_head_overwrites_is_not_what_the_next_reads():
    network = Branched(Overwriting(), "top", redraw=False)
    logits = network(torch.rand(3, 4))
    assert all(torch.equal(each, logits["logits"]) for each in logits.values())
    sum(each.sum() for each in logits.values()).backward()


def test_the_main_head_survives_a_fork_that_writes_in_place():
    class Shortcut(Overwriting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            return self.fc(self.top(x) + x)

    plain, x = Shortcut(), torch.rand(3, 4)
    assert torch.equal(Branched(plain, "top")(x)["logits"], plain(x))


@pytest.mark.parametrize("fork", ["layer3.1", "layer3.1.conv1", "layer3.1.conv2", "layer3.0.relu2", "conv1"])
def test_a_fork_inside_a_block_takes_the_shortcut_along(fork):
    network = Branched(resnet14(5), fork)
    images = torch.rand(3, 3, 16, 16)
    references = {head: network.alone(head) for head in ["", *BRANCHES]}
    for head, logits in network(images).items():
        assert torch.equal(logits, references[head if head != "logits" else ""](images))


def test_a_shortcut_whose_layers_run_first_raises():
    with pytest.raises(InputError, match=r"because 'layer3.0.downsample' runs before it, but is registered after it"):
        Branched(resnet8(5), "layer3.0.conv1")(torch.rand(3, 3, 16, 16))
