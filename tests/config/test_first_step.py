"""first_step: fit up to the first step."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.config.first_step import fit_to_first_step
from kdlab.config.lightning_cli import QUIET, build
from tests.config.test_lightning_cli import work  # noqa: F401


@pytest.mark.filterwarnings("ignore:The teacher is right on")
@pytest.mark.parametrize(("option", "size"), [([], 10), (["--data.eval_batch_size=4"], 4)])
def test_everything_is_set_up_and_nothing_trained(
    option: list[str],
    size: int,
    work: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(work)
    cli = build(["-c", "kd.yaml", *QUIET, *option], run=False, save_config=False)
    sizes, steps = list[int](), list[int]()
    cli.model.student.register_forward_hook(
        lambda module, inputs, output: None if module.training else sizes.append(len(output))
    )
    fit_to_first_step(cli, lambda: steps.append(cli.trainer.global_step))
    assert steps == [0]
    assert sizes[-2:] == [size, size]  # the validation, after the dry run
    assert cli.model.dry_run is not None
    assert cli.trainer.global_step == 0
    assert not (work / "runs").exists()
