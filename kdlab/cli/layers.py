"""``kdlab layers``: the layers of a network that can be tapped, with the shapes they give."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from kdlab.config.parser_errors import parser_error
from kdlab.errors import InputError, refusal_in
from kdlab.outputs import heads_of, layer_names


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments, build the network and print its layers."""
    parser = argparse.ArgumentParser(
        prog="kdlab layers",
        description="List the layers of a network that student_layers and teacher_layers can name.",
        epilog="Further options go to the network: kdlab layers kdlab.models.resnet8x4 --num_classes=10",
    )
    parser.add_argument("network", help="class path of a network or of a function that builds one")
    parser.add_argument("--input", default="3,32,32", help="shape of one input, C,H,W (default 3,32,32)")
    parser.add_argument("--depth", type=int, default=0, help="list only names of so many parts (default: all)")
    given, options = parser.parse_known_args(list(arguments))
    try:
        shape = tuple(int(size) for size in given.input.split(","))
    except ValueError:
        raise InputError(
            f"--input must be numbers with commas between them, such as 3,32,32, not {given.input!r}."
        ) from None
    network = network_from(given.network, options)
    table = Table(title=f"{given.network}, input {shape_text(shape)}", title_justify="left")
    for column in ("name", "module", "output", "parameters"):
        table.add_column(column, justify="right" if column == "parameters" else "left", overflow="fold")
    for name, module, output in shapes(network, shape):
        if not given.depth or name.count(".") < given.depth:
            count = sum(parameter.numel() for parameter in module.parameters())
            table.add_row(name, type(module).__name__, output, f"{count:,}" if count else "")
    console = Console()
    console.print(table)
    if further := [head for head in heads_of(network) if head]:
        console.print(
            f"The network has further outputs: {', '.join(further)}. Of every name each output gives its own layer, "
            "where it has one, else the one that all share."
        )


def network_from(class_path: str, options: Sequence[str]) -> nn.Module:
    """Build a network by class path; ``options`` are ``--name=value`` of its own arguments.

    Raises:
        InputError: there is no such class or function, or the options do not fit it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    try:
        own = [f"--network.{option.removeprefix('--')}" if option.startswith("--") else option for option in options]
        built: Namespace = parser.instantiate_classes(parser.parse_args([f"--network={class_path}", *own]))
    except (ArgumentError, ValueError, TypeError) as error:
        raise refusal_in(error) or parser_error(error) from error
    network = built.network
    assert isinstance(network, nn.Module)
    return network


def shapes(network: nn.Module, shape: Sequence[int]) -> list[tuple[str, nn.Module, str]]:
    """(name, module, output shape without the batch) of every layer that runs on an input of ``shape``.

    Raises:
        InputError: the network does not take inputs of this shape.
    """
    seen: dict[str, str] = {}
    handles = []
    modules = taps(network)
    for name, module in modules.items():

        def note(module: nn.Module, args: object, output: object, name: str = name) -> None:
            seen[name] = shape_text(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__

        handles.append(module.register_forward_hook(note))
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(2, *shape))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{type(network).__name__} does not take an input of {shape_text(shape)} ({reason}): "
            "give its shape with --input."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return [(name, module, seen[name]) for name, module in modules.items() if name in seen]


def taps(network: nn.Module) -> dict[str, nn.Module]:
    """Every layer by the name that a loss gives it; of a network with several outputs the main one's, and only those
    that every output has.
    """
    modules, heads = layer_names(network), heads_of(network)
    if len(heads) == 1:
        return modules
    inner = [name.partition(".")[2] for name in modules]  # such a network holds another under a name of its own
    names = dict.fromkeys(["feature", *modules, *filter(None, inner)])
    found = {name: [head.layer(name) for head in heads.values()] for name in names}
    return {name: modules[own[0]] for name, own in found.items() if all(each in modules for each in own)}


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: 64 x 8 x 8."""
    return " x ".join(map(str, shape)) or "scalar"
