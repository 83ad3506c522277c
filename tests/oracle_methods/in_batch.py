"""The methods of the oracle file that ensemble the samples of a batch."""

from __future__ import annotations

from kdlab import losses
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method


def _alone(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """The network's outputs on the teacher's side too, with its embedding."""
    logits = arrays["student_logits"]
    return Outputs(logits), Outputs(logits, embedding=arrays["embedding"]).detach()


METHODS: dict[str, Method] = {
    "BAKE": Method(lambda h: losses.BAKE(h["T"], h["omega"]), outputs=_alone),
}
