"""What losses accept of layers."""

import pytest
import torch

from kdlab.errors import InputError
from kdlab.losses.checks import class_labels, map_pairs, same_logits
from kdlab.outputs import Outputs


@pytest.mark.parametrize("flat", ["student", "teacher", "both"])
def test_both_layers_of_a_pair_are_maps(flat):
    maps, rows = (Outputs(torch.zeros(2, 3), (torch.zeros(shape),)) for shape in ((2, 4, 5, 5), (2, 4)))
    assert len(map_pairs(maps, maps)) == 1
    with pytest.raises(InputError, match="feature maps"):
        map_pairs(maps if flat == "teacher" else rows, maps if flat == "student" else rows)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64])
def test_class_labels_are_integers(dtype):
    with pytest.raises(InputError, match="integer class labels"):
        class_labels(torch.zeros(2, dtype=dtype), torch.zeros(2, 3))


def test_logits_without_a_class_axis_are_refused():
    with pytest.raises(InputError, match="class axis"):
        same_logits(Outputs(torch.zeros(3)), Outputs(torch.zeros(3)))
