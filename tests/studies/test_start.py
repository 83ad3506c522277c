"""A method that starts from the student of another method."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kdlab.errors import InputError
from kdlab.files import write_json
from kdlab.studies.ledger import FINISHED
from kdlab.studies.preflight import STAND_IN, untrained
from kdlab.studies.run_callback import STATUS
from kdlab.studies.runs import RECIPE, STUDENT
from tests.studies.small import PAIR, STUDY, named, runs
from tests.studies.test_scheduler import Fake, Study, trained

INT8 = "{class_path: kdlab.models.fake_quantized, init_args: {network: $student.start}}"
TUNED = STUDY.replace(
    "seeds:",
    f"  tuned: {{start: KD, configs: [kd.yaml]}}\n"
    f"  int8: {{start: tuned, configs: [kd.yaml], options: {{model.student: {INT8}}}}}\nseeds:",
)
TINY = {"class_path": "kdlab.models.mlp", "init_args": {"hidden": [8]}}


def test_a_run_starts_from_that_of_its_pair_and_seed(tmp_path: Path) -> None:
    found = named(runs(tmp_path, TUNED))
    for seed in (0, 1):
        kd, tuned, int8 = (found[f"{PAIR}, {method}, seed {seed}"] for method in ("KD", "tuned", "int8"))
        assert (kd.start, tuned.start, int8.start) == (None, kd, tuned)
        assert tuned.awaited == (found["teacher big"], kd)
        for run, start in ((tuned, kd), (int8, tuned)):
            started = {"network": TINY, "weights": f"run:{start.key}"}
            student = run.config["model"]["init_args"]["student"]
            if run is int8:
                assert student["class_path"] == "kdlab.models.fake_quantized"
                student = student["init_args"]["network"]
            assert student == {"class_path": "kdlab.models.with_weights", "init_args": started}
    assert len({run.key for run in found.values()}) == len(found)


def test_a_trial_needs_no_trained_start(tmp_path: Path) -> None:
    run = named(runs(tmp_path, TUNED))[f"{PAIR}, int8, seed 0"]
    student = untrained(run.config)["model"]["init_args"]["student"]
    assert student["init_args"]["network"] == {"class_path": STAND_IN, "init_args": {"network": TINY}}


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_waits_for_its_start(fails: bool, tmp_path: Path) -> None:
    study = Study(tmp_path, TUNED.replace("[0, 1]", "[0]"))
    kd, tuned = study.folder(f"{PAIR}, KD, seed 0"), study.folder(f"{PAIR}, tuned, seed 0")

    def trains(folder: Path) -> None:
        if fails and folder == kd:
            write_json(folder / STATUS, {"state": "failed", "error": "no memory"})
        else:
            trained(folder)

    outcome = study.carry_out(Fake(trains, at_once=9))
    assert study.seen[0][0] == ["teacher big", "tiny, plain, seed 0"]
    if fails:
        assert outcome[f"{PAIR}, tuned, seed 0"] == "its start failed: no memory"
        return
    ended = next(ended for running, ended in study.seen if f"{PAIR}, tuned, seed 0" in running)
    assert ended[f"{PAIR}, KD, seed 0"] == FINISHED
    assert set(outcome.values()) == {FINISHED}
    recipe = yaml.safe_load((tuned / RECIPE).read_text())
    assert recipe["model"]["init_args"]["student"]["init_args"]["weights"] == str(kd / STUDENT)


def test_a_start_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'tuned' starts from 'KD', which big → tiny does not have with seed 1"):
        runs(tmp_path, TUNED.replace("KD: {", "KD: {seeds: [0], ", 1))
