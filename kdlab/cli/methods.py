"""``kdlab methods``: every loss, way to weigh several teachers and optimiser, and the ways to learn together."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from kdlab.errors import InputError

HEADER = ("class", "method", "paper", "family", "needs", "weight")
WAYS_HEADER = ("teaching", "method", "paper", "configs/recipes/")
TEACHING = "teaching"


class Entry(NamedTuple):
    """One row of the table."""

    name: str
    method: str
    paper: str
    family: str
    needs: str
    weight: str


class Way(NamedTuple):
    """One row of the table of ways in which networks learn together or from themselves."""

    name: str
    method: str
    paper: str
    configs: str


ALONE = "label_smoothing, tf_kd_reg, tf_kd_reg_paper, zipf, uskd, frskd, mixskd, mixup, cutmix"
WAYS = (
    Way("Peers", "Deep mutual learning (DML)", "Zhang et al. 2018", "dml, dml_sequential"),
    Way("Peers", "Mutual contrastive learning (MCL)", "Yang et al. 2022", "mcl"),
    Way("Peers", "Deeply-supervised knowledge synergy (DKS)", "Sun et al. 2019", "dks"),
    Way("Consensus", "KDCL", "Guo et al. 2020", "kdcl, kdcl_naive, kdcl_linear, kdcl_minlogit, kdcl_general"),
    Way("Consensus", "Collaborative learning (CL, CL-ILR)", "Song and Chai 2018", "cl, cl_ilr"),
    Way("Gated", "On-the-fly native ensemble (ONE)", "Lan et al. 2018", "one"),
    Way("Leader", "Diverse peers and a leader (OKDDip)", "Chen et al. 2020", "okddip, okddip_networks"),
    Way("PeerEnsemble", "Peer collaborative learning (PCL)", "Wu and Gong 2021", "pcl"),
    Way("Stale", "Codistillation", "Anil et al. 2018", "codistillation"),
    Way("Stale", "Snapshot distillation", "Yang et al. 2019", "snapshot"),
    Way("MovingAverage", "Mean teacher", "Tarvainen and Valpola 2017", "mean_teacher"),
    Way("DeepestExit", "Be your own teacher (BYOT)", "Zhang et al. 2019", "byot"),
    Way("PreviousEpoch", "Progressive refinement of targets (PS-KD)", "Kim et al. 2021", "ps_kd"),
    Way("PreviousEpoch", "Learning with retrospection (LWR)", "Deng and Zhang 2021", "lwr"),
    Way("LastMiniBatch", "The last mini-batch (DLB)", "Shen et al. 2022", "dlb"),
    Way("TwoViews", "Data-distortion guided (DDGSD)", "Xu and Liu 2019", "ddgsd"),
    Way("Classmate", "Class-wise self-distillation (CS-KD)", "Yun et al. 2020", "cs_kd"),
    Way("Classmates", "Batch knowledge ensembling (BAKE)", "Ge et al. 2021", "bake"),
    Way("Alone", "a loss that reads no other, or none", "", ALONE),
    Way("FrozenTeacher", "Born-again networks (`kdlab generations`)", "Furlanello et al. 2018", "born_again"),
)


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(
        prog="kdlab methods",
        description="List the methods: what each compares, what it needs, and its weight in the CIFAR-100 recipe "
        "beside weight 1 on the labels (unless its docstring says otherwise).",
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table, as in the README")
    parser.add_argument("--family", help="only this family, e.g. relation")
    given = parser.parse_args(list(arguments))
    rows = entries()
    if given.family:
        families = sorted({TEACHING, *(row.family for row in rows)})
        if given.family not in families:
            raise InputError(f"There is no family {given.family!r}; the families are {', '.join(families)}.")
        rows = [row for row in rows if row.family == given.family]
    tables: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = [(HEADER, rows)] if rows else []
    if given.family in (None, TEACHING):
        tables.append((WAYS_HEADER, WAYS))
    if given.markdown:
        sys.stdout.write("\n".join(markdown(own, header) for header, own in tables))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    for header, own in tables:
        table = Table()
        for column in header:
            table.add_column(column, no_wrap=column == header[0])
        for row in own:
            table.add_row(*row)
        console.print(table)


def entries() -> list[Entry]:
    """The rows, by family and name, read off the code."""
    from kdlab import losses, optimizers, teaching

    rows = [_loss(getattr(losses, name)) for name in losses.__all__]
    ensembles = (getattr(teaching, name) for name in teaching.__all__)
    rows += [_other(each, "teachers") for each in ensembles if issubclass(each, teaching.Ensemble)]
    rows.append(_other(optimizers.DOT, "optimiser"))
    order = ["response", "feature", "relation", "plug-in", "teachers", "optimiser"]
    return sorted(rows, key=lambda row: (order.index(row.family), row.name.lower()))


def markdown(rows: Sequence[Sequence[str]], header: Sequence[str] = HEADER) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += ["| " + " | ".join([f"`{row[0]}`", *row[1:]]) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _loss(kind: Any) -> Entry:
    parameters = inspect.signature(kind).parameters
    family = "plug-in" if "loss" in parameters else kind.__module__.split(".")[2]
    loss = kind()
    needs = [need.replace("_", " ") for need in loss.needs]
    if "views" in loss.needs:
        needs[needs.index("views")] = f"view {', '.join(map(repr, loss.views))}"
    return Entry(*_described(kind), family, ", ".join(needs), f"{kind.recipe_weight:g}")


def _other(kind: Any, family: str) -> Entry:
    return Entry(*_described(kind), family, "", "")


def _described(kind: Any) -> tuple[str, str, str]:
    """Class, method and paper: the class' own ``method`` and ``paper``, else as its file's first line has them."""
    first = (inspect.getdoc(inspect.getmodule(kind)) or "").split("\n")[0]
    found = re.fullmatch(r"(?P<method>[^:]+):.*\((?P<paper>[^()]*\d{4}[^()]*)\)\.", first)
    given = vars(kind)
    method = given.get("method", found and found["method"])
    paper = given.get("paper", found and found["paper"])
    if method is None or paper is None:
        raise ValueError(f"{kind.__name__} needs a first line 'method: what it does (authors year).', not {first!r}")
    return kind.__name__, str(method), str(paper)
