"""The progress bar is drawn at intervals and at the end."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from pytorch_lightning.callbacks import RichProgressBar

from kdlab import CoTrainer
from kdlab.config.progress_bar import StudentBar
from tests.modules.tiny import digits, distiller, network, trainer


@pytest.mark.parametrize(("seconds", "drawn"), [(0.04, [1, 4, 5]), (1.0, [1, 2, 3, 4, 5]), (0.0, [1, 5])])
def test_it_is_drawn_ten_times_a_second_and_at_the_end(
    seconds: float, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = RichProgressBar.on_train_batch_end

    def noted(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        seen.append(batch_idx + 1)
        original(self, trainer, module, outputs, batch, batch_idx)

    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", noted)
    times = iter(1000 + seconds * step for step in range(10**6))

    class Clock:
        monotonic = staticmethod(lambda: next(times))
        perf_counter = time.perf_counter

    monkeypatch.setattr("kdlab.config.progress_bar.time", Clock)
    file = io.StringIO()
    bar = StudentBar(console_kwargs={"file": file, "force_terminal": True, "width": 120})
    trainer(1, callbacks=[bar], enable_progress_bar=True).fit(distiller(), digits())
    assert seen == drawn
    assert "5/5" in file.getvalue()


def test_it_shows_the_accuracy_of_what_is_deployed() -> None:
    bar = StudentBar(console_kwargs={"file": io.StringIO()})
    used = trainer(1, callbacks=[bar], enable_progress_bar=True, limit_val_batches=1.0)
    module = CoTrainer({"a": network(0), "b": network(1)})
    used.fit(module, digits())
    accuracy = float(used.callback_metrics["val/deployed_accuracy"])
    assert bar.get_metrics(used, module)["deployed"] == f"{accuracy:.2%}"
    assert not [name for name in bar.get_metrics(used, module) if "/" in name and "accuracy" in name]
