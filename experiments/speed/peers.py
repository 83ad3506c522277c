"""torchdistill's DistillationBox on the same networks and batches, as shipped and with the teacher put in eval mode."""

from __future__ import annotations

from typing import Any

import torch
from hand import Loop
from inputs import WARM, Asked, Clock, Setting, networks
from overhead import batches, trivial
from torch import Tensor, nn

OUTPUT = {"path": ".", "io": "output"}


def version() -> str:
    """The installed version."""
    import torchdistill

    return str(torchdistill.__version__)


def box(student: nn.Module, teacher: nn.Module, device: torch.device, attention: bool) -> Any:
    """A DistillationBox for KD (0.1 cross-entropy + 0.9 soft targets at 4), with attention transfer times 1000."""
    from torchdistill.core.distillation import get_distillation_box

    logits = {f"{side}_module_{what}": value for side in ("student", "teacher") for what, value in OUTPUT.items()}
    kd = {"key": "KDLoss", "kwargs": {**logits, "temperature": 4.0, "alpha": 0.1, "beta": 0.9}}
    terms: dict[str, Any] = {"kd": {"criterion": kd, "weight": 1.0}}
    forward: dict[str, Any] = {"forward_proc": "forward_batch_only"}
    if attention:
        stages = ["layer1", "layer2", "layer3"]
        pairs = {x: {"student": {"io": "output", "path": x}, "teacher": {"io": "output", "path": x}} for x in stages}
        terms["at"] = {"criterion": {"key": "ATLoss", "kwargs": {"at_pairs": pairs, "mode": "code"}}, "weight": 1000.0}
        forward["forward_hook"] = {"input": [], "output": stages}
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "fused": True}
    config = {
        "num_epochs": 1,
        "teacher": {"requires_grad": False, **forward},
        "student": forward,
        "optimizer": {"key": "SGD", "kwargs": options},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}},
    }
    made: Any = get_distillation_box  # untyped
    return made(teacher, student, {}, config, device, None, False, 1)


def step_of(made: Any) -> Any:
    """A step as in torchdistill's examples: forward, update, the loss read and checked; its metric logger left out."""

    def step(images: Tensor, labels: Tensor) -> None:
        made.pre_forward_process()
        loss = made.forward_process(images, labels, supp_dict={})
        made.post_forward_process(loss=loss)
        loss.item()
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError("The training loop was broken due to loss = nan or inf.")

    return step


class Box(Loop):
    """A contestant. As shipped nothing puts the teacher in eval mode: it normalises with the batch and changes."""

    def __init__(self, name: str, setting: Setting, attention: bool, evaluated: bool) -> None:
        student, teacher = networks()
        teacher.train(not evaluated)
        self.box = box(student, teacher, setting.device, attention)
        self.box.pre_epoch_process(epoch=0)
        super().__init__(name, setting, step_of(self.box), teacher)


class TrivialBox:
    """The box on networks of almost no cost."""

    name = "torchdistill, teacher.eval() added"

    def __init__(self, setting: Setting, steps: int) -> None:
        self.clock = Clock(setting)
        self.clock.steps = steps
        made = box(trivial(), trivial().eval(), setting.device, attention=False)
        made.pre_epoch_process(epoch=0)
        self.step = step_of(made)
        self.batches = [(x.to(setting.device), y.to(setting.device)) for x, y in batches(setting, WARM + steps)]

    def turn(self) -> float:
        """Seconds a step, over the whole turn."""
        for images, labels in Asked(self.batches, self.clock):
            self.step(images, labels)
        return self.clock.mean()


def contestants(methods: list[str], setting: Setting) -> list[Box]:
    """KD and KD+AT, each as shipped and with the teacher in eval mode."""
    return [
        Box(
            f"{method}/torchdistill{', teacher.eval()' if evaluated else ' as shipped'}",
            setting,
            method != "kd",
            evaluated,
        )
        for method in methods
        if method in ("kd", "kd+at")
        for evaluated in (False, True)
    ]
