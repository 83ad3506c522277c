"""Malformed input, one table: one sentence, exit code 2, no traceback, nothing written, nothing executed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from kdlab.cli import main

MLP = {"class_path": "kdlab.models.mlp", "init_args": {"in_features": 64, "hidden": [8], "num_classes": 10}}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
RECIPE: dict[str, Any] = {
    "trainer": {"max_epochs": 1, **QUIET},
    "model": {
        "class_path": "kdlab.Distiller",
        "init_args": {
            "student": MLP,
            "teacher": MLP,
            "knowledge": {"soft": {"loss": {"class_path": "kdlab.losses.SoftTargets"}, "weight": 0.5}},
        },
    },
    "data": {"class_path": "kdlab.data.Digits", "init_args": {"batch_size": 64, "train_size": 128}},
}
STUDY: dict[str, Any] = {
    "recipe": {"configs": ["kd.yaml"]},
    "networks": {"big": MLP, "tiny": MLP},
    "pairs": [{"teacher": "big", "student": "tiny"}],
    "methods": {"KD": {}},
}
CANARY = "canary"
TOUCH = {"command": f"touch {CANARY}"}
HUGE = "100000000000000000000000"


class Case(NamedTuple):
    """A command line, a part of its message, and the content of the files that it reads."""

    name: str
    said: str
    arguments: list[str]
    files: dict[str, bytes] = {}  # noqa: RUF012


def changed(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of a config with one more value; ``key`` is dotted."""
    config = copy.deepcopy(base)
    part = config
    *rest, last = key.split("/")
    for name in rest:
        part = part.setdefault(name, {})
    part[last] = value
    return config


def file(name: str, said: str, text: str | bytes, *options: str) -> Case:
    """A malformed recipe."""
    content = text if isinstance(text, bytes) else text.encode()
    return Case(name, said, ["fit", "-c", "x.yaml", *options], {"x.yaml": content})


def recipe(name: str, said: str, key: str, value: Any) -> Case:
    """A recipe with one value that is wrong."""
    return file(name, said, yaml.safe_dump(changed(RECIPE, key, value)))


def option(name: str, said: str, *options: str) -> Case:
    """A good recipe with options that are wrong."""
    return Case(name, said, ["fit", "-c", "kd.yaml", *options])


def study(name: str, said: str, key: str, value: Any) -> Case:
    """A study with one value that is wrong."""
    text = yaml.safe_dump(changed(STUDY, key, value))
    return Case(name, said, ["reproduce", "study.yaml", "--dry-run"], {"study.yaml": text.encode()})


def study_text(name: str, said: str, text: str | bytes) -> Case:
    content = text if isinstance(text, bytes) else text.encode()
    return Case(name, said, ["reproduce", "study.yaml", "--dry-run"], {"study.yaml": content})


GOOD = yaml.safe_dump(RECIPE)
ARGS = "model/init_args"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
EARLY = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor={}")
PLATEAU = ("--model.lr_scheduler=pytorch_lightning.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor={}")
ALONE = ("--model.teacher=null", "--model.knowledge={}")


def early(name: str) -> list[str]:
    return [*ALONE, *(part.format(name) for part in EARLY)]


def plateau(name: str) -> list[str]:
    return [*ALONE, *(part.format(name) for part in PLATEAU)]


