"""What a step makes of the lessons of a teaching, and what a module keeps from one fit to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import FrozenTeacher, Knowledge
from kdlab.losses import SoftTargets
from kdlab.outputs import Batch, Outputs
from kdlab.teaching import Lesson
from tests.modules.tiny import digits, distiller, network, pairs, trainer


class Halved(FrozenTeacher):
    """Lessons as a user's own teaching may give them: of half weight, and with no word of the sample index."""

    def lessons(self, outputs: Mapping[str, Outputs], batch: Batch) -> list[Lesson]:
        return [Lesson(name, self.observe(batch.inputs), 0.5) for name in outputs]


def test_a_lesson_counts_with_its_own_weight() -> None:
    values = []
    for teaching in (FrozenTeacher, Halved):
        module = distiller(knowledge={"soft": Knowledge(SoftTargets(4.0), 3.0)})
        module.teacher = teaching([network(1)])
        run = trainer()
        run.fit(module, pairs(8, 8))
        assert module.dry_run is not None
        seen = run.callback_metrics
        assert torch.allclose(seen["loss/total"], seen["loss/task"] + 3 * seen["loss/soft"])
        values.append((float(seen["loss/soft"]), module.dry_run.terms["soft"]))
    (step, rehearsed), halves = values
    assert halves == pytest.approx((step / 2, rehearsed / 2), rel=1e-6)


def test_both_sides_know_which_samples_they_are_of() -> None:
    class Indexed(nn.Module):
        needs: ClassVar[tuple[str, ...]] = ("logits", "index")

        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
            assert student.index is not None
            assert teacher.index is not None
            assert torch.equal(student.index, teacher.index)
            self.seen.append(student.index)
            return (student.logits - teacher.logits).square().mean()

    loss = Indexed()
    module = distiller(knowledge={"indexed": Knowledge(loss)})
    module.teacher = Halved([network(1)])
    trainer().fit(module, digits())
    assert torch.cat(loss.seen[1:]).unique().numel() == 160  # the first is the dry run's


def test_another_fit_of_one_module_draws_by_its_own_seed() -> None:
    module = distiller(student=network(hidden=(200,), dropout=0.5))
    masks: list[Tensor] = []
    module.student.dropout.register_forward_hook(  # type: ignore[union-attr]
        lambda net, args, output: masks.append(output == 0)
    )
    fits = []
    for seed in (1, 2, 1):
        with torch.no_grad():  # the same start for each: no unit is at 0 but by dropout
            for own, start in zip(module.student.parameters(), network(hidden=(200,)).parameters(), strict=True):
                own.copy_(start)
        pl.seed_everything(seed, verbose=False)
        masks.clear()
        trainer(max_steps=1).fit(module, pairs())
        fits.append(masks[-1])
    assert torch.equal(fits[0], fits[2])
    assert not torch.equal(fits[0], fits[1])
