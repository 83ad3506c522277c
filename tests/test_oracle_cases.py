"""The oracle adapters on cases of other layers, sizes and factors than the public file's, against plain formulas.

The references compute in float64 with torch's functions alone, so that their gradients are exact; nothing of kdlab's
losses is in them.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracle_inputs import make
from tests.oracle_methods import METHODS
from tests.oracles import evaluate


def entry(name, role, *shape, kind="normal", **more):
    return {"name": name, "role": role, "kind": kind, "shape": list(shape), **more}


def check(method, inputs, reference, hyper=None, symbol=""):
    """Evaluate the adapter of ``method`` on a case whose values are those of ``reference(arrays)``."""
    case = {"id": "own", "method": method, "family": "", "paper": "", "seed": 11, "dtype": "float64", "inputs": inputs}
    arrays = make(case)
    leaves = {name: torch.as_tensor(array) for name, array in arrays.items()}
    trained = {e["name"]: leaves[e["name"]].requires_grad_() for e in inputs if e["role"] in ("student", "trainable")}
    loss = reference(leaves)
    gradients = torch.autograd.grad(loss, [*trained.values()], allow_unused=True)
    grads = {
        name: None if g is None else {"l2": float(g.norm()), "first3": g.flatten()[:3].tolist()}
        for name, g in zip(trained, gradients, strict=True)
    }
    case["input_check"] = {
        name: {"sum": float(a.astype(np.float64).sum()), "first": float(a.flat[0])} for name, a in arrays.items()
    }
    result = {"reference": True, "hyper_parameters": hyper or {}, "factors": "", "rtol": 1e-8, "grads": grads}
    case["results"] = [{**result, "loss": float(loss.detach()), "symbol": symbol}]
    assert evaluate(case, METHODS[method]) == []
    case["results"][0]["loss"] *= 1 + 1e-6
    assert evaluate(case, METHODS[method]) != []  # the check can fail


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def named(arrays, prefix):
    return [arrays[name] for name in sorted(arrays) if name.startswith(prefix)]


def batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


@pytest.mark.parametrize("levels", [1, 3, 4])
def test_ofd_with_any_number_of_taps(levels):
    inputs, sizes = [], [(3 + i, 5 + i, 8 - 2 * i) for i in range(levels)]
    for i, (ours, theirs, size) in enumerate(sizes):
        inputs += [
            entry(f"student_feature_{i}", "student", 5, ours, size, size),
            entry(f"teacher_feature_{i}", "teacher", 5, theirs, size, size),
            entry(f"connector_{i}_conv_weight", "trainable", theirs, ours, 1, 1),
            entry(f"connector_{i}_bn_weight", "trainable", theirs, shift=1.0, scale=0.2),
            entry(f"connector_{i}_bn_bias", "trainable", theirs, scale=0.2),
            entry(f"teacher_bn_weight_{i}", "teacher", theirs, shift=1.0, scale=0.2),
            entry(f"teacher_bn_bias_{i}", "teacher", theirs, scale=0.2),
        ]

    def margin(scale, shift):
        """The mean of a normal distribution below 0, in float32 as released."""
        s, m = abs(scale), shift
        below = 0.5 * math.erfc(m / s / math.sqrt(2))
        value = m - s * math.exp(-((m / s) ** 2) / 2) / math.sqrt(2 * math.pi) / below if below > 0.001 else -3 * s
        return float(np.float32(value))

    def reference(a):
        total = 0
        for i in range(levels):
            own = F.conv2d(a[f"student_feature_{i}"], a[f"connector_{i}_conv_weight"])
            own = batch_norm(own, a[f"connector_{i}_bn_weight"], a[f"connector_{i}_bn_bias"])
            norms = zip(a[f"teacher_bn_weight_{i}"].tolist(), a[f"teacher_bn_bias_{i}"].tolist(), strict=True)
            margins = torch.tensor([margin(*each) for each in norms], dtype=torch.float64)
            target = torch.maximum(a[f"teacher_feature_{i}"], margins[:, None, None])
            part = (own - target) ** 2 * ((own > target) | (target > 0))
            total = total + part.sum() / 2 ** (levels - 1 - i)
        return total / 5

    check("OFD", inputs, reference)


@pytest.mark.parametrize(("students", "teachers", "batch", "factor"), [(3, 2, 6, 2), (1, 3, 8, 4)])
def test_sem_ckd_with_any_number_of_layers(students, teachers, batch, factor):
    width = batch // factor
    ours, theirs = [(3 + i, 6 - i) for i in range(students)], [(4 + j, 5 - j) for j in range(teachers)]
    inputs = [entry(f"student_feature_{i}", "student", batch, c, s, s) for i, (c, s) in enumerate(ours)]
    inputs += [entry(f"teacher_feature_{j}", "teacher", batch, c, s, s) for j, (c, s) in enumerate(theirs)]
    for kind, layers in (("query", students), ("key", teachers)):
        for i in range(layers):
            for linear, shape in (("linear1", (2 * width, batch)), ("linear2", (width, 2 * width))):
                inputs.append(entry(f"self_{kind}_weight{i}_{linear}_weight", "trainable", *shape, scale=0.3))
                inputs.append(entry(f"self_{kind}_weight{i}_{linear}_bias", "trainable", shape[0], scale=0.3))
    for i, (c, _) in enumerate(ours):
        for j, (d, _) in enumerate(theirs):
            name, middle = f"self_regressor{i}{j}_regressor", 2 * d
            for place, shape in ((0, (middle, c, 1, 1)), (3, (middle, middle, 3, 3)), (6, (d, middle, 1, 1))):
                inputs.append(entry(f"{name}_{place}_weight", "trainable", *shape, scale=0.3))
            for place in (1, 4):
                inputs.append(entry(f"{name}_{place}_weight", "trainable", middle, shift=1.0, scale=0.1))
                inputs.append(entry(f"{name}_{place}_bias", "trainable", middle, scale=0.1))

    def embedded(a, kind, features):
        rows = []
        for i, x in enumerate(features):
            gram = x.flatten(1) @ x.flatten(1).T
            name = f"self_{kind}_weight{i}"
            hidden = F.linear(gram, a[f"{name}_linear1_weight"], a[f"{name}_linear1_bias"]).relu()
            out = F.linear(hidden, a[f"{name}_linear2_weight"], a[f"{name}_linear2_bias"])
            rows.append(out / out.norm(dim=1, keepdim=True))
        return torch.stack(rows, 1)

    def reference(a):
        features = [named(a, f"{side}_feature") for side in ("student", "teacher")]
        scores = embedded(a, "query", features[0]) @ embedded(a, "key", features[1]).transpose(1, 2)
        attention, total = scores.softmax(2), 0
        for i, x in enumerate(features[0]):
            for j, y in enumerate(features[1]):
                size = min(x.shape[2], y.shape[2])
                x_, y_ = (F.adaptive_avg_pool2d(z, size) if z.shape[2] > size else z for z in (x, y))
                name = f"self_regressor{i}{j}_regressor"
                z = F.conv2d(x_, a[f"{name}_0_weight"])
                z = batch_norm(z, a[f"{name}_1_weight"], a[f"{name}_1_bias"]).relu()
                z = F.conv2d(z, a[f"{name}_3_weight"], padding=1)
                z = batch_norm(z, a[f"{name}_4_weight"], a[f"{name}_4_bias"]).relu()
                z = F.conv2d(z, a[f"{name}_6_weight"])
                total = total + (attention[:, i, j] * ((z - y_) ** 2).flatten(1).mean(1)).sum()
        return total / batch / students

    check("SemCKD", inputs, reference, {"factor": factor})


@pytest.mark.parametrize(("ours", "theirs", "classes", "factor"), [(4, 12, 7, 4), (9, 6, 3, 1)])
def test_sim_kd_of_any_size(ours, theirs, classes, factor):
    middle = theirs // factor
    inputs = [
        entry("student_feature", "student", 5, ours, 4, 4, kind="relu"),
        entry("teacher_feature", "teacher", 5, theirs, 4, 4, kind="relu"),
        entry("teacher_classifier_weight", "teacher", classes, theirs),
        entry("teacher_classifier_bias", "teacher", classes),
    ]
    for place, shape in ((0, (middle, ours, 1, 1)), (3, (middle, middle, 3, 3)), (6, (theirs, middle, 1, 1))):
        inputs.append(entry(f"projector_transfer_{place}_weight", "trainable", *shape, scale=0.3))
        inputs.append(entry(f"projector_transfer_{place + 1}_weight", "trainable", shape[0], shift=1.0, scale=0.1))
        inputs.append(entry(f"projector_transfer_{place + 1}_bias", "trainable", shape[0], scale=0.1))

    def reference(a):
        x = a["student_feature"]
        for place, padding in ((0, 0), (3, 1), (6, 0)):
            x = F.conv2d(x, a[f"projector_transfer_{place}_weight"], padding=padding)
            norm = (a[f"projector_transfer_{place + 1}_{part}"] for part in ("weight", "bias"))
            x = batch_norm(x, *norm).relu()
        return ((x - a["teacher_feature"]) ** 2).mean()

    check("SimKD", inputs, reference, {"factor": factor})


@pytest.mark.parametrize("factor", [-0.1, -1.0])
def test_ctkd_of_any_factor(factor):
    inputs = [entry(f"{role}_logits", role, 6, 9, scale=2.0) for role in ("student", "teacher")]
    inputs.append(entry("global_T", "trainable", 1, kind="const", value=[0.4]))

    def reference(a):
        theta = a["global_T"].detach() + factor * (a["global_T"] - a["global_T"].detach())
        temperature = 2.0 + 9.0 * theta.sigmoid()
        p, q = ((a[f"{role}_logits"] / temperature).softmax(1) for role in ("teacher", "student"))
        return (kl(p, q).mean() * temperature**2).sum()

    check("CTKD", inputs, reference, {"t_start": 2.0, "t_end": 9.0, "lambda_": factor})


@pytest.mark.parametrize(("ours", "block", "padded"), [(3, 2, 1), (2, 4, 0), (1, 1, 3)])
def test_tiny_bert_of_any_depth(ours, block, padded):
    batch, heads, length, width, wide, classes = 4, 5, 7, 6, 9, 3
    inputs = [
        entry(f"{role}_attention_{i}", role, batch, heads, length, length)
        for role, layers in (("student", ours), ("teacher", ours * block))
        for i in range(layers)
    ]
    inputs += [
        entry(f"{role}_hidden_{i}", role, batch, length, size)
        for role, layers, size in (("student", ours, width), ("teacher", ours * block, wide))
        for i in range(layers + 1)
    ]
    inputs += [
        entry("fit_dense_weight", "trainable", wide, width, scale=0.3),
        entry("fit_dense_bias", "trainable", wide, scale=0.1),
        *(entry(f"{role}_logits", role, batch, classes) for role in ("student", "teacher")),
    ]

    def reference(a):
        total = 0
        for i in range(ours):
            difference = a[f"student_attention_{i}"] - a[f"teacher_attention_{(i + 1) * block - 1}"]
            total = total + (difference[..., : length - padded] ** 2).sum() / difference.numel()
        for i in range(ours + 1):
            fitted = F.linear(a[f"student_hidden_{i}"], a["fit_dense_weight"], a["fit_dense_bias"])
            total = total + ((fitted - a[f"teacher_hidden_{i * block}"]) ** 2).mean()
        target = a["teacher_logits"].softmax(1)
        return total - (target * a["student_logits"].log_softmax(1)).mean()

    check("TinyBERT", inputs, reference, {"key_positions_masked": padded})


def test_distil_bert_of_any_weights():
    inputs = [entry(f"{role}_logits", role, 4, 3, 7, scale=2.0) for role in ("student", "teacher")]
    inputs += [entry(f"{role}_hidden", role, 4, 3, 5) for role in ("student", "teacher")]
    inputs.append(entry("attention_mask", "mask", 4, 3, kind="bernoulli", p=0.6))

    def reference(a):
        kept = a["attention_mask"].bool()
        p, q = ((a[f"{role}_logits"][kept] / 3).softmax(1) for role in ("teacher", "student"))
        s, t = (a[f"{role}_hidden"][kept] for role in ("student", "teacher"))
        cosine = (s * t).sum(1) / s.norm(dim=1) / t.norm(dim=1)
        return 2.0 * 9 * kl(p, q).mean() + 0.5 * (1 - cosine).mean()

    check("DistilBERT", inputs, reference, {"T": 3.0, "alpha_ce": 2.0, "alpha_cos": 0.5})


def relation(left, right):
    return (left @ right.transpose(-1, -2) / math.sqrt(left.shape[-1])).softmax(-1)


def test_minilm_of_any_heads():
    inputs = [
        entry(f"{role}_{name}", role, 3, 5, 6, width)
        for role, width in (("student", 2), ("teacher", 7))
        for name in ("query", "key", "value")
    ]

    def reference(a):
        p, q = (relation(a[f"{role}_query"], a[f"{role}_key"]) for role in ("teacher", "student"))
        r, s = (relation(a[f"{role}_value"], a[f"{role}_value"]) for role in ("teacher", "student"))
        return kl(p, q).mean() + kl(r, s).mean()

    check("MiniLM-v1", inputs, reference)


@pytest.mark.parametrize("heads", [1, 3])
def test_minilm_v2_of_any_relation_heads(heads):
    inputs = [
        entry(f"{role}_{name}", role, 3, 4, width)
        for role, width in (("student", 6), ("teacher", 15))
        for name in ("query", "key", "value")
    ]

    def reference(a):
        total = 0
        for name in ("query", "key", "value"):
            parts = [torch.stack(a[f"{role}_{name}"].chunk(heads, 2), 1) for role in ("teacher", "student")]
            total = total + kl(*(relation(x, x) for x in parts)).mean()
        return total

    check("MiniLM-v2", inputs, reference, {"relation_heads": heads})


LOGITS = [entry(f"{role}_logits", role, 3, 5, 6, scale=2.0) for role in ("student", "teacher")]
KEEP = entry("keep", "mask", 3, 5, kind="bernoulli", p=0.5)


def kept(a):
    return ((a[f"{role}_logits"][a["keep"].bool()]).softmax(-1) for role in ("teacher", "student"))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_jsd_of_any_beta(beta):
    def reference(a):
        p, q = ((a[f"{role}_logits"][a["keep"].bool()] / 1.7).softmax(-1) for role in ("teacher", "student"))
        if beta in (0, 1):
            return (kl(q, p) if beta else kl(p, q)).mean()
        m = beta * p + (1 - beta) * q
        return (beta * kl(p, m) + (1 - beta) * kl(q, m)).mean()

    check("GKD-JSD", [*LOGITS, KEEP], reference, {"beta": beta, "temperature": 1.7})


@pytest.mark.parametrize("symbol", ["skewed_forward_kl", "skewed_reverse_kl"])
def test_skew_kl_of_any_share(symbol):
    def reference(a):
        p, q = kept(a)
        if "forward" in symbol:
            return -(p * (0.35 * p + 0.65 * q).log()).sum(-1).mean()
        return kl(q, 0.65 * p + 0.35 * q).mean()

    check("skew-KL", [*LOGITS, KEEP], reference, {"lam": 0.35}, symbol)


@pytest.mark.parametrize("symbol", ["get_distil_loss", "reverse_kl"])
def test_token_kl_of_either_direction(symbol):
    def reference(a):
        p, q = kept(a)
        return kl(q, p).mean() if "reverse" in symbol else -(p * q.log()).sum(-1).mean()

    check("token-KL", [*LOGITS, KEEP], reference, {}, symbol)


def test_uld_of_any_lengths_and_temperatures():
    inputs = [
        entry("student_logits", "student", 3, 8, 5, scale=2.0),
        entry("teacher_logits", "teacher", 3, 6, 9, scale=2.0),
        entry("student_prompt_length", "constant", 3, kind="const", value=[2, 5, 1]),
        entry("teacher_prompt_length", "constant", 3, kind="const", value=[1, 3, 4]),
    ]

    def reference(a):
        values = []
        for b in range(3):
            starts = [int(a[f"{role}_prompt_length"][b]) for role in ("student", "teacher")]
            count = min(8 - starts[0], 6 - starts[1])
            rows = [
                (a[f"{role}_logits"][b, start - 1 : start - 1 + count] / temperature)
                .softmax(-1)
                .sort(-1)
                .values.flip(-1)
                for role, start, temperature in zip(("student", "teacher"), starts, (1.5, 0.5), strict=True)
            ]
            values.append((F.pad(rows[0], (0, 4)) - rows[1]).abs().sum(-1).mean())
        return torch.stack(values).mean()

    check("ULD", inputs, reference, {"student_temperature": 1.5, "teacher_temperature": 0.5})


def test_factors_of_weighted_methods():
    rows = [entry(f"{role}_embedding", role, 5, width) for role, width in (("student", 4), ("teacher", 6))]

    def distances(x):
        square = (x[:, None] - x[None]).square().sum(-1)
        d = square.clamp(min=1e-12).sqrt() * (1 - torch.eye(len(x), dtype=x.dtype))
        return d / d[d > 0].mean()

    check(
        "RKD-distance",
        rows,
        lambda a: 7.0 * F.smooth_l1_loss(*(distances(a[f"{role}_embedding"]) for role in ("student", "teacher"))),
        {"w_d": 7.0, "w_a": 0.0},
    )
