"""The constants of the studies of ``experiments/`` are those of the papers and of the released codes."""

from __future__ import annotations

import pytest

from kdlab.studies.preflight import resolve
from kdlab.studies.run_id import canonical
from tests.studies.shipped import ROOT, Config, cell, knowledge, named, optimizer, reduced, runs, schedule, soft

pytestmark = pytest.mark.full


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # class paths of experiments, and the short names of config files


def test_crd2020_trains_as_its_paper_does() -> None:
    kd = cell("crd2020_cifar100", "wrn_40_2 → ShuffleV1", "KD")
    assert optimizer(kd) == (0.01, 0.9, False, 0.0005)
    assert schedule(kd) == ([150, 180, 210], 0.1, 240, 64)
    assert kd["model"]["init_args"]["task_weight"] == 0.1
    assert soft(kd, "kd") == (0.9, 4.0)
    for pair in ("wrn_40_2 → ShuffleV1", "ResNet50 → MobileNetV2"):
        teacher = cell("crd2020_cifar100", pair, "teacher")
        assert optimizer(teacher)[0] == 0.05
        assert teacher["model"]["init_args"]["teacher"] is None
    assert optimizer(cell("crd2020_cifar100", "resnet56 → resnet20", "CRD"))[0] == 0.05
    both = cell("crd2020_cifar100", "vgg13 → MobileNetV2", "CRD+KD")
    assert optimizer(both)[0] == 0.01
    assert both["model"]["init_args"]["task_weight"] == 1.0
    assert soft(both, "kd") == (1.0, 4.0)
    weight, loss, *_ = knowledge(both, "crd")
    assert (weight, loss["negatives"], loss["temperature"]) == (0.8, 16384, 0.07)


def test_crd2020_compares_the_layers_of_repdistiller() -> None:
    blocks, relus = ["blocks.1", "blocks.2", "blocks.4", "blocks.6"], ["relu1", "relu2", "relu3", "relu4"]
    at = cell("crd2020_cifar100", "vgg13 → MobileNetV2", "AT")
    assert (knowledge(at, "at")[0], *knowledge(at, "at")[2:]) == (1000.0, blocks, relus)
    hint = cell("crd2020_cifar100", "ResNet50 → vgg8", "FitNet")
    assert (knowledge(hint, "hint")[0], *knowledge(hint, "hint")[2:]) == (100.0, ["relu2"], ["layer2"])
    sp = cell("crd2020_cifar100", "wrn_40_2 → ShuffleV1", "SP")
    assert (knowledge(sp, "sp")[0], *knowledge(sp, "sp")[2:]) == (3000.0, ["layer3"], ["block3"])
    ab = cell("crd2020_cifar100", "resnet110 → resnet32", "AB")
    assert schedule(ab) == ([180, 210, 240], 0.1, 270, 64)
    assert knowledge(ab, "ab")[2:] == tuple([f"layer{i}.{last}.preact" for i in (1, 2, 3)] for last in (4, 17))
    fsp = cell("crd2020_cifar100", "vgg13 → vgg8", "FSP")
    assert knowledge(fsp, "fsp")[2:] == (["relu0", *relus],) * 2
    ft = cell("crd2020_cifar100", "ResNet50 → vgg8", "FT")
    assert (knowledge(ft, "ft")[0], *knowledge(ft, "ft")[2:]) == (200.0, ["relu4"], ["layer4"])
    assert knowledge(ft, "paraphraser")[3] == ["layer4"]
    assert ft["model"]["init_args"]["parameter_groups"] == {"losses.paraphraser": {"lr": 0.05}}
    ft = cell("crd2020_cifar100", "resnet56 → resnet20", "FT")
    assert ft["model"]["init_args"]["parameter_groups"] == {"losses.paraphraser": {"lr": 0.01}}


