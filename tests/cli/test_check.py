"""check: one dry batch, its tables, its warnings, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.cli import main
from tests.cli.test_trainer import work  # noqa: F401


def test_check_shows_parts_taps_terms_and_memory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    main(
        ["check", "kd.yaml", "--model.knowledge.soft.weight=0.5", '--model.knowledge.mine.student_layers=["hidden.0"]']
    )
    said = " ".join(capsys.readouterr().out.split())
    weights = 64 * 16 + 16 + 16 * 10 + 10
    assert f"student │ MLP │ {weights:,} │ {weights:,}" in said
    assert f"teacher │ MLP (frozen) │ {weights:,} │ 0" in said
    assert "student │ hidden.0 │ 16" in said
    assert "teacher │ hidden.0 │ 16" in said
    assert "soft │ SoftTargets" in said
    assert "activations of 128 samples" in said
    assert "The teacher is right on" in said, "an untrained teacher has to be noticed before training"
    assert not (work / "runs").exists()


def test_check_refuses_what_fit_refuses(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    with pytest.raises(SystemExit):
        main(["check", "kd.yaml", '--model.knowledge.soft.student_layers=["hiden.0"]'])
    assert "has no layer 'hiden.0'; the nearest names are 'hidden.0'" in capsys.readouterr().err


def test_memory_counts_adam_twice_as_sgd_with_momentum(work: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    wide = "--model.student.hidden=[4096]"
    main(["check", "kd.yaml", wide])
    sgd = capsys.readouterr().out.split("optimiser ")[1].split(",")[0]
    main(["check", "kd.yaml", wide, "--model.optimizer=torch.optim.AdamW"])
    adam = capsys.readouterr().out.split("optimiser ")[1].split(",")[0]
    assert float(adam) == pytest.approx(2 * float(sgd), rel=0.05)
    assert float(sgd) == pytest.approx((64 * 4096 + 4096 + 4096 * 10 + 10) * 4 / 2**20, abs=0.06)
