"""Pages of methods and teachings, made from docstrings, configs, tests and measured results."""

from __future__ import annotations

import ast
import csv
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from docstrings import Parts, entries, markdown, parts

from kdlab import losses, optimizers, teaching
from kdlab.cli import methods

ROOT = Path(__file__).parent.parent
CONFIGS = next(path for path in (ROOT / "kdlab/configs", ROOT / "configs") if (path / "knowledge").is_dir())
EXPERIMENTS = ROOT / "experiments"
FAMILIES = {
    "response": "compare the networks' outputs",
    "feature": "compare feature maps and embeddings",
    "relation": "compare how samples relate to each other",
    "tokens": "compare language models token by token",
    "plug-in": "change another loss, which they take as an argument",
    "teachers": "say how several teachers act together",
    "optimizer": "change the step of the optimizer",
}
COTRAINING = {
    "DML": ("Peers",),
    "KDCL (mean)": ("Consensus",),
    "KDCL (MinLogit)": ("Consensus",),
    "ONE": ("Gated",),
    "mean teacher": ("MovingAverage", "Consistency"),
    "BYOT": ("DeepestExit",),
    "CS-KD": ("Classmate",),
    "PS-KD": ("PreviousEpoch", "SoftLabels"),
    "Born-Again": ("FrozenTeacher",),
    "Tf-KD (virtual teacher)": ("VirtualTeacher",),
    "label smoothing": ("LabelSmoothing",),
}
"""The classes that rows of experiments/cotraining are of."""
SHOWN = 6
"""How many further configs a page names."""
CITED = re.compile(r"\", .*\b(19|20)\d\d\b")
"""A title with a venue and its year."""
SENTENCE = re.compile(r"(?<=\. )(?<![A-Z]\. )(?=[A-Z`])")
"""Between two sentences, but not after an initial."""


def pages() -> dict[str, str]:
    """Return all pages as Markdown, by their path in the documentation."""
    rows = methods.entries()
    titles = Counter(row.method for row in rows)
    made = {"methods/index.md": _index_of_methods(rows)}
    for row in rows:
        title = row.method if titles[row.method] == 1 else f"{row.method}: {row.name}"
        made[f"methods/{row.name}.md"] = _method(row, title)
    made["teachings/index.md"] = _index_of_teachings(methods.ways())
    for name in dict.fromkeys(row[0] for row in methods.ways()):
        made[f"teachings/{name}.md"] = _teaching(name)
    return made


def navigation() -> list[dict[str, list[Any]]]:
    """Return the part of the navigation that lists the generated pages."""
    rows = methods.entries()
    by_family: dict[str, list[Any]] = {}
    for row in rows:
        by_family.setdefault(row.family, []).append({row.name: f"methods/{row.name}.md"})
    families = [{name.capitalize(): files} for name, files in by_family.items()]
    kinds = dict.fromkeys(row[0] for row in methods.ways())
    ways = [{name: f"teachings/{name}.md"} for name in kinds]
    return [{"Methods": ["methods/index.md", *families]}, {"Teachings": ["teachings/index.md", *ways]}]


def class_named(name: str) -> Any:
    """Return the public class of a method or teaching."""
    return next(getattr(room, name) for room in (losses, teaching, optimizers) if hasattr(room, name))


def measured(name: str) -> list[str]:
    """Return lines of a Markdown list: results in experiments/ of runs with this class."""
    return [*_of_studies(name), *_of_cotraining(name)]


def configs_with(name: str) -> list[Path]:
    """Return the recipe parts that use a class, those in which it is the only loss first."""
    path = re.compile(rf"\bkdlab\.\w+\.{name}\b")
    folders = (CONFIGS / "knowledge", CONFIGS / "recipes")
    found = [file for folder in folders for file in sorted(folder.glob("*.yaml")) if path.search(file.read_text())]
    return sorted(found, key=lambda file: (len(_losses_in(file) - {name}), file.parent.name, _changes(file), file.name))


def _method(row: methods.Entry, title: str) -> str:
    kind = class_named(row.name)
    doc = parts(inspect.getdoc(kind) or "")
    room = kind.__module__.split(".")[1]
    public = {"members": "teaching"}.get(room, room)
    facts = [f"`kdlab.{public}.{row.name}`", f"[{row.family}](index.md#{row.family})"]
    facts += [f"needs {row.needs}"] if row.needs else []
    lines = [f"# {title}", " · ".join([*facts, row.paper]), *_described(doc)]
    lines += _recipes(configs_with(row.name), doc)
    return _joined([*lines, *_reference(doc), *_checked(kind), *_results(row.name)])


