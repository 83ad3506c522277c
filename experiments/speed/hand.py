"""Hand-written loops: the floor, the loops that a research script would have, and what single levers bring."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from inputs import WARM, Clock, Setting, Untouched, fixed_batches, networks
from torch import Tensor, nn

from kdlab.losses.feature.review_kd import Fusion, hierarchical_distance
from kdlab.members import Fast, Frozen
from kdlab.members.fast_choice import fastest, in_turns
from kdlab.members.fast_options import supports_bf16
from kdlab.outputs import Batch

Step = Callable[[Tensor, Tensor], Any]
STUDENT, TEACHER, HAND = "S: student's step", "T: teacher's inference", "hand KD"
REVIEW = "hand ReviewKD"
STAGES = ["layer1", "layer2", "layer3"]
SUMS = ["layer1.8.preact", "layer2.8.preact", "layer3.8.preact"]  # resnet56's, before their last ReLU


class Loop:
    """A contestant whose turn is a plain loop over batches in memory."""

    needs: str | None = None

    def __init__(self, name: str, setting: Setting, step: Step, teacher: nn.Module | None) -> None:
        self.name, self.setting, self.step = name, setting, step
        self.clock = Clock(setting)
        self.batches: Iterator[tuple[Tensor, Tensor]] = cycle(fixed_batches(setting))
        self.teacher = None if teacher is None else Untouched(teacher)

    def turn(self, steps: int) -> Clock:
        """Time ``steps`` steps."""
        self.clock.steps = steps
        self.clock.start()
        for _ in range(WARM + steps):
            self.clock.ask()
            self.step(*next(self.batches))
        self.clock.ask()
        return self.clock

    def complaints(self) -> list[str]:
        """What is wrong with the teacher after all turns."""
        return self.teacher.complaints() if self.teacher else []


def stages(network: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the outputs of the three stages, of a CIFAR ResNet."""
    x = network.relu(network.bn1(network.conv1(images)))
    first = network.layer1(x)
    second = network.layer2(first)
    third = network.layer3(second)
    return network.fc(F.adaptive_avg_pool2d(third, 1).flatten(1)), [first, second, third]


