"""Whose line it is: the part of a study, or of a config that it names, that a parser complains of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kdlab.config.located_yaml import Place, Source, ends_with
from kdlab.errors import InputError
from kdlab.studies.study import Network, Part

KEY = re.compile(r"unknown key '([^']+)'|^(\w+(?:\.\w+)+): ")
TEXT = re.compile(r"(?:^|: )(\w[\w.]*) has no '(\w+)'|there is no module '([\w.]+)'|not ([^\W\d][\w.]*)\.$")


def blamed(
    said: str,
    source: Source,
    parts: Sequence[Part],
    networks: Mapping[str, Network],
    overrides: Sequence[str],
    otherwise: Place,
) -> InputError:
    """An error with the line of the key or the value that ``said`` names, as far as it is found.

    Args:
        said: the complaint.
        source: the study.
        parts: of the config, the last word last.
        networks: of the study, by the option that they are put into.
        overrides: options of the command line.
        otherwise: the place to name if neither key nor value is found.
    """
    key, text = _named_in(said)
    for each in overrides:
        name, _, value = each.lstrip("-").partition("=")
        if ends_with(name, key) or (text and value == text):
            return InputError(f"On the command line, {said}")
    for part in reversed(parts):
        places = [(source, (*part.place, "options")), *((Source(path), ()) for path in reversed(part.configs))]
        for file, below in places:
            if (found := file.place(key, below) or file.holding(text, below)) is not None:
                return file.error(found, said)
    for option, network in networks.items():
        inside: Place = ("networks", network.name, "init_args")
        if (found := source.place(key.removeprefix(f"{option}."), inside) or source.holding(text, inside)) is not None:
            return source.error(found, said)
    return source.error(otherwise, said)


def _named_in(said: str) -> tuple[str, str]:
    """The key, and the text of the value, that a complaint names; empty where it names none."""
    key, text = KEY.search(said), TEXT.search(said)
    home, name, *others = text.groups("") if text else ("", "", "")
    named = f"{home}.{name}" if name else next(filter(None, others), "")
    return next(filter(None, key.groups()), "") if key else "", named
