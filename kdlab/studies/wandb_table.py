"""A study's table in Weights & Biases, beside its runs."""

from __future__ import annotations

from pathlib import Path

from kdlab.studies.columns import EXPORTED
from kdlab.studies.render import figure
from kdlab.studies.tables import Table


def log_table(table: Table, project: str, folder: Path) -> None:
    """Log table and figure as a run of type "report" in the study's group.

    Args:
        table: the table.
        project: of Weights & Biases.
        folder: where the client keeps its files.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    name = table.study.name
    run = wandb.init(project=project, group=name, job_type="report", name=f"{name} report", dir=str(folder.resolve()))
    rows = wandb.Table(columns=[column.name for column in EXPORTED])
    for entry in table.entries:
        rows.add_data(*(column.value(entry) for column in EXPORTED))
    run.log({"table": rows, "figure": wandb.Image(figure(table))})
    run.finish()
