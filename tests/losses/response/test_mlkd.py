"""MLKD against plain loops, as released and as meant."""

import statistics
from dataclasses import replace

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import MLKD
from kdlab.outputs import Outputs
from tests.losses.slow import dot, draw, kl, softmax

NO_TARGET = torch.zeros(1)
TEMPERATURES = (4.0, 3.0, 5.0, 2.0, 6.0)


def two_views(seed, rows=5):
    return replace(
        Outputs(draw(rows, 4, seed=seed, scale=2)), views={"strong": Outputs(draw(rows, 4, seed=seed + 10, scale=2))}
    )


def columns(rows):
    return [list(column) for column in zip(*rows, strict=True)]


def gram_rows(q, p):
    """Squared differences of Gram matrices, one number a row."""
    return [sum((dot(p[i], p[j]) - dot(q[i], q[j])) ** 2 for j in range(len(p))) for i in range(len(p))]


def slow(student, teacher, as_released):
    weak = student.logits.tolist(), teacher.logits.tolist()
    strong = student.views["strong"].logits.tolist(), teacher.views["strong"].logits.tolist()
    plain = [softmax(t) for t in weak[1]]
    surest, mass = [max(p) for p in plain], [sum(column) for column in columns(plain)]
    kept, kept_classes = ([float(v <= statistics.median(x)) for v in x] for x in (surest, mass))
    assert 0 < sum(kept) < len(kept)
    if as_released:
        kept, kept_classes = ([sum(x) / len(x)] * len(x) for x in (kept, kept_classes))
    total = 0.0
    for temperature in TEMPERATURES:
        soft = {
            name: [[softmax(row, temperature) for row in rows] for rows in view]
            for name, view in (("weak", weak), ("strong", strong))
        }
        q, p = soft["weak"]
        total += temperature**2 * sum(m * kl(b, a) for m, a, b in zip(kept, q, p, strict=True)) / len(p)
        q, p = soft["weak" if as_released and temperature in (2.0, 6.0) else "strong"]
        total += temperature**2 * sum(kl(b, a) for a, b in zip(q, p, strict=True)) / len(p)
        for q, p in [soft["weak"], *([] if as_released else [soft["strong"]])]:
            total += sum(m * g for m, g in zip(kept, gram_rows(q, p), strict=True)) / len(p)
            q, p = columns(q), columns(p)
            total += sum(m * g for m, g in zip(kept_classes, gram_rows(q, p), strict=True)) / len(p)
    return total


@pytest.mark.parametrize("rows", [4, 5])
@pytest.mark.parametrize("as_released", [True, False])
def test_value(as_released, rows):
    student, teacher = two_views(1, rows), two_views(2, rows)
    loss = MLKD(as_released=as_released)(student, teacher, NO_TARGET)
    assert loss.item() == pytest.approx(slow(student, teacher, as_released), rel=1e-10)


def test_views_of_other_sizes_raise_input_error():
    student, teacher = two_views(1), two_views(2)
    twice = [replace(x, views={"strong": Outputs(x.logits.repeat(2, 1))}) for x in (student, teacher)]
    with pytest.raises(InputError, match="one input for each sample"):
        MLKD()(*twice, NO_TARGET)
    with pytest.raises(InputError, match="'weak'"):
        MLKD(view="weak")(student, teacher, NO_TARGET)


@pytest.mark.parametrize("temperatures", [(), (4.0, 0.0), (4.0, float("nan")), ("4",)])
def test_bad_temperatures(temperatures):
    with pytest.raises(InputError, match="temperatures"):
        MLKD(temperatures)
