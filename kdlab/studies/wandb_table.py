"""A study's table in Weights & Biases, beside its runs."""

from __future__ import annotations

from pathlib import Path

from kdlab.studies.render import figure
from kdlab.studies.tables import Table

COLUMNS = ("pair", "method", "seeds", "of", "top1", "std", "best", "gain", "gain_low", "gain_high", "published")


def log_table(found: Table, project: str, folder: Path) -> None:
    """Log the table and the figure as a run of kind "report" in the study's group.

    Args:
        found: the table.
        project: of Weights & Biases.
        folder: where the client keeps its files.
    """
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    name = f"{found.study.name} report"
    run = wandb.init(project=project, group=found.study.name, job_type="report", name=name, dir=str(folder.resolve()))
    rows = wandb.Table(columns=list(COLUMNS))
    for each in found.entries:
        last, best, gain = each.last, each.best, each.gain
        rows.add_data(
            *(each.pair, each.method, len(each.values), each.wanted),
            *(last.mean if last else None, last.std if last else None, best.mean if best else None),
            *(gain or (None, None, None)),
            each.published.top1 if each.published else None,
        )
    run.log({"table": rows, "figure": wandb.Image(figure(found))})
    run.finish()
