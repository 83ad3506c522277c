"""The documentation is complete and its code is sound; test_docs_run.py runs it."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kdlab import losses, teaching
from kdlab.cli import COMMANDS
from kdlab.cli.methods import entries, ways
from kdlab.config.recipe_files import recipe, study
from kdlab.data import Digits
from tests import documentation
from tests.documentation import LANGUAGES, PAGES, ROOT, Block, Page, generated, pages

EXAMPLES = {"RECIPE", "STUDY", "RUN", "LAST.ckpt"}
"""Words that stand for something of the reader's."""
BLOCKS = [(page, block) for page in pages() for block in page.blocks]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(#[\w-]+)?\)")


def commands(*programs: str) -> Iterator[tuple[Page, Block, list[str]]]:
    for page, block in BLOCKS:
        for command in block.commands if block.language == "console" else ():
            words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
            if words[0] in programs:
                yield page, block, words


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_code_of_a_page_is_sound(page: Page) -> None:
    for block in page.blocks:
        assert block.language in LANGUAGES, f"{page.name}:{block.line}: a fence without a known language"
        if block.language == "python":
            compile(block.code, page.name, "exec")
        elif block.language == "yaml":
            assert yaml.safe_load(block.code)
        elif block.language == "bash":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
        elif block.language == "console":
            assert block.commands, f"{page.name}:{block.line}: no command, which begins with '$ '"
            assert all(len(shlex.split(command)) for command in block.commands)


def test_every_kdlab_command_exists() -> None:
    for page, block, words in commands("kdlab"):
        assert words[1] in {*COMMANDS, "--help", "--version"}, f"{page.name}:{block.line}: {words[1]}"
    for page, block, words in commands("make"):
        target = rf"^{words[1]}:"
        assert re.search(target, (ROOT / "Makefile").read_text(), re.M), f"{page.name}:{block.line}: {words[1]}"


@pytest.mark.parametrize(
    ("language", "code", "error"),
    [("console", "$ false", AssertionError), ("python", "1 / 0", ZeroDivisionError), ("text", "1 / 0", None)],
)
def test_a_block_that_fails_fails_its_page(
    language: str, code: str, error: type[Exception] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documentation, "ROOT", tmp_path)
    page = Page(tmp_path / "page.md")
    page.path.write_text(f'```{language} skip="why"\n{code}\n```\n')
    documentation.run(page, tmp_path)
    page.path.write_text(f"```{language}\n{code}\n```\n")
    with pytest.raises(error) if error else nullcontext():
        documentation.run(page, tmp_path)


def _built(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every class path in a config with its arguments."""
    if isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"], value.get("init_args") or {}
        value = [*value.values()]
    if isinstance(value, str) and re.fullmatch(r"(kdlab|torch|torchvision|pytorch_lightning)(\.\w+)+", value):
        yield value, {}
    for part in value if isinstance(value, list) else ():
        yield from _built(part)


def test_every_class_in_a_config_takes_its_arguments() -> None:
    checked = 0
    for page, block in BLOCKS:
        for path, arguments in _built(yaml.safe_load(block.code)) if block.language == "yaml" else ():
            module, _, name = path.rpartition(".")
            if any(other.title == f"{module}.py" for other in page.blocks) or module.startswith("my_"):
                continue  # the reader's own
            parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
            takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
            unknown = arguments.keys() - {parameter.name for parameter in parameters}
            assert takes_any or not unknown, f"{page.name}:{block.line}: {path} takes no {unknown}"
            checked += 1
    assert checked > 50


def test_the_export_page_normalizes_as_a_run_does() -> None:
    page = next(page for page in pages() if page.name.endswith("howto/export.md"))
    block = next(block for block in page.blocks if "digits.read" in block.code)
    scope: dict[str, Any] = {"network": lambda inputs: torch.zeros(len(inputs), 10)}
    exec(block.code, scope)
    data = Digits(padding=1)
    data.setup()
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    torch.testing.assert_close(scope["inputs"], torch.cat([batch.inputs for batch in batches]))
    assert torch.equal(scope["labels"], torch.cat([batch.target for batch in batches]))
    stated = re.search(r"mean ([\d.]+), std ([\d.]+)", block.code)
    assert stated
    assert [float(stated[1]), float(stated[2])] == [*data.mean, *data.std]


def test_every_recipe_that_a_command_names_exists() -> None:
    for page, block, words in commands("kdlab", "torchrun"):
        names = [word for option, word in itertools.pairwise(words) if option == "-c"]
        names += words[2:3] if words[1] in ("check", "init") else []
        written = {block.title for block in page.blocks} | EXAMPLES | {"kd_digits.yaml"}  # as kdlab init leaves it
        for name in names:
            if name not in written and not name.startswith("runs/"):
                assert recipe(name), f"{page.name}:{block.line}"
        if words[1] in ("reproduce", "report") and f"{words[2]}/study.yaml" not in written | {"STUDY/study.yaml"}:
            assert study(words[2]), f"{page.name}:{block.line}"


@pytest.mark.full
def test_every_link_has_a_target() -> None:
    for page in pages():
        for target, _ in LINK.findall(page.text):
            path = page.path.parent / target
            is_generated = (
                page.name != "README.md" and path.resolve().is_relative_to(PAGES) and _name(path) in generated()
            )
            assert "://" in target or path.exists() or is_generated, f"{page.name}: {target}"


def test_every_test_that_a_page_names_exists() -> None:
    for page in pages():
        for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.text):
            assert (ROOT / file).is_file(), f"{page.name}: {file}"
            assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{page.name}: {file}::{test}"


def test_every_page_is_in_the_navigation() -> None:
    config = (ROOT / "docs/mkdocs.yml").read_text()
    written = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    assert set(re.findall(r": ([\w/]+\.md)$", config, re.M)) == written


@pytest.mark.full
def test_every_method_has_a_page() -> None:
    made = {Path(path).stem for path in generated() if path.startswith("methods/")} - {"index"}
    assert made == {row.name for row in entries()}
    assert set(losses.__all__) <= made


@pytest.mark.full
def test_every_teaching_has_a_page() -> None:
    made = {Path(path).stem for path in generated() if path.startswith("teachings/")} - {"index"}
    assert made == {row[0] for row in ways()}
    kinds = [getattr(teaching, name) for name in teaching.__all__]
    concrete = {
        kind.__name__ for kind in kinds if issubclass(kind, teaching.Teaching) and kind is not teaching.Teaching
    }
    assert made == concrete


@pytest.mark.full
def test_a_generated_page_has_all_its_parts() -> None:
    page = generated()["methods/DKD.md"]
    for part in (r"\[L = \alpha", "needs logits, classes", "alpha: 1.0, beta: 8.0", "arXiv 2203.08679", "-c dkd"):
        assert part in page
    assert "`tests/losses/response/test_dkd.py`" in page
    assert "top-1 60.00 ± 0.18 %, +5.32 over plain training (3 seeds)" in page
    assert "## Released code and differences" in page
    assert "accuracy 96.2 % (plain training 95.8 %; 3 seeds)" in generated()["teachings/Peers.md"]


@pytest.mark.full
def test_every_formula_becomes_mathml() -> None:
    from docstrings import with_mathml  # docs is on the path after generated()

    for path, text in generated().items():
        for formula in re.findall(r"\\\[.*?\\\]|\\\(.*?\\\)", text):
            kind = "div" if formula.startswith(r"\[") else "span"
            drawn = with_mathml(f'<{kind} class="arithmatex">{formula}</{kind}>')
            assert drawn.count("<math") == 1, f"{path}: {formula}"


@pytest.mark.full
def test_mathml_is_the_formula() -> None:
    generated()
    from docstrings import with_mathml

    drawn = with_mathml(r'<span class="arithmatex">\(\frac{a}{b_i} \ge 0\)</span>')
    inner = re.sub(r"</?math[^>]*>|</?mrow>", "", drawn)
    assert inner.startswith("<mfrac><mi>a</mi><msub><mi>b</mi><mi>i</mi></msub></mfrac><mo>")
    assert with_mathml(r'<span class="arithmatex">\(\Big\| x \Big\|\)</span>').count("‖") == 2
    with pytest.raises(ValueError, match=r"\\unknownword"):
        with_mathml(r'<span class="arithmatex">\(\unknownword x\)</span>')


def _name(path: Path) -> str:
    return path.resolve().relative_to(PAGES).as_posix()
