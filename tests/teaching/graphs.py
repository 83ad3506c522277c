"""What the tests of graphs share: a frozen teacher and two peers, written in YAML."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import yaml
from jsonargparse import ArgumentParser

from kdlab import CoTrainer, Knowledge
from kdlab.losses import SoftTargets
from kdlab.teaching import Graph, Teaching
from tests.modules.tiny import network, sgd

GRAPH = """
class_path: kdlab.teaching.Graph
init_args:
  members:
    big: {class_path: kdlab.models.mlp, init_args: {in_features: 64, hidden: [24], num_classes: 10}}
  edges:
    - {student: a, teacher: big, weight: 0.5}
    - {student: b, teacher: big, weight: 2, gate: correct}
    - {student: a, teacher: b, gate: linear}
    - {student: b, teacher: a, weight: 0.25, gate: through}
    - {student: a, teacher: big, weight: 9, gate: cutoff}
  supervision: {b: 0.5, a: 1.0}
"""


def parsed(text: str = GRAPH, **changes: Any) -> Graph:
    """The teaching of a config, by the parser that the command line uses."""
    config = yaml.safe_load(text)
    config["init_args"] |= changes
    parser = ArgumentParser()
    parser.add_subclass_arguments(Teaching, "teaching")
    pl.seed_everything(5, verbose=False)
    graph = parser.instantiate_classes(parser.parse_object({"teaching": config})).teaching
    assert isinstance(graph, Graph)
    return graph


def graph_module(graph: Graph | None = None, knowledge: dict[str, Knowledge] | None = None) -> CoTrainer:
    """Two peers beside the graph's frozen teacher."""
    nets = {"a": network(0), "b": network(1)}
    return CoTrainer(nets, knowledge or {"soft": Knowledge(SoftTargets(2.0), 0.7)}, graph or parsed(), optimizer=sgd)
