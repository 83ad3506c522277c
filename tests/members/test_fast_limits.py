"""Where the fast teacher has to hold back: odd networks, lower precision, numbers that are none."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab.members import fast_copy as module
from kdlab.members import fast_inference
from kdlab.members.fast_inference import FastObserver
from kdlab.members.fast_options import PLAIN, Fast
from kdlab.members.frozen import Frozen
from kdlab.outputs import Batch, Observer
from kdlab.schedules import Progress
from tests.members.test_fast_inference import ONLY_STOP, Small, close, fast_network, images, norms, trained


@pytest.fixture(autouse=True)
def _no_grad_and_heard(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "kdlab.teaching")
    with torch.no_grad():
        yield


def test_what_was_done_is_said_once_however_often_the_copy_is_made(caplog: Any) -> None:
    observer = FastObserver(trained(Small()))
    for _ in range(3):
        observer.find_layers()
        observer(images())
    assert len(caplog.messages) == 1


class Guarded(nn.Module):
    """Catches what its first part raises, and goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.second_runs = 0

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.first(x)
        except Exception:
            x = x.mean(1, keepdim=True).expand(-1, 4, -1, -1)
        self.second_runs += 1
        return self.fc(self.second(x).mean((2, 3)))


def test_the_stop_is_no_error_that_a_network_could_catch() -> None:
    network = Guarded().eval()
    observer = FastObserver(network, ["first"], ONLY_STOP, only_layers=True)
    for _ in range(4):
        observer(images())
    assert network.second_runs == 1


class Overwriting(nn.Module):
    """Changes the first layer's output in place before the second, which is tapped too, has run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)
        self.change = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.change:
            y.mul_(0)
        return self.fc(self.second(y).mean((2, 3)))


def test_a_tap_that_is_overwritten_before_the_stop_keeps_its_value() -> None:
    network = Overwriting().eval()
    observer = FastObserver(network, ["first", "second"], ONLY_STOP, only_layers=True)
    observer(images())
    network.change = True  # not so in the whole forward before
    seen = observer(images())
    assert torch.equal(seen.layers[0], network.first(images()))


class Seen(nn.Module):
    """Notes the dtype of what passes, and whether autocast is on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
        self.notes: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.notes.append((x.dtype, torch.is_autocast_enabled("cpu")))
        return self.fc(self.conv(x).mean((2, 3)))


def test_autocast_is_off_in_lower_precision_and_its_tolerance_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    observer = FastObserver(Seen().eval(), (), Fast(precision="bf16"))
    with torch.autocast("cpu", torch.bfloat16):
        seen = observer(images())
    network: Any = fast_network(observer)
    assert network.notes[-1] == (torch.bfloat16, False)
    assert seen.logits.dtype == torch.float32
    monkeypatch.setattr(module, "largest_error", lambda *_: ("the logits", 0.02))
    for autocast, fast in ((True, True), (False, False)):
        made = FastObserver(trained(Small()))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            made(images())
        assert (fast_network(made) is not made.network) is fast


class Tokens(nn.Module):
    """A linear layer on (B, L, D) before a BatchNorm1d, which takes L for its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn, self.fc = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.linear(x)).mean(1))


def unbatched() -> nn.Module:
    """A convolution of one signal (C, L), whose channels the BatchNorm takes for the samples."""
    return nn.Sequential(nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4), nn.Linear(4, 5))


@pytest.mark.parametrize(("make", "shape"), [(Tokens, (3, 6, 6)), (unbatched, (6, 6))])
def test_a_norm_over_another_axis_is_not_folded(make: Any, shape: tuple[int, ...]) -> None:
    network = trained(make())
    observer = FastObserver(network, (), Fast(tolerance=1e9))
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert close(observer(inputs), Observer(network)(inputs))
    assert observer.used == PLAIN


def test_two_norms_on_one_convolution_stay() -> None:
    observer = FastObserver(trained(Small("two norms")), (), Fast(tolerance=1e9))
    assert close(observer(images()), Observer(observer.network)(images()))
    assert norms(fast_network(observer)) == 2


def test_a_norm_that_stays_keeps_its_digits_in_lower_precision() -> None:
    observer = FastObserver(trained(Small("skip")), (), Fast(precision="bf16"))
    observer(images())
    kept = [part for part in fast_network(observer).modules() if isinstance(part, nn.BatchNorm2d)]
    assert [part.running_var.dtype for part in kept if part.running_var is not None] == [torch.float32]


class Broken(nn.Conv2d):
    """Gives no numbers where its weights are in channels_last."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.weight.is_contiguous() else y * float("nan")


def test_a_copy_that_gives_nan_is_not_used(caplog: Any) -> None:
    network = nn.Sequential(Broken(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
    observer = FastObserver(network)
    assert observer(images()).logits.isfinite().all()
    assert observer.used == PLAIN
    assert "the plain network is used" in caplog.text


def test_a_teacher_that_is_compiled_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained(Small())
    observer = FastObserver(network)
    monkeypatch.setattr(fast_inference, "is_compiled", lambda part: part is network)
    observer(images())
    assert observer.used == PLAIN


def test_a_first_call_in_inference_mode_leaves_a_copy_that_training_can_use() -> None:
    observer = FastObserver(trained(Small()), ["box"])
    with torch.inference_mode():
        first = observer(images())
    assert not any(each.is_inference() for each in fast_network(observer).parameters())
    with torch.enable_grad():
        weight = torch.ones((), requires_grad=True)
        (weight * observer(images()).layers[0]).sum().backward()
    assert weight.grad is not None
    assert close(observer(images()), first)


def test_no_copy_of_weights_that_are_in_the_wanted_dtype() -> None:
    network = nn.Sequential(nn.Linear(6, 5)).bfloat16().eval()
    observer = FastObserver(network, (), Fast(precision="bf16"))
    observer(torch.randn(2, 6).bfloat16())
    assert observer.used == PLAIN


def test_images_of_one_channel_come_out_in_the_usual_layout() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    seen = FastObserver(network, ["0"])(torch.randn(2, 1, 8, 8))
    assert seen.layers[0].is_contiguous()


def test_dry_run_makes_no_copy() -> None:
    teacher = Frozen(trained(Small()))
    batch = Batch(images(), torch.zeros(3).long(), progress=Progress(0, 0))
    observer = teacher.observer
    assert isinstance(observer, FastObserver)
    teacher.is_dry_run = True
    logits = teacher(batch, {})["teacher"].logits
    teacher.is_dry_run = False
    assert observer._copy is None
    assert torch.equal(logits, teacher.network(images()))
    teacher(batch, {})
    assert observer._copy is not None