def _teaching(name: str) -> str:
    kind = class_named(name)
    doc = parts(inspect.getdoc(kind) or "")
    ways = vars(kind)["ways"]
    methods_of = [f"{way.method} ({way.paper})" if way.paper else way.method for way in ways]
    lines = [f"# {name}", " · ".join([f"`kdlab.teaching.{name}`", *methods_of]), *_described(doc)]
    names = dict.fromkeys(recipe for way in ways for recipe in way.recipes)
    lines += _recipes([CONFIGS / "recipes" / f"{recipe}.yaml" for recipe in names], doc)
    return _joined([*lines, *_reference(doc), *_checked(kind), *_results(name)])


def _described(doc: Parts) -> Iterable[str]:
    yield markdown(doc.summary)
    if doc.text:
        yield markdown(doc.text)


def _recipes(files: Sequence[Path], doc: Parts) -> Iterable[str]:
    text = doc.sections.get("Recipe")
    if not files and not text:
        return
    yield "## Recipe"
    if text:
        yield markdown(text[:1].upper() + text[1:])
    if files:
        first, *others = files
        yield f'```yaml title="{_name(first)}"\n{first.read_text().rstrip()}\n```'
        if first.parent.name == "knowledge" and not isinstance(_options(first).get("teacher"), list):
            teacher = "--model.teacher.weights=TEACHER.safetensors"
            yield f"```console\n$ kdlab fit -c cifar100/distil -c {first.stem} {teacher}\n```"
        if others:
            names = [f"`{_name(file)}`" for file in others[:SHOWN]]
            rest = f", and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            yield f"Also in {', '.join(names)}{rest}."


def _reference(doc: Parts) -> Iterable[str]:
    headings = {"Args": "Arguments", "Shapes": "What it reads", "Raises": "Errors"}
    for name, heading in headings.items():
        if rows := entries(doc.sections.get(name, "")):
            yield f"## {heading}"
            yield "\n".join(f"- **{'`' + key + '`' if name != 'Raises' else key}**: {value}" for key, value in rows)
    if doc.example:
        yield "## Example"
        yield f"```pycon\n{doc.example}\n```"
    if (paper := doc.sections.get("Paper", "none.")) != "none.":
        sentences = SENTENCE.split(" ".join(paper.split()))
        cited = [number for number, text in enumerate(sentences, 1) if CITED.search(text)]
        end = cited[-1] if cited else 1
        yield "## Paper"
        yield markdown(_linked("".join(sentences[:end])))
        if rest := "".join(sentences[end:]):
            yield "## Released code and differences"
            yield markdown(_linked(rest))


