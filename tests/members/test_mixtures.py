"""Mixtures of other members' outputs, against loops over samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kdlab import InputError
from kdlab.members.ensembles import Ensemble
from kdlab.members.member import Member
from kdlab.members.mixtures import Attention, EnsembleClassifier, Ensembled, Gate, Joined, MeanOfOthers, embeddings_of
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Progress
from tests.losses.slow import draw

BATCH = Batch(torch.empty(4, 1), torch.tensor([0, 1, 2, 0]), torch.arange(4), progress=Progress(0, 0))


def peers(*widths: int) -> dict[str, Outputs]:
    """Outputs of peers "0", "1", ... with logits (4, 3) and embeddings of these widths."""
    return {
        str(seed): Outputs(draw(4, 3, seed=seed).requires_grad_(), embedding=draw(4, width, seed=10 + seed))
        for seed, width in enumerate(widths)
    }


def test_mean_of_others_waits_for_all() -> None:
    seen, member = peers(2, 2), MeanOfOthers("mean", ["0", "1"])
    assert member(BATCH, {"0": seen["0"]}) == {}
    expected = (seen["0"].logits.softmax(1) + seen["1"].logits.softmax(1)) / 2
    torch.testing.assert_close(member(BATCH, seen)["mean"].logits.softmax(1), expected)


def test_joined_outputs_keep_the_order_of_their_labels() -> None:
    """A view of the batch's own samples, two of each, side by side."""
    batch = Batch(torch.empty(2, 1), torch.tensor([3, 5]), progress=Progress(0, 0))
    first = Outputs(draw(2, 3), (draw(2, 6),), draw(2, 4), names=("layer",))
    view = Outputs(draw(4, 3, seed=1), (draw(4, 6, seed=1),), draw(4, 4, seed=1), names=("layer",))
    joined = Joined("net@all", "net", "mates")(batch, {"net": first, "net@mates": view})["net@all"]
    assert joined.targets(batch).tolist() == [3, 5, 3, 3, 5, 5]
    assert joined.names == ("layer",)
    for found, one, other in zip(joined.tensors(), first.tensors(), view.tensors(), strict=True):
        assert torch.equal(found, torch.cat([one, other]))


def test_joined_labels_and_index_of_other_samples() -> None:
    view = Outputs(draw(4, 3, seed=1), index=torch.tensor([9, 8, 7, 6]), target=torch.tensor([2, 2, 1, 1]))
    seen = {"net": Outputs(draw(4, 3), index=BATCH.index), "net@mates": view}
    joined = Joined("net@all", "net", "mates")(BATCH, seen)["net@all"]
    assert joined.targets(BATCH).tolist() == [0, 1, 2, 0, 2, 2, 1, 1]
    assert joined.index is not None
    assert joined.index.tolist() == [0, 1, 2, 3, 9, 8, 7, 6]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 7), (4, 5, 2, 3)])
