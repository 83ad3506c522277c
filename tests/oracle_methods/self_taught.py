"""The self-distillation and label-smoothing methods of the oracle file."""

from __future__ import annotations

from torch import Tensor, nn

from kdlab import losses
from kdlab.outputs import Outputs
from tests.oracle_methods.method import Arrays, Method, Weighted, side


class PSKD(nn.Module):
    """The method's whole loss: labels and past predictions, weighted as in one of its epochs."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha
        self.labels, self.past = losses.Labels(), losses.SoftLabels()

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        value: Tensor = (1 - self.alpha) * self.labels(student, teacher, target)
        return value + self.alpha * self.past(student, teacher, target)


def _alone(arrays: Arrays) -> tuple[Outputs, Outputs]:
    """There is no teacher: the student's own outputs stand on its side too."""
    return side(arrays, "student"), side(arrays, "student").detach()


def _past(arrays: Arrays) -> tuple[Outputs, Outputs]:
    return side(arrays, "student"), Outputs(arrays["past_predictions"].log())


METHODS: dict[str, Method] = {
    "label-smoothing": Method(lambda h: losses.LabelSmoothing(h["label_smoothing"]), outputs=_alone),
    "Tf-KD-reg": Method(
        lambda h: Weighted(
            (1 - h.get("alpha", 1.0), losses.Labels()),
            (
                h.get("alpha", 1.0) * h.get("multiplier", 1.0),
                losses.VirtualTeacher(temperature=h["T"], form="released"),
            ),
        ),
        outputs=_alone,
    ),
    "Zipf-LS": Method(
        lambda h: losses.ZipfLabelSmoothing(h["power"], only_correct=h["loss_mask"]),
        outputs=_alone,
    ),
    "PS-KD": Method(lambda h: PSKD(h["alpha_t"]), outputs=_past),
}
