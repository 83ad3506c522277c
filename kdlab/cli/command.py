"""Commands as typed functions: the signature gives the options, the docstring the help.

This is jsonargparse's ``auto_cli`` without its ``--config``, which for kdlab is an option of ``kdlab fit``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from kdlab.errors import InputError, nearest

OVERRIDES = "overrides"
"""Parameter of a command that receives what it has no option for, such as the options of ``kdlab fit``."""


def call(name: str, command: Callable[..., None], arguments: Sequence[str]) -> None:
    """Parse the arguments of ``kdlab NAME`` and call the command.

    Parameters without a default are positional, all others are options: ``--count 3`` or ``--count=3``, ``--dry-run``
    for a bool, and ``--teacher ITEM`` once for each item of a list.
    """
    parser = ArgumentParser(prog=f"kdlab {name}", exit_on_error=False, allow_abbrev=False)
    parser.description = (inspect.getdoc(command) or "").partition("\n\nArgs:")[0]
    parser.add_function_arguments(command, as_group=False, as_positional=True, skip={OVERRIDES})
    known, further = split(command, arguments)
    overrides = {}
    if OVERRIDES in inspect.signature(command).parameters:
        parser.usage = f"{parser.format_usage().removeprefix('usage: ').strip()} [--KEY=VALUE ...]"
        overrides = {OVERRIDES: further}
    elif further:
        first = further[0].partition("=")[0]
        if not first.startswith("-"):
            raise InputError(f"{first!r} is one argument too many.")
        raise InputError(f"There is no option {first!r}; the nearest are {nearest(first, options_of(command))}.")
    if "--help" in known:
        print(re.sub(r"type: <class\s+'(\w+)'>", lambda kind: f"type: {kind[1].lower()}", parser.format_help()), end="")
        raise SystemExit(0)
    try:
        values = parser.instantiate(parser.parse_args(known))
    except ArgumentError as error:
        from kdlab.config.parser_errors import parser_error  # takes seconds to import

        text = str(parser_error(error)).rstrip(".")
        text = re.sub(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", r"expected one of \1, not \2", text)
        raise InputError(f"{text}.") from error
    command(**values.as_dict(), **overrides)


def split(command: Callable[..., None], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the command's own arguments, as jsonargparse reads them, and all others unchanged."""
    options = options_of(command)
    positional = len(inspect.signature(command).parameters.keys() - {OVERRIDES}) - len(options)
    known, further, rest = list[str](), list[str](), list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        kind = options.get(option.replace("_", "-"))
        if argument in ("-h", "--help"):
            known.append("--help")
        elif kind is not None:
            if not equals and kind is bool:
                equals, value = "=", "true"
            elif not equals and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.pop(0)
            name = option.removeprefix("--").replace("-", "_") + ("+" if get_origin(kind) is list else "")
            known.append(f"--{name}{equals}{value}")
        elif positional and not argument.startswith("-"):
            known.append(argument)
            positional -= 1
        else:
            further.append(argument)
    return known, further


def options_of(command: Callable[..., None]) -> dict[str, Any]:
    """Return the options of a command, such as ``--dry-run``, with their types."""
    types, parameters = get_type_hints(command), inspect.signature(command).parameters.values()
    return {f"--{x.name.replace('_', '-')}": types[x.name] for x in parameters if x.default is not x.empty}