def test_gate_weighs_branches_by_the_pooled_trunk(shape: tuple[int, ...]) -> None:
    trunk, seen = draw(*shape, seed=7), peers(2, 2, 2)
    seen["0"] = Outputs(seen["0"].logits, (trunk,), names=("layer2",))
    gate = Gate("ensemble", ["0", "1", "2"], "0", "layer2").eval()
    logits = gate(BATCH, seen)["ensemble"].logits
    norm, linear = gate.norm, gate.linear
    for b in range(4):
        pooled = trunk[b].flatten(1).mean(1) if trunk.dim() > 2 else trunk[b]
        z = (linear(pooled) - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        shares = z.clamp(min=0).softmax(0)
        expected = sum(share * seen[str(m)].logits[b] for m, share in enumerate(shares))
        torch.testing.assert_close(logits[b], expected)


def test_attention_mixes_peers_and_keeps_gradient() -> None:
    seen = peers(16, 16)
    attention = Attention("group", ["0", "1"], 8)
    outputs = attention(BATCH, seen)
    assert tuple(outputs) == attention.names == ("group", "group@0", "group@1")
    torch.testing.assert_close(outputs["group"].logits, (seen["0"].logits + seen["1"].logits) / 2)
    assert attention.query.weight.shape == attention.key.weight.shape == (2, 16)
    for peer in "01":
        for b in range(4):
            query = attention.query.weight @ seen[peer].embedding[b]
            scores = [query @ (attention.key.weight @ other.embedding[b]) for other in seen.values()]
            shares = torch.stack(scores).softmax(0)
            expected = shares[0] * seen["0"].logits[b] + shares[1] * seen["1"].logits[b]
            torch.testing.assert_close(outputs[f"group@{peer}"].logits[b], expected)
    assert all(own.logits.requires_grad for own in outputs.values())


def test_classifier_reads_embeddings_side_by_side() -> None:
    seen = peers(4, 6)
    member = EnsembleClassifier("ensemble", ["0", "1"])
    logits = member(BATCH, seen)["ensemble"].logits
    features: Tensor = torch.cat([seen["0"].embedding, seen["1"].embedding], 1)
    torch.testing.assert_close(logits, F.linear(features, member.classifier.weight, member.classifier.bias))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: Attention("g", ["0", "1"], 8)(BATCH, peers(8, 16)), r"embeddings of one width, not of \[8, 16\]"),
        (
            lambda: EnsembleClassifier("e", ["0", "1"])(BATCH, {**peers(4, 4), "1": Outputs(draw(4, 3))}),
            "PCL joins embeddings, but '1' has no linear classifier",
        ),
    ],
)
def test_embeddings_that_do_not_fit_raise(run: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run()


@pytest.mark.parametrize("count", [2, 3])
def test_mean_of_others_is_of_probabilities(count: int) -> None:
    seen = peers(*[2] * (count + 1))
    names = [str(number) for number in range(count)]
    logits = MeanOfOthers("mean", names)(BATCH, seen)["mean"].logits
    torch.testing.assert_close(logits.exp(), sum(seen[name].logits.softmax(1) for name in names) / count)


@pytest.mark.parametrize(("width", "factor", "inner"), [(4, 8, 1), (8, 8, 1), (23, 8, 2), (6, 1, 6)])
def test_attentions_width_is_by_a_factor_smaller(width: int, factor: int, inner: int) -> None:
    attention = Attention("group", ["0", "1"], factor)
    attention(BATCH, peers(width, width))
    assert attention.query.weight.shape == attention.key.weight.shape == (inner, width)
    assert (attention.query.bias, attention.key.bias) == (None, None)


def test_joined_outputs_have_what_both_have() -> None:
    first, view = Outputs(draw(4, 3), embedding=draw(4, 2), index=BATCH.index), Outputs(draw(4, 3, seed=1))
    for pair in ((first, view), (view, first)):
        seen = dict(zip(("net", "net@mates"), pair, strict=True))
        joined = Joined("net@all", "net", "mates")(BATCH, seen)["net@all"]
        assert (joined.embedding, joined.index) == (None, None)


def test_maps_are_embeddings_too() -> None:
    seen = {"0": Outputs(draw(4, 3), embedding=draw(4, 5, 2))}
    assert embeddings_of(["0"], seen, "")[0].shape == (4, 10)


class BySimilarity(Ensemble):
    """Weights that depend on the student."""

    def weights(self, seen: Any, weights: Any, student: Outputs, target: Tensor) -> Tensor:
        return torch.stack(
            [weight * (student.logits * one.logits).sum(1) for weight, one in zip(weights, seen, strict=True)]
        )


def ensembled(ensemble: Ensemble, *tapped: str) -> tuple[Ensembled, dict[str, Outputs]]:
    """An ensemble of two members, each with the layers "x" and "y" and a view, and their outputs."""
    names = ("x", "y")
    seen = {"student": Outputs(draw(4, 3, seed=9).requires_grad_())}
    for n in range(2):
        view = Outputs(draw(8, 3, seed=20 + n), names=names, layers=(draw(8, 5, seed=30 + n), draw(8, 2)))
        layers = draw(4, 5, seed=40 + n), draw(4, 2, seed=50 + n)
        seen[f"t.{n}"] = Outputs(draw(4, 3, seed=10 + n), layers, names=names, views={"crops": view})
    member = Ensembled("teacher", [Member(f"t.{n}") for n in range(2)], "student", ensemble, [0.25, 0.75])
    member.set_taps(tapped)
    return member, seen


def test_several_teachers_are_one_with_the_layers_of_each() -> None:
    member, seen = ensembled(Ensemble(), "1.x", "0.y", "1.x")
    outputs = member(BATCH, seen)["teacher"]
    assert outputs.names == ("1.x", "0.y")
    assert outputs.layers[0] is seen["t.1"].layers[0]
    assert outputs.layers[1] is seen["t.0"].layers[1]
    for logits, one, other in (
        (outputs, seen["t.0"], seen["t.1"]),
        (outputs.views["crops"], seen["t.0"].views["crops"], seen["t.1"].views["crops"]),
    ):
        torch.testing.assert_close(logits.logits.exp(), one.logits.softmax(1) / 4 + other.logits.softmax(1) * 0.75)
    assert outputs.members == ()
    assert member(BATCH, {"t.0": seen["t.0"], "student": seen["student"]}) == {}  # a file, in evaluation


def test_weights_of_samples_come_without_gradient() -> None:
    member, seen = ensembled(BySimilarity())
    outputs = member(BATCH, seen)["teacher"]
    for (one, weights), name, share in zip(outputs.members, ("t.0", "t.1"), (0.25, 0.75), strict=True):
        assert one.logits is seen[name].logits
        assert not weights.requires_grad
        torch.testing.assert_close(weights, share * (seen["student"].logits * one.logits).sum(1).detach())
    assert member(BATCH._replace(progress=None), seen)["teacher"].members == ()


def test_teachers_of_other_classes_are_no_ensemble() -> None:
    member, seen = ensembled(Ensemble())
    with pytest.raises(InputError, match=r"same classes, but give logits of \[\(3,\), \(5,\)\]"):
        member(BATCH, seen | {"t.1": Outputs(draw(4, 5))})


@pytest.mark.parametrize("layer", ["x", "0", "0.", ".x", "2.x", "3.x", "-1.x", "a.x"])
def test_layers_without_the_number_of_a_teacher_are_refused(layer: str) -> None:
    with pytest.raises(InputError, match="layers are named with the number of the teacher"):
        ensembled(Ensemble(), layer)