def soft(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """0.1 cross-entropy + 0.9 soft targets at temperature 4."""
    log_p, log_q = F.log_softmax(student / 4, 1), F.log_softmax(teacher / 4, 1)
    kl = F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    return 0.1 * F.cross_entropy(student, labels) + 0.9 * 16 * kl


def attention(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Attention transfer over pairs of stages."""
    maps = [[F.normalize(x.pow(2).mean(1).flatten(1)) for x in side] for side in (student, teacher)]
    return torch.stack([(s - t).pow(2).mean() for s, t in zip(*maps, strict=True)]).sum()


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all contestants."""
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)


def trained(student: nn.Module, loss_of: Step) -> Step:
    """A training step that minimises ``loss_of(images, labels)``."""
    optimizer = sgd(student.train())

    def step(images: Tensor, labels: Tensor) -> None:
        loss_of(images, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def floor(setting: Setting) -> list[Loop]:
    """S and T, of which the floor is the sum."""
    student, teacher = (each.to(setting.device) for each in networks())
    return [
        Loop(STUDENT, setting, trained(student, lambda x, y: F.cross_entropy(student(x), y)), None),
        Loop(TEACHER, setting, lambda x, y: inferred(teacher, x), teacher),
    ]


@torch.no_grad()
def inferred(teacher: nn.Module, images: Tensor) -> Tensor:
    """The teacher's logits."""
    logits: Tensor = teacher(images)
    return logits


def hand(setting: Setting) -> list[Loop]:
    """KD and KD+AT in fp32, and both networks without any loss between them (what CRD's step is without CRD)."""
    (one, first), (two, second), (three, third) = ([each.to(setting.device) for each in networks()] for _ in range(3))

    def kd(x: Tensor, y: Tensor) -> Tensor:
        teacher = inferred(first, x)
        return soft(one(x), teacher, y)

    def kd_at(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            logits, maps = stages(second, x)
        own, own_maps = stages(two, x)
        return soft(own, logits, y) + 1000 * attention(own_maps, maps)

    def neither(x: Tensor, y: Tensor) -> Tensor:
        inferred(third, x)
        return F.cross_entropy(three(x), y)

    return [
        Loop(HAND, setting, trained(one, kd), first),
        Loop("hand KD+AT", setting, trained(two, kd_at), second),
        Loop("hand, no loss between", setting, trained(three, neither), third),
    ]


class Taps:
    """The outputs of layers, and what enters the classifier as a map, of the last forward."""

    def __init__(self, network: Any, layers: list[str]) -> None:
        self.maps: list[Tensor] = []
        network.register_forward_pre_hook(lambda *_: self.maps.clear())
        for layer in layers:
            network.get_submodule(layer).register_forward_hook(lambda m, x, output: self.maps.append(output))
        network.fc.register_forward_pre_hook(lambda m, x: self.maps.append(x[0][:, :, None, None]))


def review(setting: Setting) -> Loop:
    """ReviewKD by hand, the floor of its method: both networks, and its fusion modules in a plain loop."""
    student, teacher = (network.to(setting.device) for network in networks())
    fusions = nn.ModuleList(Fusion(c, 64, c, deepest=i == 3) for i, c in enumerate((16, 32, 64, 64)))
    fusions.to(setting.device)
    taps, targets = Taps(student, STAGES), Taps(teacher, SUMS)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        inferred(teacher, x)
        value, deeper = F.cross_entropy(student(x), y), None
        for fusion, tap, target in reversed(list(zip(fusions, taps.maps, targets.maps, strict=True))):
            out, deeper = fusion(tap, deeper, target.shape[2:])
            value = value + 0.6 * hierarchical_distance(out, target)
        return value

    return Loop(REVIEW, setting, trained(nn.ModuleList([student, fusions]), loss), teacher)


def levers(setting: Setting) -> list[Loop]:
    """Single levers: the fast teacher alone, the student in channels_last, and in bf16 where the hardware has it."""
    loops = []
    _, teacher = networks()
    teacher = teacher.to(setting.device)
    frozen = Frozen(teacher, fast=Fast(precision="auto", timed=True))
    choice = frozen.choose(Batch(*fixed_batches(setting, 1)[0]))
    frozen.use(choice.copy.options if choice else None)
    loops.append(Loop("T: fast", setting, lambda x, y: frozen(Batch(x, y), {}), teacher))
    for bf16 in (False, True) if supports_bf16(setting.device) else (False,):
        student = networks()[0].to(setting.device).to(memory_format=torch.channels_last)
        name = "S: channels_last" + ", bf16" * bf16
        loops.append(Loop(name, setting, trained(student, _channels_last(student, bf16, setting.device)), None))
    return loops


def _channels_last(student: nn.Module, bf16: bool, device: torch.device) -> Step:
    def loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            return F.cross_entropy(student(x.contiguous(memory_format=torch.channels_last)).float(), y)

    return loss


@lru_cache
def student_in_bf16(setting: Setting) -> bool:
    """Whether the student's step in channels_last is faster in bf16 by more than 2 %, timed in alternating rounds."""
    if not supports_bf16(setting.device):
        return False
    ((images, labels),) = fixed_batches(setting, 1)
    steps = []
    for bf16 in (False, True):
        student = networks()[0].to(setting.device).to(memory_format=torch.channels_last)
        steps.append(trained(student, _channels_last(student, bf16, setting.device)))
    plain, lower = in_turns([lambda step=step: step(images, labels) for step in steps], setting.device)  # type: ignore[misc]
    return bool(fastest([1.0, statistics.median(b / a for a, b in zip(plain, lower, strict=True))]))
