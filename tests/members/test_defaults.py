"""Defaults and traits of members and ensembles: recipes and modules rest on them without a word."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from kdlab import members
from kdlab.members import EMA, Bank, Cached, Frozen, Learner, Member, Retokenized, Snapshot, Stored, TeacherCache
from kdlab.members.copies import Copy
from kdlab.members.ensembles import AEKD, CAMKD, EBKD, Ensemble, MeanOfLogits, MeanOfLosses
from kdlab.members.mixtures import Attention, EnsembleClassifier, Ensembled, Gate, Joined, MeanOfOthers

DEFAULTS: dict[Any, dict[str, object]] = {
    AEKD: {"nu": None, "temperature": 4.0, "normalize": False, "normalise": None},
    Bank: {"dtype": "torch.float32", "every": 1, "wait": False, "label_unknown": False},
    CAMKD: {"released": True},
    Copy.follow: {"decay": 0.0, "buffers": False},
    EMA: {"decay": 0.999, "buffers": "average", "batchnorm": "batch"},
    Frozen: {"name": "teacher", "batchnorm": "frozen", "fast": "Fast()", "preprocessing": None},
    Member.set_taps: {"views": (), "only_layers": False},
    Learner.set_taps: {"views": (), "only_layers": False},
    Frozen.set_taps: {"views": (), "only_layers": False},
    Ensembled.set_taps: {"views": (), "only_layers": False},
    Retokenized: {"max_length": None, "local_files_only": False},
    Snapshot: {"unit": "step", "batchnorm": "frozen"},
    Stored: {"kind": "logits", "num_classes": None, "fixed": False},
    TeacherCache: {"dtype": "float16", "top_k": None, "views": None, "check": 0, "shared": False},
}


@pytest.mark.parametrize("call", DEFAULTS, ids=lambda call: call.__qualname__)
def test_defaults_are_those_of_the_table(call: Any) -> None:
    """Change both, with a line in CHANGELOG.md."""
    parameters = inspect.signature(call).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    expected = dict(DEFAULTS[call])
    if call is Bank:
        defaults["dtype"] = str(defaults["dtype"])
    if call is Frozen:
        expected["fast"] = members.Fast()
    assert defaults == expected


TRAITS: dict[type[Member], str] = {
    Member: "",
    Attention: "",
    Bank: "is_optional",
    Cached: "is_frozen in_evaluation",
    EMA: "in_evaluation any_shape",
    EnsembleClassifier: "in_evaluation",
    Ensembled: "is_frozen in_evaluation",
    Frozen: "is_frozen in_evaluation any_shape",
    Gate: "in_evaluation",
    Joined: "",
    Learner: "in_evaluation any_shape",
    MeanOfOthers: "is_optional",
    Snapshot: "is_optional any_shape",
    Stored: "is_frozen any_shape",
}


@pytest.mark.parametrize("kind", TRAITS)
def test_traits_are_those_of_the_table(kind: type[Member]) -> None:
    names = ("is_frozen", "in_evaluation", "is_optional", "any_shape", "is_dry_run")
    assert [name for name in names if getattr(kind, name)] == TRAITS[kind].split()


def test_networks_give_logits_and_no_factors_unless_asked() -> None:
    assert Learner.factors is False


def test_which_ensembles_take_weights() -> None:
    kinds = (Ensemble, MeanOfLogits, MeanOfLosses, EBKD, CAMKD, AEKD)
    assert [kind.weighted for kind in kinds] == [True, True, True, False, False, False]