def test_dkd2022_has_the_beta_of_each_pair() -> None:
    study = named("dkd2022_cifar100")
    betas: dict[str, set[tuple[str, str]]] = {}
    for pair in study.pairs:
        part = pair.methods["DKD"]
        assert part is not None
        beta = str(part.options["model.knowledge.dkd.loss.beta"])
        betas.setdefault(beta, set()).add((pair.roles["teacher"].name, pair.roles["student"].name))
    assert betas == {
        "2.0": {("resnet56", "resnet20"), ("resnet110", "resnet32")},
        "6.0": {("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("vgg13", "vgg8"), ("vgg13", "MobileNetV2")},
        "8.0": {("resnet32x4", "resnet8x4"), ("resnet32x4", "ShuffleV1"), ("resnet32x4", "ShuffleV2")}
        | {("wrn_40_2", "ShuffleV1"), ("ResNet50", "MobileNetV2")},
    }
    config = cell("dkd2022_cifar100", "vgg13 → MobileNetV2", "DKD")
    assert optimizer(config)[0] == 0.01
    assert knowledge(config, "dkd")[:2] == (1.0, {"alpha": 1.0, "beta": 6.0, "temperature": 4.0})
    warm_up = config["model"]["init_args"]["knowledge"]["dkd"]["schedule"]["init_args"]
    assert (warm_up["length"], warm_up["offset"]) == (20, 1)


def test_dkd2022_on_imagenet_has_batch_and_rate_by_method() -> None:
    for method, (batch, rate) in {"plain": (256, 0.1), "KD": (512, 0.2), "AT": (512, 0.2), "CRD": (256, 0.1)}.items():
        config = cell("dkd2022_imagenet", "ResNet34 → ResNet18", method)
        assert schedule(config) == ([30, 60, 90], 0.1, 100, batch)
        assert optimizer(config) == (rate, 0.9, False, 0.0001)
    for pair, beta in {"ResNet34 → ResNet18": 0.5, "ResNet50 → MobileNetV1": 2.0}.items():
        config = cell("dkd2022_imagenet", pair, "DKD")
        assert (schedule(config)[3], optimizer(config)[0]) == (512, 0.2)
        assert knowledge(config, "dkd")[1] == {"alpha": 1.0, "beta": beta, "temperature": 1.0}
        assert config["model"]["init_args"]["knowledge"]["dkd"]["schedule"]["init_args"]["length"] == 1
        assert config["model"]["init_args"]["teacher"]["init_args"]["weights"] == "IMAGENET1K_V1"
    layers = knowledge(cell("dkd2022_imagenet", "ResNet50 → MobileNetV1", "AT"), "at")[2:]
    assert layers == (["model.3", "model.5", "model.11", "model.13"], ["layer1", "layer2", "layer3", "layer4"])


def test_dml2018_trains_one_as_it_trains_two() -> None:
    configs = [cell("dml2018_cifar100", "resnet110 + resnet20", each) for each in ("independent", "DML", "DML in turn")]
    for config in configs:
        assert optimizer(config) == (0.1, 0.9, True, 0.0001)
        assert schedule(config) == ([100, 150], 0.1, 200, 128)
    assert configs[0]["model"]["init_args"]["student"]["class_path"] == "kdlab.models.resnet20"
    for config, update in zip(configs[1:], ("simultaneous", "sequential"), strict=True):
        options = config["model"]["init_args"]
        networks = {name: each["class_path"] for name, each in options["networks"].items()}
        assert networks == {"a": "kdlab.models.resnet20", "b": "kdlab.models.resnet110"}
        assert options["deploy"] == "a"
        assert options["teaching"]["init_args"]["update"] == update
        assert soft(config, "soft") == (1.0, 1.0)


def test_self_kd_trains_every_method_alike() -> None:
    students = [run for run in runs(reduced(named("self_kd_cifar100"))) if run.cells]
    configs = {run.cells[0].method: dict(run.config) for run in students}
    assert len(configs) == 20 - 1
    for method, config in configs.items():
        assert optimizer(config) == (0.1, 0.9, True, 0.0005)
        assert schedule(config) == ([100, 150], 0.1, *((205, 64) if method == "MixSKD" else (200, 128)))
        assert str(config["model"]).count("'kdlab.models.cifar_resnet18'") == (
            2 if method in ("BAN", "Tf-KD self") else 1
        )
        assert "kdlab.models.resnet" not in str(config["model"])
    past = configs["PS-KD"]["model"]["init_args"]
    assert [past["task_schedule"]["init_args"][each] for each in ("start", "end", "length")] == [
        1.0,
        pytest.approx(0.2),
        200,
    ]
    assert past["knowledge"]["past"]["schedule"]["init_args"]["length"] == 200
    stages = ["layer1", "layer2", "layer3", "layer4"]
    assert knowledge(configs["FRSKD"], "refine")[2] == stages
    assert knowledge(configs["MixSKD"], "mixed")[2] == stages
    assert knowledge(configs["Zipf"], "zipf")[2] == ["layer4"]
    assert knowledge(configs["USKD"], "uskd")[2] == ["layer3"]
    for method in ("BYOT", "DKS"):
        exits = configs[method]["model"]["init_args"]["networks"]["net"]["init_args"]
        assert (exits["layers"], exits["like"], exits["adapter"]) == (["layer2", "layer3"], "layer4", "stages")
    assert soft(configs["BYOT"], "soft") == (1.0, 4.0)
    assert knowledge(configs["BYOT"], "feature")[0] == 0.05
    assert configs["Tf-KD self"]["model"]["init_args"]["task_weight"] == 0.05
    weight, temperature = soft(configs["Tf-KD self"], "soft")
    assert weight == pytest.approx(0.95 * 50 / 100)
    assert temperature == 6.0


def test_hinton2015_trains_what_its_run_trains() -> None:
    """The study's configs are those of run.py, but for the teacher's weights, which the study trains itself."""
    folder = "experiments/hinton2015_mnist"
    taught = [f"--config={folder}/soft.yaml"]
    students: dict[str, list[str]] = {"plain": [], "soft": taught, "soft, no 3s": [*taught, "--data.omit=[3]"]}
    planned = runs(named("hinton2015_mnist"))
    assert len(planned) == 1 + 3 * 3
    for run in [each for each in planned if not each.cells or each.seed == 2]:
        if not run.cells:
            options = [f"--config={folder}/teacher.yaml"]
        else:
            options = [f"--config={folder}/plain.yaml", *students[run.cells[0].method]]
            options += [f"--seed_everything={run.seed}", f"--data.seed={run.seed}"]
        assert bare(canonical(dict(run.config))) == bare(canonical(resolve(options)))


def bare(config: Config) -> Config:
    """The config with the teacher's network in the place of the teacher, and without its weights."""
    options = config["model"]["init_args"]
    if options["teacher"] is not None:
        teacher = options["teacher"]["init_args"]
        options["teacher"] = dict(teacher["network"]["init_args"] if "network" in teacher else teacher, weights=None)
    return config
