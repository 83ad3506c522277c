"""Study files: what one says, and that every mistake in it is refused with its file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdlab.errors import InputError
from kdlab.studies.study_file import read
from tests.studies.small import STUDY, study, write


def test_what_a_study_says(tmp_path: Path) -> None:
    found = study(tmp_path / "small")
    assert (found.name, found.title, found.note) == ("small", "Small networks", "")
    assert found.folder == tmp_path / "small"
    assert found.recipe.configs == (tmp_path / "small" / "recipe.yaml",)
    assert found.teachers is not None
    assert found.teachers.options == {"trainer.max_epochs": 6}
    (pair,) = found.pairs
    assert (pair.name, pair.roles["teacher"].name, pair.roles["student"].name) == ("big → tiny", "big", "tiny")
    assert pair.roles["teacher"].build == {"class_path": "kdlab.models.mlp", "init_args": {"hidden": [64]}}
    assert pair.roles["teacher"].quoted == {"taps": ["one", "two"]}
    plain, kd = found.methods
    assert (plain.name, plain.networks, plain.seeds, plain.taught) == (
        "plain",
        {"model.student": "student"},
        (0, 1),
        False,
    )
    assert kd.networks == {"model.student": "student", "model.teacher": "teacher"}
    assert (kd.part.configs, kd.taught) == ((tmp_path / "small" / "kd.yaml",), True)
    assert (found.baseline, found.reference, found.published, found.weights) == ("plain", None, None, {})


def test_a_part_of_a_study(tmp_path: Path) -> None:
    whole = study(tmp_path / "small")
    assert [method.name for method in whole.part(methods=["KD"]).methods] == ["KD"]
    assert whole.part(["big → tiny"]) == whole.part() == whole
    with pytest.raises(InputError, match="has no pair 'big'; the nearest are 'big → tiny'"):
        whole.part(["big"])
    with pytest.raises(InputError, match="has no method 'AT'"):
        whole.part(methods=["KD", "AT"])


def test_a_study_is_named_by_its_folder_or_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "folder")
    assert read(path).name == read(path.parent).name == "folder"
    assert read(path.rename(path.with_name("other.yaml"))).name == "other"


def test_files_are_relative_to_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "here" / "deep", STUDY.replace("[kd.yaml]", "[../up.yaml]"))
    (tmp_path / "here" / "up.yaml").write_text("")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert read(path).methods[1].part.configs == (tmp_path / "here" / "up.yaml",)
    # Relative to the working directory where it lies in there: a resolved config is the same in every checkout.
    monkeypatch.chdir(tmp_path)
    assert read(path).methods[1].part.configs == (Path("here/up.yaml"),)


def test_what_may_be_left_out(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        """\
        networks: {net: kdlab.models.mlp}
        pairs: [{student: net, options: {trainer.max_epochs: 1}}]
        methods:
          alone: {networks: {model.student: student}}
        """,
    )
    (pair,), (method,) = found.pairs, found.methods
    assert (pair.name, pair.part.options, pair.methods) == ("net", {"trainer.max_epochs": 1}, {})
    assert (pair.roles["student"].build, method.seeds) == ({"class_path": "kdlab.models.mlp"}, (0,))
    assert (found.teachers, found.recipe.configs, found.recipe.options, found.title) == (None, (), {}, "")
    assert found.baseline == "alone"


def test_pairs_seeds_and_roles_of_their_own(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        """\
        networks: {a: kdlab.models.mlp, b: kdlab.models.mlp, c: kdlab.models.mlp}
        pairs:
          - {student: a, peer: b, teacher: c}
          - name: slow
            student: a
            peer: b
            teacher: c
            configs: [recipe.yaml]
            options: {x: 1}
            methods: {KD: {options: {y: 2}, configs: [kd.yaml]}, plain: null}
        methods:
          plain: {networks: {model.student: student}, seeds: [4, 3]}
          DML: {networks: {model.networks.one: student, model.networks.two: peer}}
          KD: {}
        baseline: DML
        reference: KD
        seeds: [5]
        note: Of two sentences.
        paper: nothing reads this
        """,
    )
    first, second = found.pairs
    assert (first.name, second.name) == ("c → b → a", "slow")  # the teacher first, the student last
    assert second.methods["plain"] is None
    special = second.methods["KD"]
    assert special is not None
    assert (special.options, special.configs) == ({"y": 2}, (tmp_path / "kd.yaml",))
    assert (second.part.options, second.part.configs) == ({"x": 1}, (tmp_path / "recipe.yaml",))
    assert [method.seeds for method in found.methods] == [(4, 3), (5,), (5,)]
    assert [method.taught for method in found.methods] == [False, False, True]
    assert (found.baseline, found.reference, found.note) == ("DML", "KD", "Of two sentences.")


def test_weights_of_teachers_from_the_study_and_from_outside(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_text("a")
    (tmp_path / "b.pt").write_text("b")
    text = STUDY.replace("teachers:\n", "teachers:\n  weights: {big: a.pt}\n")
    assert study(tmp_path, text).weights == {"big": tmp_path / "a.pt"}
    assert study(tmp_path, text, {"big": tmp_path / "b.pt"}).weights == {"big": tmp_path / "b.pt"}
    with pytest.raises(InputError, match="has no network 'bog'; the nearest are 'big'"):
        study(tmp_path, text, {"bog": tmp_path / "b.pt"})


MISTAKES = [
    ("recipe.yaml]", "recipes.yaml]", 3, "there is no file 'recipes.yaml' (looked for '{folder}/recipes.yaml')"),
    ("recipe.yaml]", "recipe.yaml,\n    more.yaml]", 4, "there is no file 'more.yaml'"),
    ("[kd.yaml]", "[7]", 13, "this is the path of a file, not 7"),
    ("[kd.yaml]", "kd.yaml", 13, "configs is a list of files"),
    ("  configs: [recipe.yaml]", "  config: [recipe.yaml]", 3, "recipe has no 'config'; the nearest are 'configs'"),
    (
        "recipe:\n  configs: [recipe.yaml]\n",
        "recipe: recipe.yaml\n\n",
        2,
        "recipe is a mapping of names, not 'recipe.yaml'",
    ),
    ("title:", "tittle:", 1, "the study has no 'tittle'; the nearest are 'title'"),
    ("KD: {configs", "KD: {option", 13, "methods.KD has no 'option'; the nearest are 'options'"),
    ("  big: {class_path: kdlab.models.mlp, ", "  big: {", 5, "the network 'big' has a class_path, such as "),
    (
        "  big: {class_path: kdlab.models.mlp, ",
        "  big: {class_path: [kdlab], ",
        5,
        "the network 'big' has a class_path",
    ),
    ("teachers:\n", "teachers:\n  weights: {bug: a.pt}\n", 8, "there is no network 'bug'; the nearest are 'big'"),
    ("teachers:\n", "teachers:\n  weights: {big: a.pt}\n", 8, "there is no file 'a.pt'"),
    ("teachers:\n", "teachers:\n  weight: {}\n", 8, "teachers has no 'weight'; the nearest are 'weights'"),
    ("teacher: big", "teacher: bgi", 10, "there is no network 'bgi'; the nearest are 'big'"),
    ("teacher: big", "teacher: {class_path: kdlab.models.mlp}", 10, "there is no network {'class_path': "),
    ("teacher: big", "teacher: [big, bgi]", 10, "there is no network 'bgi'; the nearest are 'big'"),
    ("student: tiny}", "student: [tiny]}", 10, "a role is one network; only a teacher may be a list of them"),
    ("teacher: big", "teacher: []", 10, "a role is one network"),
    ("teacher: big, ", "", 10, "this pair names no 'teacher', which 'KD' needs"),
    ("{teacher: big, student: tiny}", "tiny", 10, "pairs.0 is a mapping of names, not 'tiny'"),
    ("  - {teacher: big, student: tiny}", "  a: {teacher: big, student: tiny}", 9, "pairs is a list, such as"),
    ("student: tiny}", "student: tiny}\n  - {student: tiny, teacher: big}", 11, "is here twice, first in line 10"),
    ("student: tiny}", "student: tiny, methods: {KDD: null}}", 10, "there is no method 'KDD'; the nearest are"),
    ("student: tiny}", "student: tiny, methods: {KD: {seeds: [1]}}}", 10, "pairs.0.methods.KD has no 'seeds'"),
    (
        "{model.student: student}",
        "{model.student: teacher}",
        12,
        "the method 'plain' places 'teacher', and the network 'student' nowhere",
    ),
    ("{model.student: student}", "student", 12, "methods.plain.networks is a mapping of names"),
    ("{model.student: student}", "{model.student: student, model.teacher: [teacher]}", 12, ""),
    ("[0, 1]", "3", 14, "seeds is a list of whole numbers from 0 to 4294967295, such as [0, 1, 2], not 3"),
    ("[0, 1]", "[]", 14, "seeds is a list"),
    ("[0, 1]", "[0, -1]", 14, "seeds is a list"),
    ("[0, 1]", "[0, 1.0]", 14, "seeds is a list"),
    ("[0, 1]", "[false]", 14, "seeds is a list"),
    ("[0, 1]", "[0, 1,\n  0]", 15, "the seed 0 is there twice"),
    ("[kd.yaml]}", "[kd.yaml], seeds: [2, 2]}", 13, "the seed 2 is there twice"),
    ("seeds:", "baseline: palin\nseeds:", 14, "there is no method 'palin'; the nearest are 'plain'"),
    ("seeds:", "reference: CRD\nseeds:", 14, "there is no method 'CRD'"),
    ("seeds:", "baseline: [plain]\nseeds:", 14, "there is no method ['plain']"),
    ("seeds:", "published: table.csv\nseeds:", 14, "there is no file 'table.csv'"),
    ("seeds:", "export: {format: onyx}\nseeds:", 14, "format is 'torch' or 'onnx' or 'executorch' or 'openvino', not"),
    ("seeds:", "export: {int8: true}\nseeds:", 14, "format is 'torch' or"),
    ("seeds:", "export: {formt: torch}\nseeds:", 14, "export has no 'formt'; the nearest are 'format'"),
    ("KD: {configs", "KD: {start: tuned, configs", 13, "there is no method before this one 'tuned'"),
    ("  KD:", "  plain:", 13, "'plain' is here twice, first in line 12"),
    ("  tiny:", "  big:", 6, "'big' is here twice, first in line 5"),
    ("  KD:", "  1:", 13, "names in methods are text: write '1' in quotes"),
    ("seeds:", "seeds: [1]\nseeds:", 15, "'seeds' is here twice, first in line 14"),
    ("{configs: [kd.yaml]}", "{configs: [kd.yaml}", 13, "this is not YAML"),
    ("pairs:\n  - {teacher: big, student: tiny}", "pairs: []", 1, "a study has pairs: this one has none"),
    (STUDY, "", 1, "a study has networks: this one has none"),
    (STUDY, "- 1", 1, "the study is a mapping of names, not [1]"),
]


@pytest.mark.parametrize(("old", "new", "line", "text"), MISTAKES, ids=lambda each: str(each)[:40])
def test_a_mistake_is_refused_with_file_and_line(old: str, new: str, line: int, text: str, tmp_path: Path) -> None:
    assert STUDY.count(old) == 1 or old in ("seeds:", "recipe.yaml]"), "the mistake is made once"
    path = write(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(InputError) as refused:
        read(path)
    said = str(refused.value)
    assert said.startswith(f"{path}, line {line}: ")
    assert text.replace("{folder}", str(tmp_path)) in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "said"),
    [("a: 1\nb: [\n", "line 3: this is not YAML"), ("a:\n  b: 1\n  b: 2\n", "line 3: 'b' is here twice")],
)
def test_a_mistake_in_a_config_is_refused_with_that_files_line(content: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "kd.yaml").write_text(content)
    with pytest.raises(InputError) as refused:
        read(path)
    assert f"{tmp_path / 'kd.yaml'}, {said}" in str(refused.value)


def test_a_pair_needs_no_network_of_a_method_that_it_leaves_out(tmp_path: Path) -> None:
    found = study(tmp_path, STUDY.replace("pairs:\n", "pairs:\n  - {student: tiny, methods: {KD: null}}\n"))
    assert [pair.name for pair in found.pairs] == ["tiny", "big → tiny"]


def test_a_study_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "study.yaml", tmp_path / "nowhere"):
        with pytest.raises(InputError, match="There is no study '"):
            read(path)


@pytest.mark.parametrize("key", ["recipe:\n  options: {seed_everything: 3}\n", None])
def test_a_seed_among_options_of_students_is_refused(tmp_path: Path, key: str | None) -> None:
    text = STUDY.replace("recipe:\n", key) if key else STUDY.replace("{configs: [kd.yaml]}", KD_WITH_A_SEED)
    with pytest.raises(InputError, match=r"line \d+: set the seeds of students under seeds"):
        read(write(tmp_path, text))


KD_WITH_A_SEED = "{configs: [kd.yaml], options: {seed_everything: 3}}"
