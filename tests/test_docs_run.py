"""What README and the documentation show runs, page by page, as a reader would run it in an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdlab.models import resnet14, save_weights
from tests.documentation import DOCS, ROOT, Page, pages, run


@pytest.mark.nightly  # some 15 minutes in all
@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice on workers and log intervals
def test_page(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    save_weights(resnet14(10, in_channels=1), tmp_path / "runs/demo/teacher.safetensors")  # as `kdlab demo` leaves it
    run(page, tmp_path)


@pytest.mark.full
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--strict",
        "--config-file",
        str(DOCS / "mkdocs.yml"),
    ]
    done = subprocess.run([*command, "--site-dir", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in tmp_path.rglob("*.html"):
        assert "```" not in path.read_text(), f"{path.name} shows a fence instead of a block"
    page = (tmp_path / "methods/DKD.html").read_text()
    assert "<math" in page
    assert "arithmatex" not in page
    assert (tmp_path / "search/search_index.js").stat().st_size > 100_000
    assert "unpkg.com" not in page  # nothing is loaded from the network
