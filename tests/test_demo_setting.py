"""The demo's setting: chosen without the test images, and the best of the recorded trials."""

from __future__ import annotations

import statistics
from collections import defaultdict

import torch
import yaml

from experiments.demo.choose import HELD_OUT, MIXUPS, RATES, SEEDS, TEMPERATURES, HeldOut, recorded
from kdlab.cli.demo_report import gain_text
from kdlab.config.recipe_files import recipe
from kdlab.data import Digits
from kdlab.studies.digits_demo import ALONE, DISTILLED, SETTING, Setting


def test_held_out_images_are_training_images() -> None:
    (train, _), (held, _) = HeldOut().read(train=True), HeldOut().read(train=False)
    every, _ = Digits().read(train=True)
    assert (len(train), len(held)) == (len(every) - HELD_OUT, HELD_OUT)
    assert torch.equal(torch.cat([train, held]).flatten(1).unique(dim=0), every.flatten(1).unique(dim=0))


def test_the_setting_is_what_the_trials_choose() -> None:
    accuracies: dict[tuple[Setting, str], list[float]] = defaultdict(list)
    for (setting, network, seed), accuracy in recorded().items():
        assert seed in SEEDS
        accuracies[setting, network].append(accuracy)
    ratios: dict[Setting, float] = {}
    assert len(accuracies) == len(MIXUPS) * (len(RATES) + len(TEMPERATURES))
    assert all(len(values) == len(SEEDS) for values in accuracies.values())
    for mixup in MIXUPS:
        alone, soft = (
            max(
                (one for one, name in accuracies if (name, one.mixup) == (wanted, mixup)),
                key=lambda one: statistics.mean(accuracies[one, wanted]),
            )
            for wanted in (ALONE, DISTILLED)
        )
        assert (soft.rate, soft.epochs) == (alone.rate, alone.epochs), "the student alone is no weak baseline"
        pairs = zip(accuracies[alone, ALONE], accuracies[soft, DISTILLED], strict=True)
        gains = [after - before for before, after in pairs]
        ratios[soft] = statistics.mean(gains) / statistics.stdev(gains)
    assert max(ratios, key=lambda setting: ratios[setting]) == SETTING


def test_the_recipe_is_the_demos_student() -> None:
    config = yaml.safe_load(recipe("kd_digits").path.read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    soft = model["knowledge"]["soft"]
    assert (
        Setting(
            labeled=data["train_size"],
            epochs=config["trainer"]["max_epochs"],
            rate=model["lr_scheduler"]["init_args"]["max_lr"],
            temperature=soft["loss"]["init_args"]["temperature"],
            weight=soft["weight"],
            batch=data["batch_size"],
            mixup=data["mixing"]["init_args"]["alpha"],
        )
        == SETTING
    )
    assert model["task_weight"] == 1 - SETTING.weight


def test_the_demo_compares_each_gain_with_the_spread() -> None:
    assert gain_text([2.0, 4.0]).endswith("the gain is larger than its spread with 2 of 2 seeds.")  # std 1.41
    assert gain_text([1.0, 5.0]).endswith("with 1 of 2 seeds.")
    assert gain_text([2.0]) == "+2.0 points of accuracy (seed by seed +2.0)."
