"""Ensembles of teachers, against the released code's values, scipy's optimizer and plain loops."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.errors import InputError
from kdlab.losses import DKD, Hint, SimilarityPreserving, SoftTargets
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import AEKD, CAMKD, EBKD, Ensemble, FrozenTeacher, MeanOfLogits, MeanOfLosses
from tests.modules.tiny import digits, network, sgd, trainer
from tests.oracle_inputs import make
from tests.oracle_methods.teachers import Fixed
from tests.teaching.step import Given, compared, seen_by

ORACLES = Path(os.environ.get("KDLAB_ORACLES") or Path(__file__).parents[2] / "../shared/oracles/public.json")


def draw(count: int = 3, batch: int = 5, classes: int = 4) -> tuple[list[Outputs], Outputs, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = [2.0 * torch.randn(batch, classes, generator=generator, dtype=torch.float64) for _ in range(count + 1)]
    return [Outputs(each) for each in logits[1:]], Outputs(logits[0]), torch.arange(batch) % classes


def loss_of(ensemble: Ensemble, loss: nn.Module, teachers: Any, student: Tensor, target: Tensor, **options: Any) -> Any:
    """The loss that a training step takes, given all logits."""
    networks: list[nn.Module] = [Fixed(logits.detach()) for logits in teachers]
    module = Distiller(Given(student), networks, {"soft": Knowledge(loss)}, ensemble=ensemble, **options)
    (value,) = compared(module, *seen_by(module, Batch(torch.zeros(len(target), 1), target))).values()
    return value, module.student.logits[0]


@pytest.mark.skipif(not ORACLES.exists(), reason="needs the oracle file beside KDLAB_DATA")
@pytest.mark.parametrize(
    ("ensemble", "symbol"), [(MeanOfLosses(), "AVERAGE_LOSS"), (CAMKD(), "CAMKD"), (EBKD(), "EBKD")]
)
def test_value_of_the_released_code(ensemble: Ensemble, symbol: str) -> None:
    cases = [each for each in json.loads(ORACLES.read_text())["cases"] if each["method"] == "multi-teacher-logits"]
    assert cases
    for case in cases:
        (result,) = [each for each in case["results"] if symbol in f"{each['symbol']} {each['repository']}".split()]
        arrays = {name: torch.as_tensor(array) for name, array in make(case).items()}
        teachers = [value for name, value in arrays.items() if name.startswith("teacher_logits")]
        loss, student = loss_of(ensemble, SoftTargets(4.0), teachers, arrays["student_logits"], arrays["labels"])
        loss.backward()
        assert loss.item() == pytest.approx(float(result["loss"]), rel=1e-8)
        assert student.grad.norm().item() == pytest.approx(result["grads"]["student_logits"]["l2"], rel=1e-8)


def test_weights_by_loops() -> None:
    seen, student, target = draw()
    entropies = EBKD().weights(seen, [], student, target)
    confidences = CAMKD(released=False).weights(seen, [], student, target)
    for b in range(5):
        p = [[math.exp(z) for z in each.logits[b].tolist()] for each in seen]
        p = [[x / sum(row) for x in row] for row in p]
        entropy = [-sum(x * math.log(x) for x in row) for row in p]
        right = [1 / row[int(target[b])] for row in p]  # exp(CE)
        for m in range(3):
            assert entropies[m, b].item() == pytest.approx((1 - entropy[m] / sum(entropy)) / 3, rel=1e-12)
            assert confidences[m, b].item() == pytest.approx((1 - right[m] / sum(right)) / 2, rel=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("nu", [None, 0.5, 0.8, 1.0])
def test_aekd_finds_the_shortest_mixture(nu: float | None, normalize: bool) -> None:
    seen, student, target = draw()
    found = AEKD(nu, temperature=2.0, normalize=normalize).weights(seen, [], student, target)[:, 0]
    gradients = []
    for each in seen:
        logits = student.logits.clone().requires_grad_()
        SoftTargets(2.0)(Outputs(logits), each, target).backward()
        gradient = logits.grad.flatten().numpy()  # type: ignore[union-attr]
        gradients.append(gradient / (gradient**2).sum() ** 0.5 if normalize else gradient)

    def length(shares: Any) -> float:
        return float(sum(((sum(a * g for a, g in zip(shares, gradients, strict=True))) * 100) ** 2))

    limit = 1 / ((nu or 1 / 3) * 3)
    sums = {"type": "eq", "fun": lambda shares: sum(shares) - 1}
    best = minimize(length, [1 / 3] * 3, bounds=[(0, limit)] * 3, constraints=sums, options={"ftol": 1e-14})
    assert found.sum().item() == pytest.approx(1, rel=1e-9)
    assert found.tolist() == pytest.approx(best.x.tolist(), abs=1e-4)


def test_confident_and_agreeing_teachers_give_no_nan() -> None:
    sure = Outputs(torch.tensor([[500.0, 0.0]]))
    assert EBKD().weights([sure, sure], [], sure, torch.tensor([0]))[:, 0].tolist() == [0.25, 0.25]
    assert CAMKD().weights([sure, sure], [], sure, torch.tensor([1]))[:, 0].tolist() == [0.25, 0.25]
    assert AEKD().weights([sure, sure], [], sure, torch.tensor([0]))[:, 0].tolist() == [0.5, 0.5]


def test_mean_of_logits_with_weights() -> None:
    seen, _, _ = draw(2)
    teachers: list[nn.Module] = [Fixed(outputs.logits.float()) for outputs in seen]
    module = Distiller(network(), teachers, teacher_weights=[1.0, 3.0], ensemble=MeanOfLogits())
    outputs = module.observe(Batch(torch.zeros(5, 1), torch.zeros(5)), module.plan.frozen)["teacher"]
    assert torch.allclose(outputs.logits, 0.25 * seen[0].logits.float() + 0.75 * seen[1].logits.float())


def test_mean_of_losses_with_weights() -> None:
    seen, student, target = draw(2)
    logits = [outputs.logits for outputs in seen]
    value, _ = loss_of(MeanOfLosses(), SoftTargets(4.0), logits, student.logits, target, teacher_weights=[1.0, 3.0])
    first, second = (SoftTargets(4.0)(student, outputs, target) for outputs in seen)
    assert torch.allclose(value, 0.25 * first + 0.75 * second)
    assert not torch.allclose(first, second)


class Coupled(nn.Module):
    needs = ("logits",)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        return (student.logits - teacher.logits).norm()


def test_weights_per_sample_need_a_loss_per_sample() -> None:
    seen, student, target = draw(2)
    logits = [outputs.logits for outputs in seen]
    with pytest.raises(InputError, match="Coupled gives one number a batch"):
        loss_of(EBKD(), Coupled(), logits, student.logits, target)
    value, _ = loss_of(EBKD(), DKD(), logits, student.logits, target)
    assert value.isfinite()


@pytest.mark.parametrize("ensemble", [None, EBKD(), CAMKD(), AEKD(), MeanOfLosses(), MeanOfLogits()])
def test_ensemble_trains_with_layers_of_single_teachers(ensemble: Ensemble | None) -> None:
    knowledge = {
        "soft": Knowledge(SoftTargets(4.0), 0.9),
        "hint": Knowledge(Hint(), student_layers=["hidden.0"] * 2, teacher_layers=["0.hidden.0", "1.hidden.1"]),
        "sp": Knowledge(SimilarityPreserving(), student_layers=["hidden.0"], teacher_layers=["1.hidden.0"]),
    }
    module = Distiller(network(), [network(1), network(2, (16, 8))], knowledge, ensemble=ensemble, optimizer=sgd)
    before = copy.deepcopy(module.student)
    pl.seed_everything(1)
    trainer(limit_train_batches=2, limit_val_batches=1, num_sanity_val_steps=0).fit(module, digits())
    assert len(module.losses["hint"].state_dict()) > 2
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), module.student.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrozenTeacher([network()] * 2, [1, 2], ensemble=EBKD()), "EBKD finds the teachers' weights itself"),
        (lambda: AEKD(nu=0), "nu is a share"),
        (lambda: AEKD(nu=1.5), "nu is a share"),
        (lambda: AEKD(nu=-0.5), "nu is a share"),
        (lambda: AEKD(temperature=0), "temperature"),
        (lambda: AEKD(temperature=-1.0), "temperature"),
        (lambda: AEKD(temperature=math.inf), "temperature"),
        (lambda: CAMKD().weights(draw()[0], [], draw()[1], torch.zeros(5, 1).long()), "class indices"),
        (lambda: AEKD(nu=0.2).weights(*draw()[:1], [], *draw()[1:]), "at least 1 / 3"),
        (lambda: CAMKD().weights(draw()[0], [], draw()[1], torch.rand(5)), "class indices"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_and_means_are_in_float32_at_least(dtype: torch.dtype) -> None:
    """Also of logits of tokens, (B, L, K), whose axis of classes is the last."""
    logits = [torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(3)]
    precise, shares = torch.promote_types(dtype, torch.float32), [0.5, 0.2, 0.3]
    together = Ensemble().together(logits, shares)
    expected = sum(share * z.to(precise).softmax(2) for share, z in zip(shares, logits, strict=True))
    torch.testing.assert_close(together, torch.log(torch.as_tensor(expected)))
    mean = MeanOfLogits().together(logits, shares)
    torch.testing.assert_close(mean, sum(share * z.to(precise) for share, z in zip(shares, logits, strict=True)))
    seen, student = [Outputs(z[:, 0]) for z in logits], Outputs(logits[0][:, 1])
    for ensemble in (EBKD(), CAMKD(), AEKD(0.5, 0.5), MeanOfLosses()):
        weights = ensemble.weights(seen, shares, student, torch.arange(5) % 4)
        assert weights is not None
        assert (weights.dtype, weights.shape) == (precise, (3, 5))
    assert Ensemble().weights(seen, shares, student, torch.arange(5)) is None
    equal = AEKD(1.0).weights(seen, shares, student, torch.arange(5))
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / 3))


def test_aekd_takes_the_deprecated_spelling() -> None:
    with pytest.warns(DeprecationWarning, match="normalise"):
        assert AEKD(normalise=True).normalize
