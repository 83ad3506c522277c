"""Standardized features: moments, rotation and resume."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from kdlab.errors import InputError
from kdlab.losses import CosineSmoothL1, SoftTargets, Standardized
from kdlab.losses.context import Context
from kdlab.losses.feature.standardized import hadamard
from kdlab.outputs import Outputs


def features(rows: int, width: int, seed: int = 0) -> Tensor:
    """Correlated features far from mean 0, one a hundred times larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    mixing[:, 0] *= 100
    return 50 + torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mixing


def outputs(value: Tensor, tapped: bool = False) -> Outputs:
    logits = value.new_zeros(len(value), 2)
    return Outputs(logits, layers=(value,), names=("x",)) if tapped else Outputs(logits, embedding=value)


def computed(value: Tensor, method: str, batch: int = 7) -> Standardized:
    loss = Standardized(method=method)  # type: ignore[arg-type]
    loss.precompute((outputs(part), torch.zeros(len(part))) for part in value.split(batch))
    return loss


@pytest.mark.parametrize("method", ["std", "phi_s"])
def test_every_feature_has_mean_0_and_variance_1(method: str) -> None:
    value = features(400, 12)
    loss = computed(value, method).double()
    y = loss.standardized(outputs(value)).embedding
    assert y is not None
    assert torch.allclose(y.mean(0), torch.zeros(12).double(), atol=2e-5)
    assert torch.allclose(y.var(0, correction=0), torch.ones(12).double(), atol=1e-4)


def test_phi_s_keeps_ratios_of_distances() -> None:
    value = features(400, 12)
    y = computed(value, "phi_s").double().standardized(outputs(value)).embedding
    assert y is not None
    ratios = torch.pdist(y) / torch.pdist(value)
    assert float(ratios.max() / ratios.min()) == pytest.approx(1, abs=1e-4)
    scale = value.sub(value.mean(0)).square().mean().sqrt()  # the paper's phi
    assert float(ratios.mean()) == pytest.approx(1 / float(scale), rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 48, 64, 192, 384])
def test_hadamard_matrices_are_orthogonal_with_entries_of_one_size(size: int) -> None:
    matrix = hadamard(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size).double(), atol=1e-12)
    assert torch.allclose(matrix.abs(), torch.full((size, size), 1 / math.sqrt(size)).double(), atol=1e-12)


@pytest.mark.parametrize("size", [3, 10, 28, 36])
def test_other_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"none of {size} features"):
        hadamard(size)


def test_positions_of_tokens_and_maps_all_count() -> None:
    value = features(60, 4)
    tokens = value.view(10, 6, 4)
    maps = tokens.transpose(1, 2).unflatten(2, (2, 3))
    for shape in (tokens, maps):
        loss = Standardized(method="std")
        loss.setup(Context(torch.nn.Identity(), (), teacher_layers=("x",)))
        loss.precompute([(outputs(shape, True), torch.zeros(10))])
        y = loss.double().standardized(outputs(shape, True)).layers[0]
        rows = y if y.dim() == 3 else y.flatten(2).transpose(1, 2)
        expected = (value - value.mean(0)) / value.std(0, correction=0)
        assert torch.allclose(rows.reshape(60, 4), expected, atol=1e-4)


def test_statistics_of_a_checkpoint_are_kept_and_others_are_new() -> None:
    first, second = features(40, 4), features(40, 4, seed=1)
    loss, resumed = computed(first, "std"), Standardized(method="std")
    resumed.load_state_dict(copy.deepcopy(loss.state_dict()))
    batches = [(outputs(second), torch.zeros(40))]
    resumed.precompute(batches)
    assert torch.equal(resumed.statistics.mean, loss.statistics.mean)
    resumed.setup(Context(torch.nn.Identity(), ()))  # another fit, without a checkpoint
    resumed.precompute(batches)
    assert torch.allclose(resumed.statistics.mean.double(), second.mean(0), rtol=1e-5)


def test_the_loss_sees_the_standardized_teacher() -> None:
    value, student = features(40, 4), features(40, 4, seed=3) / 50
    loss = Standardized(CosineSmoothL1(projection=None), "std")
    loss.precompute([(outputs(value), torch.zeros(40))])
    expected = CosineSmoothL1(projection=None)(
        outputs(student), outputs((value - value.mean(0)) / value.std(0, correction=0)), torch.zeros(40)
    )
    assert loss(outputs(student), outputs(value), torch.zeros(40)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_features_that_never_vary_stay_zero() -> None:
    value = features(40, 4)
    value[:, 2] = 3.0
    y = computed(value, "std").standardized(outputs(value.float())).embedding
    assert y is not None
    assert not y[:, 2].any()


def test_losses_of_logits_are_refused() -> None:
    with pytest.raises(InputError, match="reads no features"):
        Standardized(SoftTargets(4.0))
