"""``kdlab export``: the student of a run, as weights or as a program in a format of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kdlab.config.class_paths import instantiate
from kdlab.errors import InputError
from kdlab.export.student import export as write
from kdlab.export.student import run_of, student_in


def export(
    run: Path,
    overrides: list[str],
    out: Path | None = None,
    learner: str | None = None,
    format: Literal["safetensors", "torch", "onnx", "executorch", "openvino"] = "safetensors",
    int8: bool = False,
    calibrate: int = 512,
    with_preprocessing: bool = False,
    points: float | None = None,
    samples: int = 0,
    push: Path | None = None,
    license: str = "unknown",
) -> None:
    """Write the student of a run, or the network that a co-training deploys.

    Safetensors: student.safetensors, with the network's original key names, and student.yaml, its config, which builds
    it with these weights: kdlab fit -c RECIPE --model.teacher=student.yaml. LoRA adapters are merged into
    the weights.

    The other formats hold the program too, and need nothing of kdlab to run: student.pt2, .onnx, .pte, .xml. The file
    is run in its own runtime on the validation set and compared with the network; where it differs, it is kept as
    student.failed.*, and the exit status is 3. --KEY=VALUE are options of kdlab fit, such as --data.root=DATA.

    Args:
        run: folder of a run, or one of its checkpoints
        overrides: options of ``kdlab fit``
        out: folder to write to (default: the run's folder)
        learner: another network of a co-training than the deployed one
        format: what to write
        int8: quantize weights and activations to 8 bits (onnx, executorch, openvino)
        calibrate: number of training images that the ranges of the activations are taken from
        with_preprocessing: take uint8 images, and normalize them in the program
        points: percentage points of accuracy that the file may lose (default: 0.1, int8 1.0)
        samples: validation samples of the check (0: all)
        push: write a folder as model hubs hold them: safetensors, config, preprocessing, model card with scores
        license: license field of the model card
    """
    if push is not None:
        for path in _hub_folder(run, overrides, learner, push, samples, license):
            print(path)
        return
    if format == "safetensors":
        if int8 or with_preprocessing or overrides:
            what = "--int8" if int8 else "--with-preprocessing" if with_preprocessing else overrides[0]
            raise InputError(f"{what} is for a format with a program: add --format onnx, executorch or openvino.")
        weights, config = write(run, out, learner, instantiate)
        print(f"{weights} ({weights.stat().st_size / 1e6:.2f} MB)")
        if config:
            print(f"{config} builds it with these weights in any config: --model.teacher={config}")
        return
    from kdlab.config.trained_run import file_name, trained_run
    from kdlab.export.formats import size_of

    name = file_name(format, int8)
    if calibrate < 1:
        raise InputError(f"--calibrate is at least 1, not {calibrate}.")
    path = (out or run_of(run)[1]) / name
    if path.exists():
        raise InputError(f"{str(path)!r} exists already: move it, or name another folder with --out.")
    trained = trained_run(run, overrides, learner)
    checked = trained.export(
        path,
        format,
        int8=int8,
        calibrate=calibrate,
        with_preprocessing=with_preprocessing,
        points=points,
        samples=samples,
    )
    print(f"{path} ({size_of(path, format) / 1e6:.2f} MB)")
    for line in checked.lines():
        print(line)


def _hub_folder(
    run: Path, overrides: list[str], learner: str | None, folder: Path, samples: int, license: str
) -> list[Path]:
    """Measure the student and write its folder; return its files."""
    from kdlab.config.trained_run import trained_run
    from kdlab.export.deployed import Deployed, about
    from kdlab.export.hub_folder import write_hub_folder
    from kdlab.export.parity import scores_of
    from kdlab.export.profiling import network_subject

    trained = trained_run(run, overrides, learner)
    shape = next(trained.samples(False, 1)).inputs.shape[1:]
    subject = network_subject("student", trained.network, shape)
    preprocessing = {"shape": [*shape], **trained.preprocessing(False), "dtype": "float32"}
    metadata = about(trained.network, preprocessing, trained.classes, trained.identity)
    metadata |= {"parameters": subject.parameters, "flops": subject.flops}
    (scores,) = scores_of([Deployed(trained.network)], trained.samples(False, samples))
    config = student_in(trained.config, learner) or {}
    return write_hub_folder(folder, trained.network, config, metadata, scores, trained.config, license)
