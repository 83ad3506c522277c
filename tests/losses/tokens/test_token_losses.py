"""The divergences of tokens against plain loops and independently computed numbers."""

import math

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses import ULD, ForwardKL, GeneralizedJSD, ReverseKL, SequenceKD, SkewKL, TopK
from kdlab.losses.context import Context
from kdlab.losses.tokens import TokenCrossEntropy, next_token_labels, top_k_of, top_k_rows
from kdlab.outputs import Outputs
from kdlab.outputs.task_format import TaskFormat
from kdlab.schedules import Linear
from tests.losses.slow import draw, kl, softmax

NO_TARGET = torch.zeros(1)
TEACHER, STUDENT = [3.0, 1.0, 0.5, -1.0], [1.5, 2.0, 0.0, -0.5]
MASK = torch.tensor([[0, 1, 1], [1, 0, 0]])
LABELS = torch.tensor([[4, -100, 1], [0, 2, 3]])
COUNTED = {"labeled": [(0, 2), (1, 0)], "attended": [(0, 1), (0, 2), (1, 0)]}


def mix(left, right, share):
    return [share * a + (1 - share) * b for a, b in zip(left, right, strict=True)]


def jsd(p, q, beta):
    if beta in (0, 1):
        return kl(q, p) if beta else kl(p, q)
    m = mix(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def top_k(p, q, k, missing):
    chosen = sorted(range(len(p)), key=lambda v: -p[v])[:k]
    mass, ours = sum(p[v] for v in chosen), sum(q[v] for v in chosen)
    if missing == "renormalize":
        return sum(p[v] / mass * math.log(p[v] / mass / q[v]) for v in chosen)
    return sum(p[v] * math.log(p[v] / q[v]) for v in chosen) + (1 - mass) * math.log((1 - mass) / (1 - ours))


CASES = {
    "forward": (lambda **o: ForwardKL(**o), lambda p, q: kl(p, q)),
    "reverse": (lambda **o: ReverseKL(**o), lambda p, q: kl(q, p)),
    "skew": (lambda **o: SkewKL(0.3, **o), lambda p, q: kl(p, mix(p, q, 0.3))),
    "skew-0": (lambda **o: SkewKL(0.0, **o), lambda p, q: kl(p, q)),
    "skew-reverse": (lambda **o: SkewKL(0.3, "reverse", **o), lambda p, q: kl(q, mix(q, p, 0.3))),
    "jsd": (lambda **o: GeneralizedJSD(0.2, **o), lambda p, q: jsd(p, q, 0.2)),
    "jsd-0": (lambda **o: GeneralizedJSD(0, **o), lambda p, q: jsd(p, q, 0)),
    "jsd-1": (lambda **o: GeneralizedJSD(1, **o), lambda p, q: jsd(p, q, 1)),
    "rest": (lambda **o: TopK(2, **o), lambda p, q: top_k(p, q, 2, "rest")),
    "renormalize": (lambda **o: TopK(2, "renormalize", **o), lambda p, q: top_k(p, q, 2, "renormalize")),
}


@pytest.mark.parametrize("positions", ["labeled", "attended"])
@pytest.mark.parametrize("name", CASES)
def test_value_is_the_mean_over_positions_that_count(name, positions):
    build, reference = CASES[name]
    student, teacher = draw(2, 3, 5, seed=1, scale=2), draw(2, 3, 5, seed=2, scale=2)
    for logits in (student, teacher):
        logits[1, 1] = math.nan  # padding may hold anything
    value = build(positions=positions)(Outputs(student, mask=MASK), Outputs(teacher, mask=MASK), LABELS)
    rows = [(softmax(teacher[place].tolist()), softmax(student[place].tolist())) for place in COUNTED[positions]]
    assert value.item() == pytest.approx(sum(reference(p, q) for p, q in rows) / len(rows), rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_every_sample_has_its_own_value(name):
    build, reference = CASES[name]
    student, teacher = draw(3, 5, seed=1, scale=2), draw(3, 5, seed=2, scale=2)
    values = build().per_sample(Outputs(student), Outputs(teacher), torch.zeros(3, dtype=torch.int64))
    rows = zip(teacher.tolist(), student.tolist(), strict=True)
    assert values.tolist() == pytest.approx([reference(softmax(p), softmax(q)) for p, q in rows], rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [  # facts, section K: computed there without this code
        (ForwardKL(), 0.519474),
        (ReverseKL(), 0.645519),
        (ForwardKL(3.0), 0.559628),
        (ForwardKL(4.0), 0.541818),
        (GeneralizedJSD(0.1), 0.046771),
        (GeneralizedJSD(0.5), 0.135282),
        (GeneralizedJSD(0.9), 0.055022),
        (SkewKL(0.1), 0.421929),
        (SkewKL(0.1, "reverse"), 0.471790),
    ],
    ids=str,
)
def test_known_numbers(loss, expected):
    student, teacher = (Outputs(torch.tensor([[row]], dtype=torch.float64)) for row in (STUDENT, TEACHER))
    assert loss(student, teacher, torch.tensor([[0]])).item() == pytest.approx(expected, abs=6e-7)


TEMPERED = [name for name in CASES if name.split("-")[0] in ("forward", "reverse", "jsd")]


@pytest.mark.parametrize("chunk_size", [None, 2])
@pytest.mark.parametrize("name", TEMPERED)
def test_temperature_divides_the_logits(name, chunk_size):
    build, reference = CASES[name]
    student, teacher = draw(2, 3, 5, seed=1, scale=2), draw(2, 3, 5, seed=2, scale=2)
    value = build(temperature=2.5, chunk_size=chunk_size)(Outputs(student), Outputs(teacher), LABELS)
    rows = [
        (softmax(teacher[i, j].tolist(), 2.5), softmax(student[i, j].tolist(), 2.5)) for i in (0, 1) for j in range(3)
    ]
    counted = [row for row, label in zip(rows, LABELS.flatten(), strict=True) if label != -100]
    scale = 1 if name.startswith("jsd") else 2.5**2  # the released code of GKD does not scale
    expected = scale * sum(reference(p, q) for p, q in counted) / len(counted)
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_jsd_near_its_ends_is_the_scaled_limit():
    student, teacher = (Outputs(torch.tensor([[row]], dtype=torch.float64)) for row in (STUDENT, TEACHER))
    near_forward, near_reverse = (GeneralizedJSD(b)(student, teacher, NO_TARGET).item() for b in (0.001, 0.999))
    assert near_forward / 0.001 == pytest.approx(0.518946, abs=6e-6)
    assert near_reverse / 0.001 == pytest.approx(0.644470, abs=6e-6)
    assert "1 the reverse KL" in repr(GeneralizedJSD(0.9))


@pytest.mark.parametrize("name", [*CASES, "labels"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_all_masked_is_zero_with_zero_gradient(name, chunk_size):
    build = CASES[name][0] if name in CASES else SequenceKD
    student = draw(2, 3, 5, seed=1).requires_grad_()
    mask = torch.zeros(2, 3)
    value = build(chunk_size=chunk_size)(Outputs(student, mask=mask), Outputs(draw(2, 3, 5), mask=mask), LABELS)
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("name", CASES)
def test_padded_vocabulary_of_minus_infinity_changes_nothing(name):
    build, _ = CASES[name]
    student, teacher = draw(1, 3, 5, seed=1), draw(1, 3, 5, seed=2)
    plain = build()(Outputs(student), Outputs(teacher), torch.zeros(1, 3))
    wide = [torch.nn.functional.pad(x, (0, 2), value=-math.inf).requires_grad_() for x in (student, teacher)]
    value = build()(Outputs(wide[0]), Outputs(wide[1]), torch.zeros(1, 3))
    value.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    assert wide[0].grad.isfinite().all()


def test_sequence_kd_is_the_mean_log_loss_of_the_tokens():
    student = draw(2, 3, 5, seed=1, scale=2)
    expected = [-math.log(softmax(student[place].tolist())[LABELS[place]]) for place in COUNTED["labeled"]]
    outputs = Outputs(student, mask=MASK), Outputs(student)
    assert SequenceKD()(*outputs, LABELS).item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    task = TokenCrossEntropy()(student, LABELS.masked_fill(MASK == 0, -100))
    assert task.item() == pytest.approx(sum(expected) / 2, rel=1e-12)


def test_stored_top_k_rows_are_those_of_the_teacher():
    student, teacher = draw(4, 9, seed=1), draw(4, 9, seed=2)
    stored = top_k_of(teacher, 3)
    for missing in ("rest", "renormalize"):
        expected = TopK(3, missing).per_row(student, teacher, NO_TARGET)
        assert torch.allclose(top_k_rows(student, *stored, missing), expected, rtol=1e-6)


def test_all_tokens_of_top_k_are_the_forward_kl():
    sides = Outputs(draw(4, 5, seed=1)), Outputs(draw(4, 5, seed=2))
    expected = ForwardKL()(*sides, NO_TARGET).item()
    for missing in ("rest", "renormalize"):
        assert TopK(5, missing)(*sides, NO_TARGET).item() == pytest.approx(expected, rel=1e-12)


def test_top_k_rest_is_below_the_forward_kl_and_renormalized_is_biased():
    teacher = torch.tensor([TEACHER], dtype=torch.float64)
    same = Outputs(teacher), Outputs(teacher)
    assert TopK(2)(*same, NO_TARGET).item() == pytest.approx(0, abs=1e-12)
    assert TopK(2, "renormalize")(*same, NO_TARGET).item() == pytest.approx(-math.log(0.918752), abs=1e-6)


def test_labels_of_causal_models_are_the_next_tokens():
    tokens, mask = torch.tensor([[7, 8, 9, 0], [5, 6, 3, 4]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert next_token_labels(tokens, mask).tolist() == [[8, 9, -100, -100], [6, 3, 4, -100]]
    assert next_token_labels(torch.tensor([[-100, 8, 9]])).tolist() == [[8, 9, -100]]


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_chunk_size_is_a_whole_number(size):
    with pytest.raises(InputError, match="chunk_size"):
        ForwardKL(chunk_size=size)
    with pytest.raises(InputError, match="chunk_size"):
        TokenCrossEntropy(chunk_size=size)


@pytest.mark.parametrize("k", [0, 2.5, True])
def test_k_is_a_whole_number(k):
    with pytest.raises(InputError, match="k must be"):
        TopK(k)


def test_labels_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"must be \(2, 3\), not \(2, 4\)"):
        TokenCrossEntropy()(draw(2, 3, 5), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="one token for each position"):
        SequenceKD()(Outputs(draw(2, 3, 5)), Outputs(draw(2, 3, 5)), torch.rand(2, 3))


@pytest.mark.parametrize("loss", [ForwardKL(), ULD()], ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("ignored", [-100, 3, None])
def test_the_ignored_label_is_that_of_the_task(loss, ignored):
    student, teacher = Outputs(draw(1, 3, 5, seed=1)), Outputs(draw(1, 3, 5, seed=2))
    labels = torch.tensor([[3, -100, 1]])
    loss.setup(Context(torch.nn.Identity(), (), form=TaskFormat("classes", -1, ignored)))
    rows = [i for i, label in enumerate(labels[0].tolist()) if label != ignored]
    alone = [type(loss)()(*(Outputs(x.logits[:, i : i + 1]) for x in (student, teacher)), NO_TARGET) for i in rows]
    assert loss(student, teacher, labels).item() == pytest.approx(sum(alone).item() / len(rows), rel=1e-12)


def test_the_share_starts_where_its_schedule_does():
    scheduled = GeneralizedJSD(0.8, schedule=Linear(length=4))
    assert scheduled.beta == 0
    for epoch, share in ((1, 0.2), (4, 0.8), (9, 0.8)):
        scheduled.advance(epoch, 0)
        assert scheduled.beta == pytest.approx(share)
    assert GeneralizedJSD(0.8).beta == 0.8
