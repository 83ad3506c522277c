"""Which runs are the same: whatever changes a result changes the identity, and where and how it is watched does not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import kdlab
from kdlab.errors import InputError
from kdlab.studies import preflight as trial
from kdlab.studies import run_id as identity
from kdlab.studies.run_id import canonical, digest, of_config
from tests.studies.small import PAIR, STUDY, base, named, runs

Put = tuple[str, Any]
CACHE = {"class_path": "kdlab.teaching.TeacherCache", "init_args": {"folder": "one", "dtype": "float16"}}


def changed(*puts: Put) -> dict[str, Any]:
    """The small config with values at dotted paths."""
    config = base()
    for path, value in puts:
        *names, last = path.split(".")
        inside: Any = config
        for name in names:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return config


SAME = [
    ("trainer.logger", [{"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": {"project": "x"}}]),
    ("trainer.logger", False),
    ("trainer.enable_progress_bar", False),
    ("trainer.enable_model_summary", False),
    ("trainer.log_every_n_steps", 1),
    ("trainer.profiler", "simple"),
    ("trainer.default_root_dir", "elsewhere"),
    ("trainer.accelerator", "gpu"),
    ("trainer.strategy", "ddp"),
    ("trainer.devices", 4),
    ("trainer.num_nodes", 2),
    ("trainer.plugins", ["x"]),
    ("checkpoint.dirpath", "elsewhere"),
    ("ckpt_path", "last.ckpt"),
    ("data.init_args.root", "/elsewhere"),
    ("data.init_args.download", True),
    ("data.init_args.num_workers", 7),
    ("data.init_args.eval_batch_size", 7),
    ("data.init_args.cache", "elsewhere"),
]
OTHER = [
    ("seed_everything", 1),
    ("trainer.max_epochs", 3),
    ("trainer.max_steps", 3),
    ("trainer.precision", "bf16-mixed"),
    ("trainer.accumulate_grad_batches", 2),
    ("trainer.gradient_clip_val", 1.0),
    ("trainer.callbacks", [{"class_path": "pytorch_lightning.callbacks.StochasticWeightAveraging"}]),
    ("model.class_path", "kdlab.CoTrainer"),
    ("model.init_args.student", {"class_path": "kdlab.models.mlp"}),
    ("model.init_args.task_weight", 0.1),
    ("model.init_args.optimizer.init_args.lr", 0.1 + 1e-16),
    ("model.init_args.optimizer.class_path", "torch.optim.Adam"),
    ("model.init_args.teacher_cache", CACHE),
    ("data.class_path", "kdlab.data.CIFAR100"),
    ("data.init_args.batch_size", 51),
    ("data.init_args.seed", 1),
    ("data.init_args.train_size", 100),
    ("data.init_args.validation", 100),
]


@pytest.mark.parametrize("put", SAME, ids=str)
def test_what_is_seen_of_a_run_and_where_it_is_does_not_count(put: Put) -> None:
    assert of_config(changed(put)) == of_config(base())


@pytest.mark.parametrize("put", OTHER, ids=str)
def test_what_changes_a_result_counts(put: Put) -> None:
    assert of_config(changed(put)) != of_config(base())


def test_every_change_is_another_run() -> None:
    assert len({of_config(changed(put)) for put in OTHER}) == len(OTHER)


def test_cache_folder_is_no_part_of_the_identity() -> None:
    def cached(**options: Any) -> str:
        known = {"class_path": CACHE["class_path"], "init_args": {"folder": "one", "dtype": "float16", **options}}
        return of_config(changed(("model.init_args.teacher_cache", known)))

    assert cached() == cached(folder="two")
    assert len({cached(), cached(dtype="float32"), cached(top_k=10)}) == 3
    flat = [of_config(changed(("model.init_args.teacher_cache", {"folder": name, "views": 3}))) for name in "ab"]
    assert flat[0] == flat[1] != cached()


def test_the_config_is_left_as_it_was() -> None:
    config = changed(("model.init_args.teacher_cache", json.loads(json.dumps(CACHE))))
    before = json.dumps(config)
    canonical(config)
    of_config(config)
    assert json.dumps(config) == before


def test_the_order_of_keys_does_not_count() -> None:
    config = base()
    turned = {key: config[key] for key in reversed(config)}
    turned["trainer"] = dict(reversed(config["trainer"].items()))
    assert of_config(turned) == of_config(config)


def test_a_digest_is_that_of_the_json_text() -> None:
    expected = hashlib.sha256(b'["a", {"b": [1, 0.1], "c": null}]').hexdigest()
    assert digest("a", {"c": None, "b": [1, 0.1]}) == expected[:12]
    assert digest("ab", "c") != digest("a", "bc")


def test_the_version_of_kdlab_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of_config(base())
    monkeypatch.setattr(kdlab, "__version__", "0.0.0")
    assert of_config(base()) != before


@pytest.mark.full
def test_it_is_the_same_in_every_process(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"own_{name}.py").write_text(f"class Net:\n    size = '{name}'\n")
    code = """
    from kdlab.studies.run_id import of_config
    paths = [{"class_path": f"own_{name}.Net"} for name in "fbadce"]
    print(of_config({"trainer": {}, "model": {"nets": paths, "again": paths[:3]}}))
    """
    said = set()
    for seed in "12":
        path = os.pathsep.join([str(tmp_path), str(Path(kdlab.__file__).parent.parent)])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        said.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(said) == 1
    assert len(said.pop().strip()) == 12


def test_teacher_recipe_changes_the_identity_of_its_students(tmp_path: Path) -> None:
    before, after = named(runs(tmp_path)), named(runs(tmp_path, STUDY.replace("epochs: 6", "epochs: 7")))
    assert {name for name in before if before[name].key != after[name].key} == {
        "teacher big",
        f"{PAIR}, KD, seed 0",
        f"{PAIR}, KD, seed 1",
    }


def test_the_data_counts(tmp_path: Path) -> None:
    run = runs(tmp_path)[0]
    assert run.identity("one") != run.identity("two")
    assert run.identity("one") == digest(run.key, "one")
    assert run.folder(tmp_path, "one") != run.folder(tmp_path, "two")


def test_what_a_class_path_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity.named("kdlab.Distiller.forward") is kdlab.Distiller.forward
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "timm_like_nets.py").write_text("import timm_like\n")
    (tmp_path / "odd_nets.py").write_text("import os\n\nraise ValueError('odd')\n")
    (tmp_path / "cut_nets.py").write_text("def net(\n    return 1\n")
    for name, said in (
        ("timm_like", r"timm_like_nets\.py, line 1: ModuleNotFoundError: No module named 'timm_like'\.$"),
        ("odd", r"odd_nets\.py, line 3: ValueError: odd\.$"),
        ("cut", r"cut_nets\.py, line 1: '\(' was never closed\.$"),
    ):
        with pytest.raises(InputError, match=said):
            identity.named(f"{name}_nets.net")
    for path, said in (
        ("kdlab.Distil", "kdlab has no 'Distil'; the nearest are 'Distiller'"),
        ("no_such.Thing", "There is no module 'no_such'"),
    ):
        with pytest.raises(InputError, match=said):
            identity.named(path)


GIVEN = [
    "--model=kdlab.Distiller",
    '--model.student={"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "num_classes": 10}}',
    "--model.optimizer=torch.optim.SGD",
    "--model.optimizer.lr=0.1",
]


def test_of_a_resolved_config_too_only_what_counts_is_kept(tmp_path: Path) -> None:
    given = ["--model=kdlab.Distiller", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    given.append(
        '--model.student={"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "num_classes": 10}}'
    )
    place = ["--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.logger=false", "--checkpoint.monitor=x"]
    seen = ["--trainer.enable_progress_bar=false", "--data.eval_batch_size=100", "--trainer.default_root_dir=x"]
    one, other = trial.resolve(GIVEN), trial.resolve([*GIVEN, *place, *seen])
    assert one != other
    assert of_config(one) == of_config(other)
    assert str(tmp_path) not in json.dumps(canonical(one))


@pytest.mark.parametrize("flat", [True, False])
def test_new_option_counts_only_where_it_is_set(flat: bool) -> None:
    def key(**more: Any) -> str:
        options = {"loss": {"class_path": "kdlab.losses.SoftTargets"}, "weight": 0.9, **more}
        return of_config(changed(("model.init_args.knowledge", {"kd": options if flat else {"init_args": options}})))

    assert key() == key(teachers=None) == key(teachers=[])
    assert key() != key(teachers=["one"])
    assert key(teachers=["one"]) != key(teachers=["two"])
