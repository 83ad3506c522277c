"""Docstrings as Markdown: sections, formulas, references and examples."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

from latex2mathml.converter import convert

BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +\S.*|(?=\n\1 +\S)))*)", re.M)
INLINE = re.compile(r":math:`([^`]+)`")
REFERENCE = re.compile(r":(?:class|func|meth|mod|attr|data):`~?([^`]+)`", re.S)
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1.*\S.*)*", re.M)
SECTION = re.compile(
    r"^(Args|Shapes|Raises|Returns|Attributes|Recipe|Papers?|Example):[ \n](.*?)(?=\n\n\S|\n\n *>>>|\Z)", re.M | re.S
)
RENDERED = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.S)
NAMED = re.compile(r"^([\w*, ]+):\s+(.*)$", re.S)


class Parts(NamedTuple):
    """A docstring by its sections, each as Markdown."""

    summary: str
    text: str
    sections: dict[str, str]
    example: str


def parts(docstring: str) -> Parts:
    """Return the sections of a docstring, which is dedented."""
    examples = EXAMPLE.search(docstring)
    example = examples.group() if examples else ""
    rest = docstring.replace(example, "") if example else docstring
    sections = {name.replace("Papers", "Paper"): _dedented(body) for name, body in SECTION.findall(rest)}
    summary, _, text = SECTION.sub("", rest).strip().partition("\n")
    return Parts(summary, text.strip(), sections, example)


def markdown(text: str) -> str:
    """Return text with its formulas, references, literals and examples in Markdown."""
    text = BLOCK.sub(lambda match: f"\\[{' '.join(match[2].split())}\\]", text)
    text = INLINE.sub(lambda match: f"\\({' '.join(match[1].split())}\\)", text)
    text = REFERENCE.sub(_reference, text)
    text = re.sub(r"``(.+?)``", r"`\1`", text, flags=re.S)
    return EXAMPLE.sub(lambda match: f"{match[1]}```pycon\n{match[0]}\n{match[1]}```", text)


def entries(section: str) -> list[tuple[str, str]]:
    """Return names and descriptions of a section such as ``Args``, as Markdown."""
    found: list[list[str]] = []
    for line in section.splitlines():
        if line.startswith(" ") and found:
            found[-1].append(line.strip())
        elif line.strip():
            found.append([line])
    matches = [NAMED.match(" ".join(lines)) for lines in found]
    return [(match[1], markdown(match[2])) for match in matches if match]


def with_mathml(page: str) -> str:
    """Return HTML with the formulas that ``pymdownx.arithmatex`` marked as MathML, which browsers draw themselves."""
    return RENDERED.sub(lambda match: _formula(html.unescape(match[2]), match[1] == "div"), page)


def _reference(match: re.Match[str]) -> str:
    path = "".join(match[1].split())
    if not path.startswith("kdlab."):
        return f"`{path}`"
    return f"[`{path.rpartition('.')[2] if '~' in match[0] else path}`][{path}]"


def _formula(latex: str, block: bool) -> str:
    latex = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", latex)  # unknown to latex2mathml
    latex = re.sub(r"(\\[Bb]igg?[lr]?)\\\|", r"\1‖", latex)  # a command after \Big stays as it is
    mathml: str = convert(latex, display="block" if block else "inline")
    if unknown := re.findall(r"\\[a-zA-Z]*\S", mathml):
        raise ValueError(f"latex2mathml does not know {', '.join(unknown)} in {latex!r}.")
    return f'<div class="formula">{mathml}</div>' if block else mathml


def _dedented(body: str) -> str:
    lines = body.splitlines()
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines).strip()