def _checked(kind: Any) -> Iterable[str]:
    yield "## How it was checked"
    lines = []
    if test := _test_of(kind):
        named = [
            node.name.removeprefix("test_").replace("_", " ")
            for node in ast.walk(ast.parse((ROOT / test).read_text()))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        lines.append(f"- `{test}`: {'; '.join(named)}.")
    if cases := _oracles().get(kind.__name__):
        lines.append(
            f"- Released code: value and gradients equal those of {', '.join(f'`{case}`' for case in cases)} in files "
            "of cases that were computed with it (`python -m tests.oracles FILE`)."
        )
    if kind.__name__ in losses.__all__:
        lines.append(
            "- `tests/losses/test_contract.py`, as every loss: finite in half precision and for extreme inputs, "
            "gradients, checkpoints, batches of one sample, dtypes."
        )
    if issubclass(kind, teaching.Teaching):
        lines.append("- `tests/modules/test_matrix.py`: the matrix of losses and teachings.")
    yield "\n".join(lines) or "By the tests of the recipes that use it."


def _results(name: str) -> Iterable[str]:
    if lines := measured(name):
        yield "## Measured here"
        yield "\n".join(lines)
        yield "Short trainings on small machines, to see that the method works; see each experiment for its setting."


def _of_studies(name: str) -> Iterable[str]:
    for file in sorted(EXPERIMENTS.glob("*/report.csv")):
        study = yaml.safe_load((file.parent / "study.yaml").read_text())
        for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
            configs = (study["methods"].get(row["method"]) or {}).get("configs", ())
            used = {kind for config in configs for kind in _losses_in(CONFIGS / "knowledge" / Path(config).name)}
            if used and name in used and row["top1"]:
                spread = f" ± {float(row['std']):.2f}" if row["std"] else ""
                gain = f", {float(row['gain']):+.2f} over plain training" if row["gain"] else ""
                seeds = f"{row['seeds']} seed{'s' if row['seeds'] != '1' else ''}"
                yield (
                    f"- `experiments/{file.parent.name}`, {row['pair']}, {row['method']}: "
                    f"top-1 {float(row['top1']):.2f}{spread} %{gain} ({seeds})"
                )


def _of_cotraining(name: str) -> Iterable[str]:
    labels = [label for label, kinds in COTRAINING.items() if name in kinds]
    for file in sorted((EXPERIMENTS / "cotraining/results").glob("*.csv")):
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        plain = [float(row["accuracy"]) for row in rows if row["method"] == "plain"]
        for label in labels:
            if values := [float(row["accuracy"]) for row in rows if row["method"] == label]:
                yield (
                    f"- `experiments/cotraining`, {file.stem}, {label}: accuracy {_mean(values):.1f} % "
                    f"(plain training {_mean(plain):.1f} %; {len(values)} seeds)"
                )


def _index_of_methods(rows: Sequence[methods.Entry]) -> str:
    lines = [
        "# Methods",
        "Every method is one class. A loss goes into a `Knowledge`, and any loss goes with any "
        "[teaching](../teachings/index.md). *Weight* is that of the CIFAR-100 recipe beside weight 1 on the labels, "
        "unless the page says otherwise. `kdlab methods` prints these tables.",
    ]
    for family in dict.fromkeys(row.family for row in rows):
        lines += [f"## {family.capitalize()} {{#{family}}}"]
        lines += [f"They {FAMILIES[family]}."] if family in FAMILIES else []
        table = [
            (f"[{row.name}]({row.name}.md)", row.method, row.paper, row.needs, row.weight)
            for row in rows
            if row.family == family
        ]
        lines.append(_table(("class", "method", "paper", "needs", "weight"), table))
    return _joined(lines)


def _index_of_teachings(ways: Sequence[tuple[str, str, str, str]]) -> str:
    table = [(f"[{name}]({name}.md)", *rest) for name, *rest in ways]
    return _joined(
        [
            "# Teachings",
            "A teaching says who learns from whom. `FrozenTeacher` is what a `Distiller` uses; the others go into a "
            "`CoTrainer`.",
            _table(("class", "method", "paper", "recipes"), table),
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@cache
def _oracles() -> dict[str, tuple[str, ...]]:
    """Return, by class, the methods of oracle files that ``tests/oracle_methods`` compares it with."""
    compared: dict[str, tuple[str, ...]] = {}
    for file in sorted((ROOT / "tests/oracle_methods").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            for key, value in zip(node.keys, node.values, strict=True) if isinstance(node, ast.Dict) else ():
                names = {part.attr for part in ast.walk(value) if isinstance(part, ast.Attribute)}
                names |= {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
                if isinstance(key, ast.Constant) and isinstance(value, ast.Call):
                    for name in names & {*losses.__all__, *teaching.__all__}:
                        compared[name] = (*compared.get(name, ()), str(key.value))
    return compared


def _test_of(kind: Any) -> str | None:
    module = Path(*kind.__module__.split(".")[1:])
    test = Path("tests") / module.parent / f"test_{module.name}.py"
    return test.as_posix() if (ROOT / test).is_file() else None


def _options(file: Path) -> dict[str, Any]:
    options: dict[str, Any] = yaml.safe_load(file.read_text())["model"]["init_args"]
    return options


def _changes(file: Path) -> int:
    return len(_options(file))


@cache
def _losses_in(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    return set(re.findall(r"\bkdlab\.losses\.(\w+)", file.read_text())) & set(losses.__all__)


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _name(file: Path) -> str:
    return f"configs/{file.relative_to(CONFIGS).as_posix()}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _joined(lines: Iterable[str]) -> str:
    return "\n\n".join(lines) + "\n"
