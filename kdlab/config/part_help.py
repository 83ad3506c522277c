"""Help of one part of a model: ``kdlab fit --model.knowledge.help``, ``--model.student.help=CLASS_PATH``."""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from kdlab.config.class_paths import check_class_path
from kdlab.errors import InputError

HELP = re.compile(r"--(model\.(\w+)\.help)(?:=(.+))?")
CLOSED = {"knowledge": "kdlab.Knowledge", "teacher_fast": "kdlab.members.Fast"}
"""Parts that one class fits."""


def print_part_help(arguments: Sequence[str]) -> bool:
    """Print the options of a part if the arguments ask for it, and return whether they do.

    jsonargparse prints them only behind a class path for the model, and none of a function that builds a network.
    """
    for index, argument in enumerate(arguments):
        if match := HELP.fullmatch(argument):
            option, part, value = match.groups()
            following = "".join(arguments[index + 1 : index + 2])
            path = CLOSED.get(part) or value or ("" if following.startswith("-") else following)
            if not path:
                raise InputError(f"--{option} takes a class path: --{option}=kdlab.models.resnet20, say.")
            target = check_class_path(path)
            parser = ArgumentParser(prog="kdlab fit", usage=SUPPRESS, add_help=False)
            add = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
            add(target, f"model.{part}.NAME" if part == "knowledge" else f"model.{part}")
            parser.print_help()
            return True
    return False
