"""Commands as typed functions: the signature gives the options, the docstring the help.

This is jsonargparse's ``auto_cli`` without its ``--config``, which for kdlab is an option of ``kdlab fit``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from kdlab.errors import InputError, nearest

OVERRIDES = "overrides"
"""Parameter of a command that receives what it has no option for, such as the options of ``kdlab fit``."""


def call(name: str, command: Callable[..., None], arguments: Sequence[str]) -> None:
    """Parse the arguments of ``kdlab NAME`` and call the command.

    Parameters without a default are positional, all others are options: ``--count 3`` or ``--count=3``, ``--dry-run``
    for a bool, and ``--teacher ITEM`` once for each item of a list.

    Raises:
        InputError: an argument is unknown or missing, or a value has another type.
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
        raise _unknown(further[0].partition("=")[0], command)
    try:
        values = parser.instantiate(parser.parse_args(known))
    except ArgumentError as error:
        raise InputError(_sentence(error)) from error
    command(**values.as_dict(), **overrides)


def split(command: Callable[..., None], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the command's own arguments, as jsonargparse reads them, and all others unchanged."""
    types, options = get_type_hints(command), _options(command)
    positional = len(inspect.signature(command).parameters.keys() - {*options, OVERRIDES})
    known, further, rest = list[str](), list[str](), list(arguments)
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if argument in ("-h", "--help"):
            known.append("--help")
        elif option.startswith("--") and name in options:
            if not equals and types[name] is bool:
                equals, value = "=", "true"
            elif not equals and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.pop(0)
            appended = "+" if get_origin(types[name]) is list else ""
            known.append(f"--{name}{appended}{equals}{value}")
        elif positional and not argument.startswith("-"):
            known.append(argument)
            positional -= 1
        else:
            further.append(argument)
    return known, further


def options_of(command: Callable[..., None]) -> list[str]:
    """Return the options of a command, such as ``--dry-run``."""
    return [f"--{name.replace('_', '-')}" for name in _options(command)]


def _options(command: Callable[..., None]) -> list[str]:
    parameters = inspect.signature(command).parameters
    return [name for name, parameter in parameters.items() if parameter.default is not parameter.empty]


def _unknown(argument: str, command: Callable[..., None]) -> InputError:
    if not argument.startswith("-"):
        return InputError(f"{argument!r} is one argument too many.")
    return InputError(f"There is no option {argument!r}; the nearest are {nearest(argument, options_of(command))}.")


def _sentence(error: ArgumentError) -> str:
    from kdlab.config.parser_errors import parser_error  # takes seconds to import

    text = str(parser_error(error))
    text = re.sub(r"Expected a typing\.Literal\[(.*)\]\. Got value: (.*)", r"expected one of \1, not \2", text)
    return text if text.endswith(".") else f"{text}."
