"""Networks in one word: ``timm:NAME``, ``torchvision:NAME``, ``hf:PATH``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SHORTHANDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "timm": lambda name: {"class_path": "kdlab.models.timm_model", "init_args": {"name": name}},
    "torchvision": lambda name: {"class_path": f"torchvision.models.{name}"},
    "hf": lambda path: {"class_path": "kdlab.models.hugging_face", "init_args": {"path": path, "task": "features"}},
}
"""What builds a network, by the word before the colon."""
KEYS = ("student", "teacher", "network", "networks")
"""Keys below which a config has networks; of the last, and of a teacher, also those in a list or a mapping."""
WORD = re.compile(rf"({'|'.join(SHORTHANDS)}):(\S+)")
OPTION = re.compile(rf"(--(?:\w+\.)*(?:{'|'.join(KEYS[:3])}|(?:teacher|networks)(?:\.init_args)?\.\w+))=(\S+)")


def network_of(value: Any) -> Any:
    """Return the config of a network that a shorthand names; any other value as it is.

    >>> network_of("timm:resnet18")
    {'class_path': 'kdlab.models.timm_model', 'init_args': {'name': 'resnet18'}}
    """
    match = WORD.fullmatch(value) if isinstance(value, str) else None
    return SHORTHANDS[match[1]](match[2]) if match else value


def expanded(value: Any, is_network: bool = False) -> Any:
    """Return a config in which shorthands of networks are written out."""
    if isinstance(value, Mapping):
        inside = is_network and "class_path" not in value
        return {key: expanded(inner, inside or key in KEYS) for key, inner in value.items()}
    if isinstance(value, list):
        return [expanded(inner, is_network) for inner in value]
    return network_of(value) if is_network else value


def expanded_options(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which options such as ``--model.teacher=timm:resnet18`` are written out.

    >>> expanded_options(["--model.teacher=timm:resnet18"])
    ['--model.teacher=kdlab.models.timm_model', '--model.teacher.name=resnet18']
    """
    written = list[str]()
    for argument in arguments:
        match = OPTION.fullmatch(argument)
        network = network_of(match[2]) if match else None
        if not match or not isinstance(network, dict):
            written.append(argument)
            continue
        written.append(f"{match[1]}={network['class_path']}")
        written += [f"{match[1]}.{name}={value}" for name, value in network.get("init_args", {}).items()]
    return written
