"""The workflow, the issue templates and the citation file are sound."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdlab import __version__

ROOT = Path(__file__).parent.parent
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
STEPS = {
    f"{job}: {step.get('name', step['run'])}": step["run"]
    for job, content in WORKFLOW["jobs"].items()
    for step in content["steps"]
    if "run" in step
}


@pytest.mark.parametrize("step", STEPS)
def test_workflow_steps_are_sound_bash(step: str) -> None:
    subprocess.run(["bash", "-n"], input=STEPS[step], text=True, check=True)


def test_workflow_runs_lint_tests_docs_and_oldest_versions() -> None:
    assert {"lint: make lint", "test: make test", "docs: make docs"} <= set(STEPS)
    for target in ("lint", "test", "docs"):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_oldest_versions_are_the_lower_bounds() -> None:
    step = STEPS["oldest: Install the lower bounds of pyproject.toml"]
    script = re.search(r"<<'PYTHON'\n(.*?)^PYTHON$", step, re.M | re.S)
    assert script
    constraints = subprocess.run(
        ["python3", "-c", script[1]], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    bounds = dict(re.findall(r'^  "([\w-]+)(?:\[\w+\])?>=([\d.]+)', (ROOT / "pyproject.toml").read_text(), re.M))
    names = [line.partition("==")[0] for line in constraints]
    assert {"torch", "torchvision", "pytorch-lightning", "jsonargparse", "wandb"} <= set(names)
    assert all(line == f"{name}=={bounds[name]}" for line, name in zip(constraints, names, strict=True))


def test_issue_templates_ask_for_what_is_needed() -> None:
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            assert any(field.get("validations", {}).get("required") for field in form["body"])
            assert all(field["attributes"]["label"] for field in form["body"])


def test_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)


def test_contributing_names_files_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:kdlab|tests|docs|configs|experiments)/[\w/.]*)`", text)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists(), path