TEXTS = [
    file("not_utf8", "cannot be read as text", b"trainer: {max_epochs: 1}\nmodel: \xff\xfe"),
    file("utf16", "cannot be read as text", GOOD.encode("utf-16")),
    file("zero_bytes", "cannot be read as text", b"\0\0\0\0"),
    file("anchor_of_itself", "hold themselves", "trainer: &a\n  max_epochs: *a\n"),
    file("anchor_in_model", "hold themselves", "model: &a {class_path: kdlab.Distiller, init_args: {knowledge: *a}}\n"),
    file("aliases_without_end", "more than 100,000 parts", BOMB),
    file("nested_too_deeply", "nested too deeply", "model: " + "[" * 5000),
    file("empty", "is empty", ""),
    file("only_a_comment", "is empty", "# nothing\n"),
    file("list", "a list of 2", "- 1\n- 2\n"),
    file("word", "is a str", "hello\n"),
    file("no_yaml", "line 3: this is not YAML", "trainer: {max_epochs: 1}\nmodel: {a: [1\n"),
    file("tab", "this is not YAML", "trainer:\n\tmax_epochs: 1\n"),
    file("unknown_alias", "this is not YAML", "trainer: *nobody\n"),
    file("key_twice", "'trainer' is here twice", GOOD + "trainer: {max_epochs: 2}\n"),
    file(
        "inner_key_twice",
        "'max_epochs' is here twice",
        GOOD.replace("  max_epochs: 1", "  max_epochs: 1\n  max_epochs: 2"),
    ),
    file(
        "python_apply",
        "python/object/apply:os.system",
        f"trainer: !!python/object/apply:os.system ['touch {CANARY}']\n",
    ),
    file("python_name", "python/name:os.system", "model: !!python/name:os.system\n"),
    file("two_documents", "this is not YAML", f"{GOOD}---\n{GOOD}"),
    file("part_without_model", "names no model", "model: {init_args: {task_weight: 0}}\n"),
    file("date", "put it in quotes", "model: 2024-13-45\n"),
]
KEYS = [
    recipe("unknown_key", "(did you mean 'max_epochs'?)", "trainer/max_epoch", 3),
    recipe("unknown_root", "(did you mean 'trainer'?)", "trainr/max_epochs", 3),
    recipe("option_of_the_loss", "(did you mean 'model.knowledge.NAME.loss", f"{ARGS}/knowledge/soft/temperature", 2),
    recipe("loss_as_knowledge", "NAME.loss=kdlab.losses.DKD", f"{ARGS}/knowledge/dkd", "kdlab.losses.DKD"),
    file("knowledge_3", "must be a plain word, not 3", GOOD.replace("soft:", "3:")),
    recipe("knowledge_reserved", "not 'total'", f"{ARGS}/knowledge/total", {"loss": "kdlab.losses.SoftTargets"}),
    recipe("knowledge_dotted", "not 'a.b'", f"{ARGS}/knowledge/a.b", {"loss": "kdlab.losses.SoftTargets"}),
    recipe("knowledge_without_loss", "loss", f"{ARGS}/knowledge/mine", {"weight": 1.0}),
    recipe("unknown_teacher", "Knowledge 'soft': no edge has the teacher", f"{ARGS}/knowledge/soft/teachers", ["clip"]),
    recipe("unknown_layer", "knowledge 'soft' reads: MLP has no layer", f"{ARGS}/knowledge/soft/student_layers", ["l"]),
    recipe("student_missing", "student", "model", {"class_path": "kdlab.Distiller"}),
    recipe("student_null", "student", f"{ARGS}/student", None),
    recipe("weights_that_differ", "all 10 classes", f"{ARGS}/task", {
        "class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [1, 2]}}),
    recipe("weights_of_text", "weight", f"{ARGS}/task", {
        "class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": ["a"]}}),
    recipe("group_of_nothing", "Parameter group 'nix'", f"{ARGS}/parameter_groups", {"nix": {"lr": 0.1}}),
]  # fmt: skip
NUMBERS = [
    option("seed_1e23", "seed_everything", "--seed_everything=1e23"),
    option("seed_too_large", "from 0 to 4294967295", f"--seed_everything={HUGE}"),
    option("seed_negative", "from 0 to 4294967295", "--seed_everything=-1"),
    option("width_too_large", "hidden is 1e+23", f"--model.student.hidden=[{HUGE}]"),
    option("width_without_memory", "allocate memory", "--model.student.hidden=[10000000000000]"),
    option("width_negative", "-5", "--model.student.hidden=[-5]"),
    option("batch_too_large", "batch_size is 1e+23", f"--data.batch_size={HUGE}"),
    option("batch_0", "batch_size must be a whole number", "--data.batch_size=0"),
    option("epochs_0", "trainer.max_epochs is 0", "--trainer.max_epochs=0"),
    option("steps_0", "trainer.max_steps is 0", "--trainer.max_steps=0"),
    option("batches_0", "limit_train_batches is 0", "--trainer.limit_train_batches=0"),
    option("epochs_nan", "max_epochs: expected a whole number", "--trainer.max_epochs=.nan"),
    option("epochs_minus_5", "max_epochs", "--trainer.max_epochs=-5"),
    option("weight_nan", "finite number", "--model.knowledge.soft.weight=.nan"),
    option("weight_inf", "finite number", "--model.knowledge.soft.weight=.inf"),
    option("temperature_0", "temperature", "--model.knowledge.soft.loss.temperature=0"),
    option("classes_differ", "10 classes and the teacher 7", "--model.teacher.num_classes=7"),
    option("classes_too_few", "labels go from", "--model.student.num_classes=3", "--model.teacher=null",
           "--model.knowledge={}"),
    option("devices_too_many", "devices", "--trainer.devices=0"),
    option("precision_unknown", "precision", "--trainer.precision=7"),
]  # fmt: skip
MONITORS = [
    option("early_without_val", "the nearest are 'val/student_accuracy'", *early("student_accuracy")),
    option("early_unknown", "watches 'val/acc', which is not logged", *early("val/acc")),
    option("early_without_sanity_check", "watches 'val/acc'", *early("val/acc"), "--trainer.num_sanity_val_steps=0"),
    option("early_without_validation", "there is no validation", *early("val/loss"), "--trainer.limit_val_batches=0"),
    option("early_other_term", "watches 'loss/sotf'", *early("loss/sotf")),
    option("checkpoint_unknown", "ModelCheckpoint watches 'acc'", "--checkpoint.monitor=acc"),
    option("plateau_unknown", "The scheduler watches 'acc'", *plateau("acc")),
    option("plateau_val_unknown", "The scheduler watches 'val/acc'", *plateau("val/acc")),
]
OPTIONS = [
    option("group_unknown", "Parameter group 'student.nix'", "--model.parameter_groups.student.nix.lr=0.1"),
    option("key_twice_in_an_option", "'a' is here twice", "--model.parameter_groups={a: {lr: 1}, a: {lr: 2}}"),
    option("key_twice_in_a_part", "'hidden' is here twice", "--model.student=part.yaml"),
    option("option_without_value", "trainer.max_epochs", "--trainer.max_epochs"),
    option("unknown_class", "did you mean 'Distiller'", "--model=kdlab.Distillr"),
    option("unknown_module", "no module 'my_los'", "--model.knowledge.soft.loss=my_los.A"),
    option("no_module_at_all", "", "--model.knowledge.soft.loss=..."),
    option("broken_file", "broken.py, line 1", "--model.knowledge.soft.loss=broken.Loss"),
    option("optimizer_as_loss", "torch.optim.SGD is no Module", "--model.knowledge.soft.loss=torch.optim.SGD"),
    option("folder_is_a_file", "Not a directory", "--trainer.logger.save_dir=kd.yaml"),
    option("folder_cannot_be_made", "cannot be made", "--trainer.logger.save_dir=/proc/none"),
    option("barebones_with_logs", "barebones", "--trainer.barebones=true", "--trainer.log_every_n_steps=5"),
    option("checkpoint_gone", "There is no checkpoint 'gone.ckpt'", "--ckpt_path=gone.ckpt"),
    option("weights_gone", "no weights file", "--model.teacher.weights=gone.safetensors"),
    Case("config_gone", "gone.yaml", ["fit", "-c", "gone.yaml"]),
    Case("no_config", "there is no model to train", ["fit"]),
    Case("unknown_command", "the nearest are 'fit'", ["fti"]),
    Case("check_unknown_key", "did you mean", ["check", "kd.yaml", "--trainer.max_epoch=1"]),
    Case("layers_unknown", "resnet", ["layers", "kdlab.models.resnet9x9"]),
    Case("layers_input", "--input must be numbers", ["layers", "kdlab.models.mlp", "--input=a,b"]),
    Case("methods_family", "There is no family", ["methods", "--family=magic"]),
    Case("export_nothing", "There is no run 'gone'", ["export", "gone"]),
    Case("demo_0", "must be at least 1", ["demo", "--seeds=0"]),
]


def spec(class_path: str, /, **init_args: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}


STDLIB = "a config cannot name Python's own modules"
LOADS = "what runs code or reads pickles"
BUILDS = "a config builds networks"
WRITE = spec("kdlab.files.write_text", path=CANARY, text="")
MEMMAP = spec("numpy.memmap", filename=CANARY, mode="w+", shape=3)
SYSTEM = json.dumps(spec("os.system", **TOUCH))
KNOWLEDGE = f"{ARGS}/knowledge/soft"
DANGEROUS = [
    recipe("system_as_optimizer", STDLIB, f"{ARGS}/optimizer", spec("os.system", **TOUCH)),
    recipe("popen_as_optimizer", STDLIB, f"{ARGS}/optimizer", spec("subprocess.Popen", args=["touch", CANARY])),
    recipe("exec_as_optimizer", STDLIB, f"{ARGS}/optimizer", spec("builtins.exec", source=f"open('{CANARY}', 'w')")),
    recipe("pickle_as_optimizer", STDLIB, f"{ARGS}/optimizer", spec("pickle.loads", data="x")),
    recipe("rmtree_as_optimizer", STDLIB, f"{ARGS}/optimizer", spec("shutil.rmtree", path=".")),
    recipe("reexported_system", STDLIB, f"{ARGS}/optimizer", spec("torch.os.system", **TOUCH)),
    recipe("torch_load_as_optimizer", LOADS, f"{ARGS}/optimizer", spec("torch.load", f="evil.pkl", weights_only=False)),
    recipe("hub_as_optimizer", LOADS, f"{ARGS}/optimizer", spec("torch.hub.load", repo_or_dir=".", model="evil")),
    recipe("kdlab_function_as_optimizer", BUILDS, f"{ARGS}/optimizer", WRITE),
    recipe("system_as_scheduler", STDLIB, f"{ARGS}/lr_scheduler", spec("os.system", **TOUCH)),
    recipe("kdlab_function_as_scheduler", BUILDS, f"{ARGS}/lr_scheduler", WRITE),
    recipe("system_as_student", STDLIB, f"{ARGS}/student", spec("os.system", **TOUCH)),
    recipe("hub_as_teacher", LOADS, f"{ARGS}/teacher", spec("torch.hub.load", repo_or_dir=".", model="evil")),
    recipe("jit_as_teacher", LOADS, f"{ARGS}/teacher", spec("torch.jit.load", f="evil.pkl")),
    recipe("checkpoint_as_model", "load_from_checkpoint", "model", spec(
        "kdlab.Distiller.load_from_checkpoint", checkpoint_path="evil.pkl")),
    recipe("eval_in_a_loss", STDLIB, f"{KNOWLEDGE}/loss", spec("builtins.eval", source="1")),
    recipe("system_in_a_loss_in_a_loss", STDLIB, f"{KNOWLEDGE}/loss", spec(
        "kdlab.losses.LogitStandardization", loss=spec("os.system", **TOUCH))),
    recipe("system_as_schedule", STDLIB, f"{KNOWLEDGE}/schedule", spec("os.system", **TOUCH)),
    recipe("system_in_a_network", STDLIB, f"{ARGS}/student", spec(
        "kdlab.models.with_weights", network=spec("os.system", **TOUCH), weights="x")),
    recipe("system_in_callbacks", STDLIB, "trainer/callbacks", [spec("os.system", **TOUCH)]),
    recipe("system_in_a_callback", STDLIB, "trainer/callbacks", [spec(
        "pytorch_lightning.callbacks.LambdaCallback", on_train_start="os.system")]),
    recipe("partial_in_a_callback", STDLIB, "trainer/callbacks", [spec(
        "pytorch_lightning.callbacks.LambdaCallback", on_fit_start=spec("functools.partial", func="os.system"))]),
    recipe("memmap_in_a_callback", BUILDS, "trainer/callbacks", [spec(
        "pytorch_lightning.callbacks.LambdaCallback", on_fit_start=WRITE)]),
    recipe("popen_as_logger", STDLIB, "trainer/logger", spec("subprocess.Popen", args=["touch", CANARY])),
    recipe("system_as_strategy", STDLIB, "trainer/strategy", spec("os.system", **TOUCH)),
    recipe("system_as_plugin", STDLIB, "trainer/plugins", [spec("os.system", **TOUCH)]),
    recipe("system_as_profiler", STDLIB, "trainer/profiler", spec("os.system", **TOUCH)),
    recipe("system_as_data", STDLIB, "data", spec("os.system", **TOUCH)),
    recipe("system_in_a_mixing", STDLIB, "data/init_args/mixing", spec("os.system", **TOUCH)),
    recipe("system_as_ensemble", STDLIB, f"{ARGS}/ensemble", spec("os.system", **TOUCH)),
    recipe("memmap_in_a_group", BUILDS, f"{ARGS}/parameter_groups", {"student": MEMMAP}),
    recipe("system_in_a_group", STDLIB, f"{ARGS}/parameter_groups", {"student": {"lr": spec("os.system", **TOUCH)}}),
    option("system_in_an_option", STDLIB, "--model.optimizer=os.system", f"--model.optimizer.command=touch {CANARY}"),
    option("json_option", STDLIB, f"--model.optimizer={SYSTEM}"),
    Case("system_as_layers", STDLIB, ["layers", "os.system", f"--command=touch {CANARY}"]),
    Case("system_in_layers", STDLIB, ["layers", "kdlab.models.with_weights", f"--network={SYSTEM}"]),
    study("study_system_as_network", STDLIB, "networks/tiny", spec("os.system", **TOUCH)),
    study("study_hub_as_network", LOADS, "networks/big", spec("torch.hub.load", repo_or_dir=".", model="evil")),
    study("study_system_in_options", STDLIB, "methods/KD/options", {"model.optimizer": spec("os.system", **TOUCH)}),
    study("study_module_with_effects", STDLIB, "networks/tiny", "antigravity.fly"),
]  # fmt: skip
STUDIES = [
    study_text("study_not_utf8", "cannot be read as text", b"title: \xff"),
    study_text("study_empty", "a study has networks", ""),
    study_text("study_list", "the study is a mapping", "- 1\n"),
    study_text("study_key_twice", "'seeds' is here twice", yaml.safe_dump(STUDY) + "seeds: [0]\nseeds: [1]\n"),
    study_text(
        "study_python_tag", "python/object/apply", f"title: !!python/object/apply:os.system ['touch {CANARY}']\n"
    ),
    study_text("study_python_name", "python/name:os.system", "title: !!python/name:os.system\n"),
    study_text("study_anchor", "hold themselves", "title: &a [*a]\n"),
    study("study_unknown_key", "has no 'metods'", "metods", {}),
    study("study_seed_text", "seeds is a list of whole numbers", "seeds", ["a"]),
    study("study_seed_huge", "from 0 to 4294967295", "seeds", [int(HUGE)]),
    study("study_recipe_gone", "there is no file 'gone.yaml'", "recipe/configs", ["gone.yaml"]),
    study("study_unknown_network", "there is no network 'huge'", "pairs", [{"teacher": "huge", "student": "tiny"}]),
    study("study_unknown_option", "did you mean", "methods/KD/options", {"trainer.max_epoch": 3}),
    Case("study_gone", "There is no study", ["reproduce", "gone"]),
    Case("study_option", "unknown key 'outt'", ["report", "study.yaml", "--outt=x"]),
]
CASES = [*TEXTS, *KEYS, *NUMBERS, *MONITORS, *OPTIONS, *DANGEROUS, *STUDIES]
"""Other kinds of input, such as checkpoints, are added here."""
ALWAYS = {
    *("not_utf8", "anchor_of_itself", "key_twice", "unknown_key", "knowledge_3", "unknown_teacher", "seed_too_large"),
    *("batch_too_large", "epochs_0", "early_without_val", "early_without_sanity_check", "folder_is_a_file"),
    *("system_as_optimizer", "kdlab_function_as_optimizer", "checkpoint_as_model", "study_system_as_network"),
    *("system_in_layers", "memmap_in_a_group"),
}
"""Those that are tried in every ``make test``: one for each mechanism."""


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[] if case.name in ALWAYS else pytest.mark.full) for case in CASES]
)
def test_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    evil = f"import os\ndef evil():\n    os.system('touch {CANARY}')\n"
    part = "class_path: kdlab.models.mlp\ninit_args: {in_features: 64, hidden: [8], hidden: [9], num_classes: 10}\n"
    files = {"kd.yaml": GOOD, "hubconf.py": evil, "broken.py": "def (\n", "part.yaml": part}
    files |= {"study.yaml": yaml.safe_dump(STUDY)}
    for name, content in {**{name: text.encode() for name, text in files.items()}, **case.files}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "evil.pkl").write_bytes(f"cos\nsystem\n(S'touch {CANARY}'\ntR.".encode())
    before = tree(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(case.arguments)
    err = capsys.readouterr().err
    assert (stop.value.code, "Traceback" in err) == (2, False), err
    message = " ".join(err.splitlines()[-1].split())
    assert message.startswith(f"kdlab {case.arguments[0]}: ")
    assert case.said in message
    assert tree(tmp_path) == before


def test_a_hundred() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)
    assert {case.name for case in CASES} >= ALWAYS
