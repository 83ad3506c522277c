"""Figures of runs: curves of several, files with their numbers, loggers that take them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

from kdlab import InputError
from kdlab.cli import main
from kdlab.data import Preprocessing
from kdlab.figures import LogFigures
from kdlab.figures.curve_rows import curve_rows, named
from kdlab.figures.evidence import Evidence
from kdlab.figures.run_figures import write
from tests.modules.tiny import digits, distiller, trainer

HEADER = "step,epoch,loss/task,loss/soft,loss/soft_weighted,val/student_accuracy,val/teacher_accuracy\n"


def test_curves_take_weighted_terms_and_a_resumed_runs_first_part(tmp_path: Path) -> None:
    for name in ("a/run", "b/run"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/run/metrics.0.csv").write_text(HEADER + "4,0,2.0,3.0,1.5,,\n9,1,9.0,,,,\n")
    (tmp_path / "a/run/metrics.csv").write_text(HEADER + "9,1,1.0,2.0,1.0,,\n9,1,,,,0.5,0.75\n")
    (tmp_path / "b/run/metrics.csv").write_text(HEADER + "4,0,4.0,,,,\n")
    rows = curve_rows(dict(named([tmp_path / "a/run", tmp_path / "b/run"])))
    points = {(row["run"], row["series"], row["step"]): row["value"] for row in rows}
    assert points == {
        ("a/run", "task", 4): 2.0,
        ("a/run", "task", 9): 1.0,
        ("a/run", "soft", 4): 1.5,
        ("a/run", "soft", 9): 1.0,
        ("a/run", "student accuracy", 9): 0.5,
        ("a/run", "teacher accuracy", 9): 0.75,
        ("b/run", "task", 4): 4.0,
    }
    with pytest.raises(InputError, match=r"has no metrics\.csv"):
        curve_rows({"none": tmp_path})


def batch_of(data: Any) -> Any:
    data.setup()
    return data.prepare(next(iter(data.test_dataloader())))


@pytest.mark.full
def test_every_figure_has_its_numbers_beside_it(tmp_path: Path) -> None:
    module, evidence = distiller(), Evidence()
    batch = batch_of(digits())
    evidence.add(module, batch)
    plots = {plot.name: plot for plot in evidence.plots()}
    assert list(plots) == ["reliability", "agreement", "confusion", "class_correlations", "cka"]
    for plot in plots.values():
        for suffix in ("png", "svg", "pdf") if plot.name == "agreement" else ("png",):
            drawn, numbers = write(plot, tmp_path, suffix)
            assert drawn.stat().st_size > 1000
        with numbers.open() as file:
            assert len([*csv.DictReader(file)]) == len(plot.rows)
    right = (module(batch.inputs).argmax(1) == batch.target).double()
    rows = plots["agreement"].rows
    assert sum(row["samples"] * row["student_accuracy"] for row in rows) == pytest.approx(float(right.sum()))
    images = {axes.get_xlabel(): axes.images[0].get_array() for axes in plots["confusion"].figure.axes if axes.images}
    assert images["student's class"].shape == (10, 10)
    assert {row["student_layer"] for row in plots["cka"].rows} == {"hidden.0", "fc"}


def test_cka_shows_the_teacher_images_as_it_was_trained_to() -> None:
    module, data = distiller(teacher_preprocessing=Preprocessing((0.9,), (0.1,))), digits()
    trainer().test(module, data, verbose=False)
    raw = next(iter(data.test_dataloader())).inputs[:256]
    evidence = Evidence()
    evidence.add(module, batch_of(data))
    rows = {plot.name: plot.rows for plot in evidence.plots()}["cka"]
    with torch.no_grad():
        features = (
            module.teacher.networks[0]((raw / 255 - 0.9) / 0.1).double(),
            module(batch_of(data).inputs[:256]).double(),
        )
    taught, own = (values - values.mean(0) for values in features)
    expected = (own.T @ taught).square().sum() / ((own.T @ own).norm() * (taught.T @ taught).norm())
    (value,) = (row["cka"] for row in rows if (row["student_layer"], row["teacher_layer"]) == ("fc", "fc"))
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_other_targets_have_no_figures_of_classes() -> None:
    module, evidence = distiller(task=torch.nn.MSELoss(), knowledge=None), Evidence()
    batch = batch_of(digits())
    evidence.add(module, batch._replace(target=torch.zeros(len(batch.target), 10)))
    assert [plot.name for plot in evidence.plots()] == ["cka"]


class Wandb(WandbLogger):
    """Takes images in place of the service."""

    def __init__(self) -> None:
        self.images: list[str] = []
        self._save_dir = "."

    name = version = "wandb"
    experiment: Any = None

    def log_image(self, key: str, images: list[Any], step: int | None = None, **options: Any) -> None:
        assert images[0].axes
        self.images.append(key)

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    log_hyperparams = log_graph = save = finalize = after_save_checkpoint = log_metrics  # type: ignore[assignment]


@pytest.mark.full
def test_one_key_logs_the_figures_after_validation_and_test(tmp_path: Path) -> None:
    logger = Wandb()
    run = trainer(callbacks=[LogFigures()], logger=logger, limit_val_batches=1.0, default_root_dir=tmp_path)
    module = distiller()
    run.fit(module, digits())
    assert logger.images == [
        f"val/{name}" for name in ("reliability", "agreement", "confusion", "class_correlations", "cka")
    ]
    logger.images.clear()
    run.test(module, digits(), verbose=False)
    assert logger.images[0] == "test/reliability"
    with pytest.warns(UserWarning, match="LogFigures draws nothing"):
        trainer(callbacks=[LogFigures()]).fit(module, digits())


@pytest.mark.full
def test_tensorboard_gets_every_figure_as_an_image(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="run")
    run = trainer(2, callbacks=[LogFigures(every_n_epochs=2)], logger=logger, limit_val_batches=1.0)
    run.fit(distiller(), digits())
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    names = ("agreement", "cka", "class_correlations", "confusion", "reliability")
    assert sorted(events.Tags()["images"]) == [f"val/{name}" for name in names]
    for name in names:
        (image,) = events.Images(f"val/{name}")  # of the second epoch alone
        assert image.step == run.global_step
        assert Image.open(io.BytesIO(image.encoded_image_string)).size == (image.width, image.height)
    assert {"loss/soft", "val/student_accuracy"} <= {*events.Tags()["scalars"]}


def test_plot_of_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plot", str(tmp_path / "gone")])
    assert "There is no run" in capsys.readouterr().err
