"""MkDocs hooks: the generated pages, and formulas as MathML."""

from __future__ import annotations

import re
from typing import Any

import api_pages
import method_pages
from docstrings import with_mathml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SKIP = re.compile(r'^( *```\w+) skip="[^"]*"', re.M)
"""The mark of a block that tests do not run, see CONTRIBUTING.md."""


def on_config(config: MkDocsConfig) -> None:
    """Add the generated pages to the navigation."""
    config.nav = [*(config.nav or []), *method_pages.navigation(), {"API": api_pages.navigation()}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in {**method_pages.pages(), **api_pages.pages()}.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(text: str, **context: Any) -> str:
    """Return the page without the marks for tests."""
    return SKIP.sub(r"\1", text)


def on_page_content(html: str, **context: Any) -> str:
    """Return the page with its formulas as MathML."""
    return with_mathml(html)
