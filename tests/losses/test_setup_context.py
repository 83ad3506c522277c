"""What a loss finds in its context."""

import pytest
from torch import nn

from kdlab.losses.context import Context
from tests.modules.cotraining import branched, image_net


@pytest.mark.parametrize("head", ["", "branch1"])
def test_classifier_is_that_of_the_sides_head(head):
    net, plain = branched(), image_net()
    (expected,) = (m for m in net.get_submodule(head or "network").modules() if isinstance(m, nn.Linear))
    assert Context(net, (plain,), student_head=head).classifier("student") is expected
    assert Context(plain, (net,), teacher_head=head).classifier("teacher") is expected
