"""The oracle command on a small file of its own, and on the real one where it is at hand."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdlab.losses import SoftTargets
from tests.oracle_inputs import make
from tests.oracle_methods import METHODS
from tests.oracles import main

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("KDLAB_ORACLES") or ROOT / "../shared/oracles/public.json")
NORMAL = {"kind": "normal", "scale": 2.0}


def case(method, inputs, loss, grads, hyper=None, family="response", **more):
    """A case of the format, with the reference values given as functions of the inputs drawn."""
    one = {"id": f"own-{method}", "method": method, "family": family, "paper": "", "seed": 5, "dtype": "float64"}
    one = {**one, "inputs": inputs, **more}
    arrays = make(one)
    one["input_check"] = {
        name: {"sum": float(a.astype(float).sum()), "first": float(a.flat[0])} for name, a in arrays.items()
    }
    values = {name: grad if grad is None else grad(**arrays) for name, grad in grads.items()}
    grads = {
        name: value if value is None else {"l2": float(np.linalg.norm(value)), "first3": value.ravel()[:3].tolist()}
        for name, value in values.items()
    }
    result = {"reference": True, "hyper_parameters": hyper or {}, "factors": "", "rtol": 1e-8, "grads": grads}
    one["results"] = [{**result, "loss": loss(**arrays) if callable(loss) else loss}]
    return one


def softened(logits, temperature=2.0):
    powers = np.exp(logits / temperature)
    return powers / powers.sum(1, keepdims=True)


def kd(student_logits, teacher_logits):
    p, q = softened(teacher_logits), softened(student_logits)
    return float(4 * (p * np.log(p / q)).sum() / len(p))


def kd_gradient(student_logits, teacher_logits):
    return 2 * (softened(student_logits) - softened(teacher_logits)) / len(student_logits)


def residue(student_feature, teacher_feature, transform_weight):
    return np.einsum("oi,bihw->bohw", transform_weight[:, :, 0, 0], student_feature) - teacher_feature


@pytest.fixture
def cases():
    logits = [{"name": f"{role}_logits", "role": role, "shape": [3, 4], **NORMAL} for role in ("student", "teacher")]
    maps = [
        {"name": f"{role}_feature", "role": role, "shape": [2, 3, 2, 2], **NORMAL} for role in ("student", "teacher")
    ]
    weight = {"name": "transform_weight", "role": "trainable", "shape": [3, 3, 1, 1], **NORMAL}
    rows = [{"name": f"{role}_embedding", "role": role, "shape": [1, 6], **NORMAL} for role in ("student", "teacher")]
    return [
        case("KD", logits, kd, {"student_logits": kd_gradient}, {"T": 2.0}),
        case(
            "FitNet-1x1",
            [*maps, weight],
            lambda **a: float((residue(**a) ** 2).mean()),
            {
                "student_feature": lambda **a: (
                    np.einsum("oi,bohw->bihw", a["transform_weight"][..., 0, 0], residue(**a)) / 12
                ),
                "transform_weight": lambda **a: (
                    np.einsum("bohw,bihw->oi", residue(**a), a["student_feature"])[..., None, None] / 12
                ),
            },
            family="feature",
        ),
        case("RKD-distance", rows, "nan", {"student_embedding": None}, family="relation", note="HAZARD: one sample"),
        case("NoSuchMethod", logits, 1.0, {"student_logits": None}, family="self"),
    ]


@pytest.fixture
def check(tmp_path, capsys):
    def run(cases, *options):
        path = tmp_path / "cases.json"
        path.write_text(cases if isinstance(cases, str) else json.dumps({"format": "kd-oracles/1", "cases": cases}))
        status = main([str(path), *options])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return run


def test_right_numbers_pass_and_other_methods_do_not_fail(check, cases):
    status, lines, _ = check(cases)
    assert lines == [
        "KD  1 passed",
        "FitNet-1x1  1 passed",
        "RKD-distance  1 passed",
        "NoSuchMethod  1 not implemented",
        "3 passed, 0 failed, 1 not implemented",
    ]
    assert status == 0


def one_part_in(number, where):
    def spoil(case):
        holder, result = where, case["results"][0]
        for key in holder[:-1]:
            result = result[key]
        result[holder[-1]] *= 1 + 1 / number

    return spoil


@pytest.mark.parametrize(
    ("which", "spoil", "says"),
    [
        (0, one_part_in(1e7, ["loss"]), "own-KD  loss: got"),
        (0, one_part_in(1e7, ["grads", "student_logits", "l2"]), "gradient of student_logits l2"),
        (0, one_part_in(1e7, ["grads", "student_logits", "first3", 2]), "gradient of student_logits first3[2]"),
        (1, one_part_in(1e7, ["grads", "transform_weight", "l2"]), "gradient of transform_weight l2"),
        (0, lambda c: c["results"][0]["grads"].update(student_logits=None), "expected none"),
        (0, lambda c: c["input_check"]["student_logits"].update(sum=0.0), "input student_logits sum"),
        (0, lambda c: c["results"][0].update(hyper_parameters={}), "KeyError: 'T'"),
        (0, lambda c: c["results"][0].update(loss="nan"), "no finite loss"),
        (0, lambda c: c["inputs"][0].update(kind="cauchy"), "unknown kind"),
        (2, lambda c: c["results"][0].update(loss_float64_same_inputs=0.5), "expected 0.5"),
    ],
)
def test_a_wrong_number_fails(check, cases, which, spoil, says):
    spoil(cases[which])
    status, lines, _ = check(cases)
    assert status == 1
    assert lines[-1] == "2 passed, 1 failed, 1 not implemented"
    assert sum(says in line for line in lines) == 1


def test_a_gradient_to_the_teacher_fails(check, cases, monkeypatch):
    class Leaky(SoftTargets):
        def forward(self, student, teacher, target):
            return super().forward(student, teacher, target) + 0 * teacher.logits.sum()

    monkeypatch.setitem(METHODS, "KD", replace(METHODS["KD"], build=lambda h: Leaky(h["T"])))
    status, lines, _ = check(cases[:1])
    assert status == 1
    assert any("gradient of teacher_logits: got one of norm" in line for line in lines)


def test_nonfinite_value_fails_even_for_a_hazard_case(check, cases, monkeypatch):
    hazard = copy.deepcopy(cases[0])
    hazard["note"], hazard["results"][0]["loss"] = "HAZARD", "nan"
    assert check([hazard])[0] == 0
    monkeypatch.setattr("tests.oracles._value", lambda loss, method, leaves: torch.tensor(float("nan")))
    status, lines, _ = check([hazard])
    assert status == 1
    assert any("expected a finite scalar" in line for line in lines)


def test_float32_cases_have_their_own_tolerance(check, cases):
    inputs = cases[0]["inputs"]
    one = case("KD", inputs, kd, {"student_logits": kd_gradient}, {"T": 2.0}, dtype="float32")
    one["results"][0]["rtol"] = 2e-5
    assert check([one])[0] == 0
    one["results"][0]["loss"] *= 1 + 1e-5
    assert check([one])[0] == 0
    one["results"][0]["loss"] *= 1 + 1e-4
    assert check([one])[0] == 1


def test_families_and_methods_select(check, cases):
    assert check(cases, "--families", "feature,self")[1][-1] == "1 passed, 0 failed, 1 not implemented"
    assert check(cases, "--methods", "KD, NoSuchMethod")[1][-1] == "1 passed, 0 failed, 1 not implemented"
    assert check(cases, "--methods", "KD", "--families", "feature")[1][-1] == "0 passed, 0 failed, 0 not implemented"


@pytest.mark.parametrize("options", [["--methods", "DK"], ["--families", "features"], ["--methods", ""]])
def test_unknown_names_give_one_error_line(check, cases, options):
    status, lines, errors = check(cases, *options)
    assert (status, lines, len(errors)) == (2, [], 1)
    assert "nearest" in errors[0]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"cases": [{}]}', '{"cases": 3}'])
def test_unreadable_files_give_one_error_line(check, content):
    status, lines, errors = check(content)
    assert (status, lines, len(errors)) == (2, [], 1)


def test_missing_files_give_one_error_line(tmp_path, capsys):
    assert main([str(tmp_path / "none.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(not REAL.is_file(), reason=f"no oracle file at {REAL}; set KDLAB_ORACLES")
@pytest.mark.parametrize("method", METHODS)
def test_the_real_file(method, capsys):
    status = main([str(REAL), "--methods", method])
    last = capsys.readouterr().out.splitlines()[-1]
    assert (status, last.split(", ")[1:]) == (0, ["0 failed", "0 not implemented"])
    assert int(last.split()[0]) > 0
