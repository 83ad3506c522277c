"""Probes of features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from kdlab.data import Digits
from kdlab.errors import InputError
from kdlab.models import mlp
from kdlab.probes import (
    CORRUPTIONS,
    Features,
    corrupted,
    features_of,
    fine_tuned_accuracy,
    knn_accuracy,
    linear_cka,
    linear_probe_accuracy,
    mapped_cosine,
    neighbor_agreement,
)
from tests.data.real import DATA, needs_data


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(seed: int, rows: int = 60) -> Features:
    """Three classes in three directions, of random lengths."""
    labels = torch.arange(rows) % 3
    directions = torch.eye(3)[labels] + 0.1 * draw(seed, rows, 3)
    return Features(directions * (1 + 9 * torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed))), labels)


def test_neighbors_vote_by_cosine() -> None:
    assert knn_accuracy(blobs(0), blobs(1), 5) == 1.0
    train = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]), torch.tensor([0, 1, 0]))
    test = Features(torch.tensor([[50.0, 1.0], [0.0, 0.1], [1.0, 1.3]]), torch.tensor([0, 1, 0]))
    assert knn_accuracy(train, test, 1) == pytest.approx(2 / 3)


def test_a_linear_probe_separates_what_is_separable() -> None:
    assert linear_probe_accuracy(blobs(0), blobs(1)) == 1.0
    shuffled = Features(
        blobs(0).embedding, blobs(0).labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    )
    assert linear_probe_accuracy(shuffled, blobs(1)) < 0.6


@pytest.mark.parametrize("probe", [knn_accuracy, linear_probe_accuracy])
def test_probes_need_labels(probe: object) -> None:
    unlabeled = Features(draw(0, 4, 2), torch.full((4,), -100))
    with pytest.raises(InputError, match="need labels"):
        probe(unlabeled, unlabeled)  # type: ignore[operator]


def test_cka_by_its_formula_and_its_invariances() -> None:
    x, y = draw(0, 30, 4).double(), draw(1, 30, 6).double()
    center = torch.eye(30).double() - 1 / 30
    k, m = center @ (x @ x.T) @ center, center @ (y @ y.T) @ center
    expected = (k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-10)
    turned = 3 * x @ torch.linalg.qr(draw(2, 4, 4).double())[0] + 5
    assert linear_cka(x, turned) == pytest.approx(1, abs=1e-10)


def test_neighbor_agreement_counts_shared_neighbors() -> None:
    x = draw(0, 20, 5)
    assert neighbor_agreement(x, 7 * x, 4) == 1.0
    angle = torch.tensor([0.0, 1.0, 3.0, 7.0, 60.0, 61.0, 63.0, 67.0]).deg2rad()
    moved = torch.tensor([0.0, 3.0, 1.0, 7.0, 60.0, 61.0, 63.0, 67.0]).deg2rad()  # two of them exchanged
    one, other = (torch.stack([a.cos(), a.sin()], 1) for a in (angle, moved))
    # Nearest: 1, 0, 1, 2, 5, 4, 5, 6 and 2, 2, 0, 1, 5, 4, 5, 6.
    assert neighbor_agreement(one, other, 1) == pytest.approx(4 / 8)


def test_the_cosine_is_that_of_the_best_linear_map() -> None:
    x, y = draw(0, 400, 5), draw(1, 400, 3)
    assert mapped_cosine(x, x @ draw(2, 5, 3) + 4) == pytest.approx(1, abs=1e-6)
    assert abs(mapped_cosine(x, y)) < 0.2


def test_features_are_those_of_eval_mode() -> None:
    data = Digits(batch_size=32, train_size=64)
    data.setup()
    network = mlp(64, [16], 10, dropout=0.5).train()
    batches = [data.prepare(raw) for raw in data._eval_loader("train")]
    features = features_of(network, batches)
    assert network.training
    before: list[torch.Tensor] = []
    last = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    network.eval()
    with torch.no_grad():
        for batch in batches:
            network(batch.inputs)
    assert torch.equal(features.embedding, torch.cat(before))
    assert features.embedding.shape == (64, 16)


@pytest.mark.full
def test_few_labels_fine_tune_a_copy() -> None:
    data = Digits(batch_size=32)
    data.setup()
    torch.manual_seed(0)
    network = mlp(64, [32], 10)
    before = [value.clone() for value in network.parameters()]
    few, all_labels = (fine_tuned_accuracy(network, data, share, epochs=5, lr=0.01) for share in (0.01, 1.0))
    assert 0.3 < few < all_labels
    assert all_labels > 0.9
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))
    assert few == fine_tuned_accuracy(network, data, 0.01, epochs=5, lr=0.01)
    with pytest.raises(InputError, match="share of labels"):
        fine_tuned_accuracy(network, data, 0.0)


@needs_data
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_with_the_severity(name: str) -> None:
    from kdlab.data.image_tree import Tree

    tree = Tree(Path(DATA) / "cifar10_jpeg" / "test.zip")
    images = torch.stack([tree.image(number * 37) for number in range(8)])
    apart = [(corrupted(images, name, level).float() - images.float()).square().mean().item() for level in range(1, 6)]
    assert apart == sorted(apart)
    assert apart[0] > 0
    assert torch.equal(corrupted(images, name, 3), corrupted(images, name, 3))
    assert corrupted(images, name, 5).dtype == torch.uint8


def test_unknown_corruptions_are_refused() -> None:
    with pytest.raises(InputError, match="corruption"):
        corrupted(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "fog")
    with pytest.raises(InputError, match="severity"):
        corrupted(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "blur", 6)


def test_networks_without_embedding_are_refused() -> None:
    data = Digits(batch_size=32, train_size=64)
    data.setup()
    with pytest.raises(InputError, match="no embedding"):
        features_of(nn.Conv2d(1, 3, 3), [data.prepare(raw) for raw in data._eval_loader("train")])
