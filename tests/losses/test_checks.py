"""What losses accept of arguments, layers, logits and labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from kdlab import losses
from kdlab.errors import InputError
from kdlab.losses.checks import at_least, class_labels, embeddings, layer_pairs, map_pairs, same_logits
from kdlab.outputs import Outputs


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (0, {}, ""),
        (-1e-9, {}, "of at least 0"),
        (0, {"strictly": True}, "above 0"),
        (1e-9, {"strictly": True}, ""),
        (0.999, {"below": 1}, ""),
        (1, {"below": 1}, "below 1"),
        (1.5, {"below": 1}, "below 1"),
        (1, {"most": 1}, ""),
        (1.001, {"most": 1}, "at most 1"),
        *((wrong, {}, "a finite number") for wrong in (True, "1", None, math.nan, math.inf)),
    ],
)
def test_a_number_at_its_bound(value: Any, options: dict[str, Any], words: str) -> None:
    if not words:
        assert at_least("x", value, 0, **options) == value
        return
    with pytest.raises(InputError, match=f"x must be .*{words}"):
        at_least("x", value, 0, **options)


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_both_layers_of_a_pair_are_maps(flat: str) -> None:
    maps, rows = (Outputs(torch.zeros(2, 3), (torch.zeros(shape),)) for shape in ((2, 4, 5, 5), (2, 4)))
    assert len(map_pairs(maps, maps)) == 1
    with pytest.raises(InputError, match="feature maps"):
        map_pairs(maps if flat == "teacher" else rows, maps if flat == "student" else rows)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_class_labels_are_integers(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match="integer class labels"):
        class_labels(torch.zeros(2, dtype=dtype), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(3,), (3, 2, 4)])
def test_class_labels_are_for_rows_of_logits(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one row for each label"):
        class_labels(torch.zeros(3, dtype=torch.int64), torch.zeros(shape))


def side(*shapes: tuple[int, ...], names: tuple[str, ...] = ()) -> Outputs:
    layers = tuple(torch.zeros(shape) for shape in shapes)
    return Outputs(torch.zeros((*layers[0].shape[:1], 2)), layers, names=names)


def test_layers_without_names_are_numbered() -> None:
    first, second = layer_pairs(side((2, 3), (2, 4), names=("low",)), side((2, 5), (2, 6)))
    assert first.shapes == "student layer 'low' gives (2, 3) and teacher layer 'number 0' gives (2, 5)"
    assert (second.student_name, second.teacher_name) == ("number 1", "number 1")
    assert (second.student.shape, second.teacher.shape) == ((2, 4), (2, 6))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (((2, 3),), ((2, 3), (2, 3)), "cannot be paired"),
        (((2,),), ((2, 3),), "common batch axis"),
        (((2,),), ((2,),), "common batch axis"),
        (((2, 3),), ((4, 3),), "common batch axis"),
        (((2, 0),), ((2, 3),), "layers are empty"),
    ],
)
def test_layers_that_are_no_pairs(one: Any, other: Any, words: str) -> None:
    for student, teacher in ((one, other), (other, one)):
        with pytest.raises(InputError, match=words):
            layer_pairs(side(*student), side(*teacher))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ((3,), (3,), "class axis"),
        ((2, 3), (2, 4, 3), "class axis"),
        ((2, 3), (2, 5), "student has . classes and the teacher ."),
        ((2, 3), (4, 3), "batch size or positions"),
        ((2, 3, 5), (2, 4, 5), "batch size or positions"),
        ((2, 3, 5), (2, 3, 6), "batch size or positions"),
    ],
)
def test_logits_of_other_shapes(one: tuple[int, ...], other: tuple[int, ...], words: str) -> None:
    for student, teacher in ((one, other), (other, one)):
        with pytest.raises(InputError, match=words):
            same_logits(Outputs(torch.zeros(student)), Outputs(torch.zeros(teacher)))
    for shape in ((1, 2), (2, 3, 4)):
        same_logits(Outputs(torch.zeros(shape)), Outputs(torch.zeros(shape)))


def embedded(*shape: int) -> Outputs:
    return Outputs(torch.zeros(2, 2), embedding=torch.zeros(shape))


def test_one_layer_comes_before_the_embedding() -> None:
    tapped = Outputs(torch.zeros(2, 2), (torch.ones(2, 3, 4),), torch.zeros(2, 5))
    one, other = embeddings(tapped, embedded(2, 5))
    assert (one.shape, other.shape) == ((2, 12), (2, 5))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (side((2, 3), (2, 3)), embedded(2, 3), "compares one layer .* but 2 .* layers are tapped"),
        (Outputs(torch.zeros(2, 2)), embedded(2, 3), "has no embedding"),
        (embedded(2), embedded(2, 3), r"embedding must be \(B, D\)"),
        (embedded(2, 3), embedded(4, 3), "compare one batch"),
        (embedded(0, 3), embedded(0, 3), "batch is empty"),
        (embedded(2, 0), embedded(2, 3), "batch is empty"),
    ],
)
def test_embeddings_that_cannot_be_compared(one: Outputs, other: Outputs, words: str) -> None:
    for student, teacher in ((one, other), (other, one)):
        with pytest.raises(InputError, match=words):
            embeddings(student, teacher)


NO_TARGET = torch.zeros(2)
REFUSED: list[tuple[nn.Module, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...], str]] = [
    (losses.CWD(), ((2, 3, 4, 4),), ((2, 3, 4, 2),), "one height and width"),
    (losses.MGD(), ((2, 3, 4, 4),), ((2, 3, 2, 4),), "one height and width"),
    (losses.FSP(), ((2, 3, 4, 4), (2, 4, 4, 4)), ((2, 3, 4, 4), (2, 5, 4, 4)), "equal channels"),
    (losses.KDSVD(), ((2, 3, 4, 4), (2, 4, 4, 4)), ((2, 3, 4, 4), (2, 5, 4, 4)), "equal channels"),
    (losses.ICKD(), ((2, 3, 4, 4),), ((2, 5, 4, 4),), "equally many channels"),
    (losses.SimKD(), ((2, 3, 4, 4),), ((2, 5, 4, 4),), "equally many channels"),
    (losses.SimKD(), ((2, 3, 4, 2),), ((2, 3, 2, 4),), "pools a student's map larger"),
    (losses.Hint(None), ((2, 3),), ((2, 5),), "cannot compare"),
    (losses.Hint("1x1"), ((2, 3, 4, 2),), ((2, 3, 4, 4),), "cannot compare"),
    (losses.EmbedDistill(), ((2, 3),), ((2, 5),), "set project to true"),
    (losses.NormAndDirection().eval(), ((2, 3),), ((2, 5),), "embedding has . entries"),
    (losses.CosineSmoothL1(projection=None), ((2, 3),), ((2, 5),), "set projection to"),
    (losses.CosineSmoothL1(), ((2, 6, 4),), ((2, 7, 4),), "no positions in common"),
    (losses.CosineSmoothL1(), ((2, 4, 2, 3),), ((2, 6, 4),), "no positions in common"),
    (losses.CosineSmoothL1(), ((2, 4),), ((2, 1, 4),), "no positions in common"),
    (losses.HiddenCosine(), ((2, 3, 4),), ((2, 3, 5),), "hidden states of one width"),
    (losses.HiddenCosine(), ((2, 3, 4),), ((2, 5, 4),), "sequences of one length"),
    (losses.HiddenCosine(), ((2, 3, 4),), ((2, 4),), "compares hidden states"),
    (losses.HiddenCosine(), ((2, 3, 4, 4),), ((2, 3, 4, 4),), "compares hidden states"),
    (losses.TinyBERTHidden(), ((2, 3, 4), (2, 3, 5)), ((2, 3, 6), (2, 3, 6)), "set shared to false"),
    (losses.TinyBERTAttention(), ((2, 4, 3, 3),), ((2, 6, 3, 3),), "of as many heads"),
    (losses.TinyBERTAttention(), ((2, 4, 3, 5),), ((2, 4, 3, 5),), "compares matrices"),
    (losses.TinyBERTAttention(), ((2, 3, 3),), ((2, 3, 3),), "compares matrices"),
    (losses.TinyBERTAttention(2), 3 * ((2, 3, 4),), 3 * ((2, 3, 4),), "queries and keys in turn"),
    (losses.MiniLM(2), 3 * ((2, 3, 4),), 2 * ((2, 3, 4),), "layers in this order, but 2"),
    (losses.MiniLMv2(2), 3 * ((2, 3, 4),), 4 * ((2, 3, 4),), "layers in this order, but 4"),
    (losses.MiniLM(2), 3 * ((2, 3, 4),), 3 * ((2, 5, 4),), "must be the same"),
    (losses.MiniLMv2(2), 3 * ((2, 3, 4),), 3 * ((2, 5, 4),), "must be the same"),
    (losses.MiniLM(2), 3 * ((2, 4),), 3 * ((2, 3, 4),), "Queries, keys and values must be"),
    (losses.MiniLM(2), 3 * ((2, 3, 4, 1, 1),), 3 * ((2, 3, 4),), "Queries, keys and values must be"),
    (losses.IRG(), 3 * ((2, 3),), 3 * ((2, 3),), "an even number"),
]


@pytest.mark.parametrize(("loss", "one", "other", "words"), REFUSED, ids=lambda x: type(x).__name__)
def test_sizes_that_do_not_fit_either_way(loss: nn.Module, one: Any, other: Any, words: str) -> None:
    for student, teacher in ((one, other), (other, one)):
        with pytest.raises(InputError, match=words):
            loss(side(*student), side(*teacher), NO_TARGET)


@pytest.mark.parametrize(
    ("one", "other"), [((2, 4, 5), (3, 4, 5)), ((2, 5), (2, 4, 5)), ((2,), (2,)), ((2, 3, 4, 5),) * 2]
)
def test_uld_compares_the_same_samples(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    for student, teacher in ((one, other), (other, one)):
        with pytest.raises(InputError, match="of the same samples"):
            losses.ULD()(Outputs(torch.zeros(student)), Outputs(torch.zeros(teacher)), NO_TARGET)


LABELS = torch.tensor([0, 1])
OF_OTHER_BATCHES = [(3, 3, 4, 4), (1, 3, 4, 4), (2, 3, 4)]
OF_ONE_SIDE: list[tuple[nn.Module, list[tuple[int, ...]], str]] = [
    (losses.FRSKD(), [(2, 3, 4, 4)], "two or more of the student's stages"),
    (losses.USKD(), [(2, 3), (2, 3)], "reads one map"),
    *((losses.FRSKD(), [(2, 3, 4, 4), shape], "needs maps") for shape in [*OF_OTHER_BATCHES, (2, 3), (2, 0, 4, 4)]),
    *((losses.OFA(exits=True), [(2, 3, 4, 4), shape], "exits read maps") for shape in [*OF_OTHER_BATCHES, (2, 3)]),
    *((losses.USKD(), [shape], "reads one map") for shape in [*OF_OTHER_BATCHES, (2, 3, 4, 4, 4), (2, 0)]),
]


@pytest.mark.parametrize(("loss", "shapes", "words"), OF_ONE_SIDE, ids=lambda x: type(x).__name__)
def test_layers_of_the_student_that_do_not_fit(loss: nn.Module, shapes: Any, words: str) -> None:
    student = Outputs(torch.zeros(2, 3), tuple(torch.zeros(shape) for shape in shapes))
    with pytest.raises(InputError, match=words):
        loss(student, student, LABELS)
