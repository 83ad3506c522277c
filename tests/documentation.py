"""README and the pages of the documentation as blocks of code that tests can run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = DOCS / "pages"
LANGUAGES = ("python", "pycon", "console", "yaml", "bash", "text")
FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.M | re.S)
OPTION = re.compile(r'(\w+)="([^"]*)"')


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        language: the first word after the fence.
        code: what is in it, dedented.
        line: of the fence in its file.
        title: name of the file that the block shows; empty if it is none.
        skip: why it cannot run in a test; empty if it can.
    """

    language: str
    code: str
    line: int
    title: str
    skip: str

    @property
    def commands(self) -> list[str]:
        """The commands of a console block, without its output."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line.removeprefix("$ ").partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


class Page(NamedTuple):
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        """Its path from the project's folder."""
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        """Its Markdown."""
        return self.path.read_text(encoding="utf-8")

    @property
    def blocks(self) -> list[Block]:
        """Its fenced blocks."""
        return [*_blocks(self.text)]


def pages() -> list[Page]:
    """README and all written pages; generated pages show code that other tests run."""
    return [Page(ROOT / "README.md"), *(Page(path) for path in sorted(PAGES.rglob("*.md")))]


@cache
def generated() -> dict[str, str]:
    """The generated pages by their path in the documentation."""
    if str(DOCS) not in sys.path:
        sys.path.insert(0, str(DOCS))
    import api_pages
    import method_pages

    return {**method_pages.pages(), **api_pages.pages()}


def run(page: Page, folder: Path) -> None:
    """Do what a reader of the page does, in an empty folder: write its files, run its commands and its Python."""
    scope: dict[str, Any] = {"__name__": "__page__"}
    known = set(sys.modules)
    try:
        _run_blocks(page, folder, scope)
    finally:
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
                del sys.modules[name]  # another page may have a file of the same name


def _run_blocks(page: Page, folder: Path, scope: dict[str, Any]) -> None:
    for block in page.blocks:
        place = f"{page.name}:{block.line}"
        if block.title:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.code)
        elif block.skip:
            continue
        elif block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page.path), "exec"), scope)
        elif block.language == "console":
            for command in block.commands:
                _shell(command, folder, place)


def _shell(command: str, folder: Path, place: str) -> None:
    """Run a command as bash does, with ``kdlab`` and ``python`` of this environment on the path."""
    tools = folder / ".bin"
    if not tools.exists():
        tools.mkdir()
        for name, module in (("kdlab", "-m kdlab "), ("python", "")):
            (tools / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {module}"$@"\n')
            (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{place}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


def _blocks(text: str) -> Iterator[Block]:
    for match in FENCE.finditer(text):
        margin, options = match[1], dict(OPTION.findall(match[3]))
        code = "\n".join(line.removeprefix(margin) for line in match[4].splitlines()) + "\n"
        line = text[: match.start()].count("\n") + 1
        yield Block(match[2], code, line, options.get("title", ""), options.get("skip", ""))
