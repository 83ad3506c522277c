"""A folder as model hubs hold them: weights, config, preprocessing and a model card with what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdlab.errors import InputError
from kdlab.export.adapters import LORA
from kdlab.files import write_json, write_text
from kdlab.models.weights import save_weights

SCORES = {
    "accuracy": "accuracy",
    "teacher_accuracy": "accuracy of the teacher",
    "retention": "share of the teacher's accuracy",
    "agreement": "agreement with the teacher",
    "ece": "expected calibration error",
}
"""Scores of :func:`~kdlab.export.parity.scores_of` in the card, all in percent."""

WRAPPERS = ("kdlab.models.with_weights", "kdlab.models.fake_quantized", *LORA)
"""Builders whose network is the one that they are given, in the folder's float weights."""

CARD = """---
license: {license}
library_name: {library}
pipeline_tag: image-classification
tags: [knowledge-distillation, kdlab]
---

# {title}

{origin}

## Measured

| | |
|---|---:|
{rows}

On the validation set of {data}.

## Load it

```python
{snippet}
```

Inputs are images of shape {shape}, {preprocessing}. `config.json` names the classes.
"""
PLAIN = """from safetensors.torch import load_file

network = {name}({arguments})  # {path}, or a class of the same layers
network.load_state_dict(load_file("model.safetensors"))
network.eval()"""
TIMM = """import timm

network = timm.create_model("local-dir:.", pretrained=True).eval()"""


def write_hub_folder(
    folder: Path,
    network: nn.Module,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    scores: Mapping[str, float],
    recipe: Mapping[str, Any],
    license: str = "unknown",
) -> list[Path]:
    """Write ``model.safetensors``, ``config.json``, ``preprocessor_config.json`` and ``README.md``; return the paths.

    Args:
        folder: new, or empty.
        network: the student.
        config: class path and arguments of the network.
        metadata: as of :func:`~kdlab.export.deployed.about`, with shape, parameters and flops.
        scores: of :func:`~kdlab.export.parity.scores_of`.
        recipe: the run's config, for teacher, losses and data.
        license: the license field of the card.

    Raises:
        InputError: the folder has files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{str(folder)!r} is not empty: name another folder with --push.")
    preprocessing, classes = metadata["preprocessing"], metadata["classes"]
    while config["class_path"] in WRAPPERS:
        config = config["init_args"]["network"]
    path, options = config["class_path"], dict(config.get("init_args") or {})
    is_timm = path == "kdlab.models.timm_model"
    described: dict[str, Any] = {"class_path": path, "init_args": options, "kdlab": metadata}
    described["id2label"] = {str(number): name for number, name in enumerate(classes)}
    if is_timm:
        shape, mean, std = (preprocessing.get(key) for key in ("shape", "mean", "std"))
        pretrained = {"input_size": shape, "mean": mean, "std": std, "num_classes": options.get("num_classes")}
        described |= {"architecture": options["name"], "num_classes": options.get("num_classes")}
        described["pretrained_cfg"] = {key: value for key, value in pretrained.items() if value is not None}
    arguments = ", ".join(
        f"{key}={value!r}" for key, value in options.items() if key != "weights" and value is not None
    )
    name = path.rpartition(".")[2]
    rows = [f"| {label} | {100 * scores[key]:.2f} % |" for key, label in SCORES.items() if key in scores]
    rows.append(f"| parameters | {metadata['parameters']:,} |")
    rows.append(f"| size | {4e-6 * metadata['parameters']:.2f} MB |")
    if metadata.get("flops"):
        rows.append(f"| operations of one image | {1e-6 * metadata['flops']:.1f} MFLOP |")
    card = CARD.format(
        license=license,
        library="timm" if is_timm else "pytorch",
        title=options.get("name", name),
        origin=_origin(recipe, name),
        rows="\n".join(rows),
        data=_name(recipe.get("data")),
        snippet=TIMM if is_timm else PLAIN.format(name=name, arguments=arguments, path=path),
        shape=" x ".join(map(str, preprocessing.get("shape", ()))),
        preprocessing=_inputs(preprocessing),
    )
    paths = [folder / file for file in ("model.safetensors", "config.json", "preprocessor_config.json", "README.md")]
    save_weights(network, paths[0], {"kdlab": json.dumps(metadata)})
    write_json(paths[1], described)
    write_json(paths[2], _preprocessor(preprocessing))
    write_text(paths[3], card)
    return paths


def _origin(recipe: Mapping[str, Any], name: str) -> str:
    options = (recipe.get("model") or {}).get("init_args") or {}
    teacher, knowledge = options.get("teacher"), options.get("knowledge") or {}
    data = _name(recipe.get("data"))
    if not teacher:
        return f"`{name}`, trained on {data} with kdlab."
    teachers: Sequence[Any] = teacher if isinstance(teacher, list) else [teacher]
    losses = ", ".join(_name(part.get("loss")) for part in knowledge.values()) or "no loss on the teacher"
    return f"`{name}`, distilled from {', '.join(map(_name, teachers))} on {data} with kdlab ({losses})."


def _name(part: Any) -> str:
    """Return the last name of a class path in a config; of a wrapper the name of what it wraps."""
    if not isinstance(part, Mapping):
        return str(part).rpartition(".")[2]
    inner = (part.get("init_args") or {}).get("network")
    return _name(inner) if isinstance(inner, Mapping) else str(part.get("class_path", "")).rpartition(".")[2]


def _inputs(preprocessing: Mapping[str, Any]) -> str:
    if "mean" not in preprocessing:
        return "as the data gives them"
    mean, std = ([round(value, 4) for value in preprocessing[name]] for name in ("mean", "std"))
    return f"scaled to 0 to 1, then normalized by mean {mean} and standard deviation {std}"


def _preprocessor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the preprocessing under the names that image processors of transformers use."""
    if "mean" not in preprocessing:
        return {}
    shape = preprocessing.get("shape") or (0, 0, 0)
    return {
        "do_rescale": True,
        "rescale_factor": preprocessing["scale"],
        "do_normalize": True,
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
        "size": {"height": shape[1], "width": shape[2]},
    }
