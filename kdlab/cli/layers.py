"""``kdlab layers``: the layers of a network that can be tapped, with their output shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from torch import nn

from kdlab.cli.printing import titled_table
from kdlab.config.class_paths import check_config
from kdlab.config.parser_errors import parser_error
from kdlab.config.shorthands import expanded_options
from kdlab.errors import InputError, refusal_in
from kdlab.export.layer_shapes import shape_text, shapes
from kdlab.outputs import heads_of, observe
from kdlab.outputs.network_layers import classifier_of


def layers(network: str, overrides: list[str], input: str = "3,32,32", depth: int = 0) -> None:
    """List the layers of a network that student_layers and teacher_layers can name.

    Further options are the network's own arguments: kdlab layers kdlab.models.resnet8x4 --num_classes=10

    Args:
        network: class path of a network or of a function that builds one
        overrides: ``--name=value`` of its own arguments
        input: shape of one input, C,H,W
        depth: list only names of so many parts (0: all)
    """
    try:
        shape = tuple(int(size) for size in input.split(","))
    except ValueError:
        raise InputError(f"--input must be numbers with commas between them, such as 3,32,32, not {input!r}.") from None
    built = network_from(network, overrides)
    rows = []
    for name, module, output in shapes(built, shape):
        if not depth or name.count(".") < depth:
            count = sum(parameter.numel() for parameter in module.parameters())
            rows.append((name, type(module).__name__, output, f"{count:,}" if count else ""))
    columns, console = ("name", "module", "output", "parameters"), Console()
    console.print(titled_table(f"{network}, input {shape_text(shape)}", columns, rows, numbers=columns[3:]))
    console.print(features_text(built, shape), highlight=False)
    if further := [head for head in heads_of(built) if head]:
        console.print(
            f"The network has further outputs: {', '.join(further)}. A name taps each output's own layer, where the "
            "output has one, else the layer that all outputs share."
        )


def features_text(network: nn.Module, shape: Sequence[int]) -> str:
    """Return what the embedding of a network is, and what its tokens and map are called."""
    with torch.no_grad():
        seen = observe(network.eval(), torch.zeros(2, *shape))
    classifier = next((name for name, part in network.named_modules() if part is classifier_of(network)), "")
    if seen.embedding is None:
        lines = ["It has neither an embedding nor a linear classifier: name a layer."]
    elif seen.embedding is seen.logits:
        lines = [f"It has no classifier: its output, {shape_text(seen.embedding.shape[1:])}, is its embedding."]
    else:
        lines = [
            f"Its embedding, {shape_text(seen.embedding.shape[1:])}, is the input of its classifier {classifier!r}."
        ]
    forms = []
    for tap in ("features", "features:tokens", "features:map"):
        try:
            with torch.no_grad():
                forms.append(
                    f"{tap!r} is {shape_text(observe(network, torch.zeros(2, *shape), [tap]).layers[0].shape[1:])}"
                )
        except InputError:
            continue
    return " ".join([*lines, f"Before pooling: {', '.join(forms)}." if forms else ""]).strip()


def network_from(class_path: str, options: Sequence[str]) -> nn.Module:
    """Build a network by class path; ``options`` are ``--name=value`` of its own arguments."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--network", type=nn.Module)
    inside = [f"--network.{option.removeprefix('--')}" if option.startswith("--") else option for option in options]
    try:
        parsed = parser.parse_args(expanded_options([f"--network={class_path}", *inside]))
        check_config(parsed.as_dict())
        network = parser.instantiate(parsed).network
    except (ArgumentError, ValueError, TypeError) as error:
        raise refusal_in(error) or parser_error(error) from error
    assert isinstance(network, nn.Module)
    return network
