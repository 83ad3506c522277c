"""Outputs on a batch and on its views: whose samples, labels and layers they are."""

from __future__ import annotations

import torch

from kdlab.outputs import Batch, Outputs
from kdlab.outputs.containers import Mix
from kdlab.outputs.split_views import headed, inputs_with_views, with_views

X = torch.arange(4.0)[:, None]
MIX = Mix(torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
OTHER = Batch(X[:2] + 10, torch.tensor([7, 8]), torch.tensor([70, 80]), mix=MIX)
BATCH = Batch(X, torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5, 6, 7]), {"other": OTHER, "twice": X.repeat(2, 1) + 20})


def test_inputs_come_before_views_in_their_order() -> None:
    inputs = inputs_with_views(BATCH, ("", "twice"), ("other",))
    assert torch.equal(inputs, torch.cat([X, X.repeat(2, 1) + 20, X[:2] + 10]))


def split() -> Outputs:
    """The outputs of one forward on the batch and both views: logits, a layer and a further head."""
    logits = inputs_with_views(BATCH, ("",), ("other", "twice"))
    layers = {"layers": (logits + 0.5, logits + 0.25), "names": ("a", "b")}
    outputs = Outputs(logits, heads={"aux": Outputs(logits + 100, **layers)}, **layers)  # type: ignore[arg-type]
    return with_views(outputs, BATCH, ("other", "twice"))


def test_views_are_of_their_own_samples() -> None:
    main, aux = headed("net", split()).values()
    for outputs, shift in ((main, 0), (aux, 100)):
        other, twice = outputs.views["other"], outputs.views["twice"]
        assert torch.equal(outputs.logits, X + shift)
        assert torch.equal(other.logits, X[:2] + 10 + shift)
        assert torch.equal(twice.logits, X.repeat(2, 1) + 20 + shift)
        assert outputs.index is BATCH.index
        assert (other.index, other.target, other.mix) == (OTHER.index, OTHER.target, MIX)
        assert other.targets(BATCH).tolist() == [7, 8]
        assert twice.targets(BATCH).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_layers_are_selected_in_views_too() -> None:
    few = split().only(("b",))
    assert few.names == few.views["other"].names == ("b",)
    (layer,) = few.views["other"].layers
    assert torch.equal(layer, X[:2] + 10.25)


def test_a_change_reaches_the_weights_of_members() -> None:
    weight = torch.ones(4, requires_grad=True)
    detached = Outputs(X, members=((Outputs(X), weight),)).detach()
    assert not detached.members[0][1].requires_grad
