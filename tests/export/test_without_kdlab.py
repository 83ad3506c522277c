"""The documentation's code that runs an exported file, in a process in which ``import kdlab`` fails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from kdlab import models
from kdlab.export import export_checked
from kdlab.export.formats import FORMATS
from kdlab.export.parity import Sample
from kdlab.models import save_weights
from tests.documentation import PAGES, Page

NO_KDLAB = 'import sys\nsys.modules["kdlab"] = None\n'
SECTION = "## Run the file without kdlab"


def code_for(file: str) -> str:
    """The block of the section that names a file."""
    page = Page(PAGES / "howto/export.md")
    first = page.text[: page.text.index(SECTION)].count("\n")
    (code,) = (block.code for block in page.blocks if block.line > first and f'"{file}"' in block.code)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    return code


def predicted(file: str, folder: Path) -> int:
    """The class that the block prints for an input of zeros."""
    command = [sys.executable, "-c", NO_KDLAB + code_for(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    number = re.search(r"\[(\d+)\]", done.stdout)
    assert number, done.stdout
    return int(number[1])


def untrained(network: nn.Module) -> tuple[nn.Module, int]:
    """The network in eval mode and its class of zeros, which is not 0 and needs more than the last layer's bias."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_()
        for _ in range(100):
            answer = int(network.eval()(torch.zeros(1, 3, 32, 32)).argmax())
            last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
            if answer and answer != int(last.bias.argmax()):
                return network, answer
            last.weight.normal_()
    raise AssertionError("no such network")


@pytest.mark.full
@pytest.mark.parametrize("name", FORMATS)
def test_documented_code_runs_each_format(name: str, tmp_path: Path) -> None:
    for package in FORMATS[name].packages:
        pytest.importorskip(package)
    torch.manual_seed(0)
    network, answer = untrained(models.resnet8(10))
    inputs = torch.randn(32, 3, 32, 32)
    file = f"student{FORMATS[name].suffix}"
    export_checked(network, tmp_path / file, [Sample(inputs, inputs, None)], format=name, example=inputs)
    assert predicted(file, tmp_path) == answer


@pytest.mark.full
def test_documented_code_loads_safetensors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, answer = untrained(torchvision.models.resnet18(num_classes=10))
    save_weights(network, tmp_path / "student.safetensors")
    assert predicted("student.safetensors", tmp_path) == answer


def test_kdlab_cannot_be_imported_in_that_process() -> None:
    command = [sys.executable, "-c", NO_KDLAB + "import kdlab"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "import of kdlab halted" in done.stderr
