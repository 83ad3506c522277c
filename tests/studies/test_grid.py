"""From a study to its runs: which there are, in which order, what they share, and what each is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies.grid import TEACHER_SEED, runs_of
from kdlab.studies.runs import Cell, Run
from tests.studies.small import KD, PAIR, STUDY, heard, named, resolve, runs, study

MID = "  mid: {class_path: kdlab.models.mlp, init_args: {hidden: [32]}}\n"
TWO = STUDY.replace("teachers:", f"{MID}teachers:").replace("tiny}\n", "tiny}\n  - {teacher: mid, student: tiny}\n")
BIG = {"class_path": "kdlab.models.mlp", "init_args": {"hidden": [64]}}


def cells(run: Run) -> list[tuple[str, str, int]]:
    return [(each.pair, each.method, each.seed) for each in run.cells]


def refusal(folder: Path, text: str, **changes: object) -> str:
    with pytest.raises(InputError) as refused:
        runs(folder, text, **changes)
    return str(refused.value).removeprefix(f"{folder}/study.yaml, ")


def test_teachers_go_first_then_runs_by_seed_pair_and_method(tmp_path: Path) -> None:
    assert [run.name for run in runs(tmp_path, TWO)] == [
        "teacher big",
        "teacher mid",
        "tiny, plain, seed 0",
        "big → tiny, KD, seed 0",
        "mid → tiny, KD, seed 0",
        "tiny, plain, seed 1",
        "big → tiny, KD, seed 1",
        "mid → tiny, KD, seed 1",
    ]


def test_plain_training_of_one_student_is_shared_by_its_pairs(tmp_path: Path) -> None:
    found = named(runs(tmp_path, TWO))
    for seed in (0, 1):
        assert cells(found[f"tiny, plain, seed {seed}"]) == [(PAIR, "plain", seed), ("mid → tiny", "plain", seed)]


def test_plain_training_with_options_of_a_pair_is_its_own(tmp_path: Path) -> None:
    options = "{options: {model.optimizer.init_args.lr: 0.3}, teacher: mid,"
    found = runs(tmp_path, TWO.replace("{teacher: mid,", options))
    plain = [run for run in found if run.cells and run.cells[0].method == "plain"]
    assert [cells(run) for run in plain] == [
        [(pair, "plain", seed)] for seed in (0, 1) for pair in (PAIR, "mid → tiny")
    ]
    rates = [run.config["model"]["init_args"]["optimizer"]["init_args"]["lr"] for run in plain]
    assert rates == [0.1, 0.3, 0.1, 0.3]


def test_options_are_merged_from_recipe_to_command_line(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    text = """\
    recipe: {configs: [recipe.yaml], options: {data.batch_size: 1, x.a: 1}}
    networks: {net: kdlab.models.mlp}
    pairs:
      - student: net
        configs: [kd.yaml]
        options: {data.batch_size: 2, x.b: false}
        methods: {one: {configs: [kd.yaml], options: {data.batch_size: 4, x.d: 1e-3}}}
    methods:
      one: {networks: {model.student: student}, configs: [recipe.yaml], options: {data.batch_size: 3, x.c: {k: null}}}
    """
    (run,) = runs(tmp_path, text, resolve=heard(asked), overrides=["--data.batch_size=5"])
    recipe, kd = f"--config={tmp_path / 'recipe.yaml'}", f"--config={tmp_path / 'kd.yaml'}"
    arguments = [recipe, kd, recipe, kd, "--data.batch_size=1", "--x.a=1", "--data.batch_size=2", "--x.b=false"]
    arguments += ["--model.student=torch.nn.ReLU"]  # or the recipe's own arguments would stay
    arguments += ['--model.student={"class_path": "kdlab.models.mlp"}', "--data.batch_size=3", '--x.c={"k": null}']
    assert asked == [[*arguments, "--data.batch_size=4", "--x.d=1e-3", "--data.batch_size=5"]]
    assert run.config["data"]["init_args"]["batch_size"] == 5


def test_teacher_training_ignores_options_of_pairs(tmp_path: Path) -> None:
    text = STUDY.replace("student: tiny}", "student: tiny, options: {data.batch_size: 7}}")
    text = text.replace("[recipe.yaml]", "[recipe.yaml]\n  options: {data.batch_size: 6}")
    found = named(runs(tmp_path, text, overrides=["--trainer.precision=bf16-mixed"]))
    teacher, taught = found["teacher big"], found[f"{PAIR}, KD, seed 0"]
    model = teacher.config["model"]["init_args"]
    assert (model["student"], model["teacher"]) == (BIG, None)
    assert (teacher.epochs, taught.epochs) == (6, 3)
    assert (teacher.config["data"]["init_args"]["batch_size"], taught.config["data"]["init_args"]["batch_size"]) == (
        6,
        7,
    )
    assert teacher.config["trainer"]["precision"] == taught.config["trainer"]["precision"] == "bf16-mixed"
    assert (teacher.seed, teacher.network, teacher.cells, teacher.teachers) == (TEACHER_SEED, "big", [], ())
    assert taught.teachers[0] is teacher
    assert taught.config["model"]["init_args"]["knowledge"] == KD
    assert taught.config["model"]["init_args"]["teacher"] == {
        "class_path": "kdlab.models.with_weights",
        "init_args": {"network": model["student"], "weights": f"run:{teacher.key}"},
    }
    assert taught.config["model"]["init_args"]["student"]["init_args"] == {"hidden": [8]}


def test_seeds_of_teachers_and_students(tmp_path: Path) -> None:
    text = STUDY.replace("epochs: 6", "epochs: 6, seed_everything: 17").replace("seeds: [0, 1]", "seeds: [3]")
    found = runs(tmp_path, text)
    assert [(run.seed, run.config["data"]["init_args"]["seed"]) for run in found] == [(17, 17), (3, 3), (3, 3)]
    assert [run.seed for run in runs(tmp_path, text.replace("[3]", "[8, 1]")) if run.cells] == [1, 1, 8, 8]
    fixed = runs(tmp_path, text.replace("epochs: 6", "epochs: 6, data.seed: 5"))
    assert [run.config["data"]["init_args"]["seed"] for run in fixed] == [5, 3, 3]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[recipe.yaml]", "[recipe.yaml]\n  options: {data.seed: 9}", [9, 9]),
        ("student: tiny}", "student: tiny, options: {data.seed: 9}}", [9, 9]),
        ("[kd.yaml]", "[kd.yaml], options: {data.seed: 9}", [1, 9]),
        ("student: tiny}", "student: tiny, methods: {KD: {options: {data.seed: 9}}}}", [1, 9]),
    ],
)
def test_the_data_keeps_a_seed_that_the_study_gives_it(old: str, new: str, expected: list[int], tmp_path: Path) -> None:
    found = named(runs(tmp_path, STUDY.replace(old, new)))
    two = [found["tiny, plain, seed 1"], found[f"{PAIR}, KD, seed 1"]]
    assert [run.config["data"]["init_args"]["seed"] for run in two] == expected
    teachers = found["teacher big"].config["data"]["init_args"]["seed"]
    assert teachers == (9 if old == "[recipe.yaml]" else TEACHER_SEED), "the recipe is the teachers' too"
    assert [run.seed for run in two] == [1, 1]


def test_no_option_of_the_command_line_is_lost(tmp_path: Path) -> None:
    found = runs(tmp_path, overrides=["--data.seed=9"])
    assert {run.config["data"]["init_args"]["seed"] for run in found} == {9}
    with pytest.raises(InputError, match="seed_everything"):
        runs(tmp_path, overrides=["--seed_everything=9"])


def test_methods_that_a_pair_leaves_out_or_changes(tmp_path: Path) -> None:
    text = TWO.replace("{teacher: big,", "{methods: {KD: null}, teacher: big,")
    text = text.replace("{teacher: mid,", "{methods: {KD: {options: {trainer.max_epochs: 9}}}, teacher: mid,")
    assert [run.name for run in runs(tmp_path, text)] == [
        "teacher mid",
        "tiny, plain, seed 0",
        "mid → tiny, KD, seed 0",
        "tiny, plain, seed 1",
        "mid → tiny, KD, seed 1",
    ]
    assert [run.epochs for run in runs(tmp_path, text)] == [6, 3, 9, 3, 9]


def test_seeds_of_a_method_alone(tmp_path: Path) -> None:
    text = STUDY.replace("[kd.yaml]}", "[kd.yaml], seeds: [1, 7]}")
    assert [run.name.split(", ", 1)[-1] for run in runs(tmp_path, text)] == [
        "teacher big",
        "plain, seed 0",
        "plain, seed 1",
        "KD, seed 1",
        "KD, seed 7",
    ]


def test_quoted_names_are_those_of_the_pairs_networks(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    quotes = "{x.t: $teacher.taps, x.deep: {k: [$student.taps, at $student.taps]}}"
    runs(tmp_path, STUDY.replace("[kd.yaml]", f"[kd.yaml], options: {quotes}"), resolve=heard(asked))
    (taught,) = [each for each in asked if any("--x.t" in word for word in each)]
    assert taught[-2:] == ['--x.t=["one", "two"]', '--x.deep={"k": [["one"], "at $student.taps"]}']


def test_recipe_of_teachers_may_quote_the_trained_network(tmp_path: Path) -> None:
    text = STUDY.replace("[recipe.yaml]", "[recipe.yaml]\n  options: {data.batch_size: $student.batch}")
    found = named(runs(tmp_path, text.replace("taps: [one]}", "batch: 3}").replace("taps: [one, two]", "batch: 4")))
    sizes = [found[name].config["data"]["init_args"]["batch_size"] for name in ("tiny, plain, seed 0", "teacher big")]
    assert sizes == [3, 4]


@pytest.mark.parametrize(
    ("quote", "said"),
    [
        ("$student.layers", "line 6: network 'tiny' defines no variable 'layers' (referenced as $student.layers)."),
        ("$peer.taps", "line 13: there is no network 'peer' (referenced as $peer.taps)."),
    ],
)
def test_a_quoted_name_that_is_not_there(quote: str, said: str, tmp_path: Path) -> None:
    assert said in refusal(tmp_path, STUDY.replace("[kd.yaml]", f"[kd.yaml], options: {{x: [{quote}]}}"))


def test_weights_from_a_file_take_the_place_of_a_training(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"abc"), ("b.pt", b"abc"), ("c.pt", b"abd")):
        (tmp_path / name).write_bytes(content)
    keys = []
    for name in ("a.pt", "b.pt", "c.pt"):
        found = runs_of(study(tmp_path, STUDY, {"big": tmp_path / name}), resolve)
        assert not any(run.name.startswith("teacher") or run.teachers for run in found)
        assert len(found) == 4
        taught = found[1]
        weights = taught.config["model"]["init_args"]["teacher"]["init_args"]["weights"]
        assert (taught.teachers, taught.files) == ((), {weights: tmp_path / name})
        keys.append([run.key for run in found])
    # SHA-256 of b"abc", from FIPS 180-2
    first = runs_of(study(tmp_path, STUDY, {"big": tmp_path / "a.pt"}), resolve)[1].config
    assert str(first).count("file:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 1
    assert keys[0] == keys[1], "where the file lies does not matter"
    assert [one == other for one, other in zip(keys[0], keys[2], strict=True)] == [True, False, True, False]


def test_teachers_that_come_as_their_class_paths_build_them(tmp_path: Path) -> None:
    found = runs(tmp_path, STUDY.replace("teachers:\n  options: {trainer.max_epochs: 6}\n", ""))
    assert not any(run.name.startswith("teacher") or run.teachers for run in found)
    assert found[1].config["model"]["init_args"]["teacher"] == BIG


@pytest.mark.parametrize("first", [True, False])
def test_a_teacher_may_be_the_student_of_another_pair(first: bool, tmp_path: Path) -> None:
    here, own = "  - {teacher: big, student: tiny}\n", "  - {teacher: big, student: big}\n"
    chain = STUDY.replace(here, own + here if first else here + own)
    found = runs(tmp_path, chain.replace("options: {trainer.max_epochs: 6}", "options: {seed_everything: 0}"))
    assert len({run.key for run in found}) == len(found)
    (taught,) = named(found)[f"{PAIR}, KD, seed 0"].teachers
    # Plain training of "big" with seed 0 is the teacher: trained once, and found where it is trained.
    assert any(run is taught for run in found)
    assert Cell("big → big", "plain", 0) in taught.cells


def test_an_ensemble_of_teachers_is_trained_and_given_as_a_list(tmp_path: Path) -> None:
    text = TWO.replace("{teacher: mid,", "{teacher: [mid, big],")
    found = named(runs(tmp_path, text))
    taught = found["mid + big → tiny, KD, seed 0"]
    assert [teacher.name for teacher in taught.teachers] == ["teacher mid", "teacher big"]
    assert all(teacher is found[teacher.name] for teacher in taught.teachers)
    given = taught.config["model"]["init_args"]["teacher"]
    assert [one["init_args"]["weights"] for one in given] == [f"run:{teacher.key}" for teacher in taught.teachers]
    assert [one["init_args"]["network"]["init_args"]["hidden"] for one in given] == [[32], [64]]
    assert list(found)[:2] == ["teacher big", "teacher mid"]
    assert cells(found["tiny, plain, seed 0"]) == [(PAIR, "plain", 0), ("mid + big → tiny", "plain", 0)]


def test_options_of_a_network_count_where_it_is_trained(tmp_path: Path) -> None:
    text = STUDY.replace("hidden: [64]}", "hidden: [64]}, options: {data.batch_size: 3, seed_everything: 7}")
    text = text.replace("hidden: [8]}", "hidden: [8]}, options: {data.batch_size: 4}")
    found = named(runs(tmp_path, text))
    batches = {name: run.config["data"]["init_args"]["batch_size"] for name, run in found.items()}
    assert batches == {
        "teacher big": 3,
        **{f"{name}, seed {seed}": 4 for name in ("tiny, plain", f"{PAIR}, KD") for seed in (0, 1)},
    }
    assert found["teacher big"].seed == 7
    twin = STUDY.replace("  tiny:", "  twin: {class_path: kdlab.models.mlp, init_args: {hidden: [64]}}\n  tiny:")
    same = runs(tmp_path, twin.replace("teacher: big", "teacher: [big, twin]"))
    assert len({run.key for run in same if not run.cells}) == 1, "the same network with the same seed is one training"


def test_two_cells_that_are_the_same_training_are_refused(tmp_path: Path) -> None:
    again = "  KD2: {configs: [kd.yaml]}\nseeds:"
    assert refusal(tmp_path, STUDY.replace("seeds:", again)) == (
        f"line 14: {PAIR}, KD2 is the same training as {PAIR}, KD: a cell may be here once."
    )
    twin = STUDY.replace("student: tiny}", "student: tiny}\n  - {name: twin, teacher: big, student: tiny}")
    assert f"twin, KD is the same training as {PAIR}, KD" in refusal(tmp_path, twin)
    bare = STUDY.replace("seeds:", "  bare: {networks: {model.student: student}}\nseeds:")
    assert f"line 14: {PAIR}, bare is the same training as {PAIR}, plain" in refusal(tmp_path, bare)


def test_a_recipe_of_teachers_with_a_teacher_is_refused(tmp_path: Path) -> None:
    text = STUDY.replace("max_epochs: 6", "max_epochs: 6, model.teacher: {class_path: kdlab.models.mlp}")
    assert refusal(tmp_path, text) == "line 7: the recipe of teachers has a teacher itself."


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("kdlab.models.mpl", "line 6: kdlab.models has no 'mpl'"),
        ("kdlab.modles.mlp", "line 6: kdlab has no 'modles'"),
        ("nowhere_at_all.net", "line 6: There is no module 'nowhere_at_all' for the class path 'nowhere_at_all.net'."),
        ("mlp", "line 6: There is no module 'mlp' for the class path 'mlp'."),
    ],
)
def test_unknown_network_is_refused_before_any_config_is_read(path: str, said: str, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    text = STUDY.replace("tiny: {class_path: kdlab.models.mlp", f"tiny: {{class_path: {path}")
    assert refusal(tmp_path, text, resolve=heard(asked)).startswith(said)
    assert not asked
