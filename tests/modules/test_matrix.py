"""Every loss under every kind of teaching takes two steps, or an error says why it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdlab import CoTrainer, Distiller, InputError, Knowledge, losses
from kdlab.data import Mixed, RandAugment, Rotations
from kdlab.models import WithExits, normed, projected, resnet8
from kdlab.outputs import Outputs
from kdlab.teaching import CAMKD, DeepestExit, MovingAverage, Peers
from tests.modules.tiny import digits, same, sgd, trainer, weights
from tests.tiers import tiered

TEACHINGS = ("frozen", "peers", "average", "exits")
WIDTH = 64
# Of whom something moves.
TAUGHT = {"frozen": ("student.",), "peers": ("a.", "b."), "average": ("net.",), "exits": ("net.exit1.", "net.exit2.")}
VIEWS = {"rotations": Rotations, "strong": RandAugment, "mixed": Mixed}

# The layers where the last map alone does not do.
LAYERS = {
    "FSP": ["layer2", "layer3"],
    "ReviewKD": ["layer1", "layer2", "layer3"],
    "FRSKD": ["layer1", "layer2", "layer3"],
    "MixSKD": ["layer1", "layer2", "layer3"],
    "CAMKDFeatures": ["layer3", "layer3"],
    "KDSVD": ["layer2", "layer3"],
    "IRG": ["layer2", "layer3"],
    "SimKD": ["projector"],
    "NORM": ["expand"],
}
ENSEMBLE = ["0.layer3", "1.layer3"]

# What these take from the teacher before the first step means nothing while it still learns.
OF_A_FIXED_TEACHER = {
    **dict.fromkeys(
        ("CAMKDFeatures", "CATKD", "SRRL", "ScaleDecoupled", "SimKD"), "copies the teacher's classifier at setup"
    ),
    "NormAndDirection": "runs the teacher on the training set at setup",
    "Standardized": "runs the teacher on the training set at setup",
    "OFD": "frozen teacher",  # which its set-up finds, not the dry run
}
TEACHER = {"peers": "b", "average": "average_net", "exits": "net"}
REFUSED = {(name, teaching): why for name, why in OF_A_FIXED_TEACHER.items() for teaching in TEACHINGS[1:]}


def net(seed: int, name: str = "") -> nn.Module:
    torch.manual_seed(seed)
    plain = resnet8(10, in_channels=1)
    if name == "SimKD":
        return projected(plain, "layer3", WIDTH)
    return normed(plain, "layer3", WIDTH, 2) if name == "NORM" else plain


def taps(name: str, teaching: str) -> dict[str, Any]:
    """The layers to name for a loss, if it reads any."""
    kind = getattr(losses, name)
    needs = kind().needs
    if not {"layers", "student_layers", "teacher_layers"} & set(needs):
        return {}
    ours = LAYERS.get(name, ["layer3"])
    theirs = ENSEMBLE if name == "CAMKDFeatures" and teaching == "frozen" else ours
    if name in ("SimKD", "NORM"):  # a student of its own kind, which as a teacher has the network inside
        theirs = ["layer3" if teaching == "frozen" else "trunk.layer3"]
    if teaching == "exits":  # an exit's own map, and below it the layers that all exits share
        ours = theirs = [*ours[:-1], "feature"]
    found = {"student_layers": ours, "teacher_layers": theirs}
    if "layers" not in needs:
        found = {side: names for side, names in found.items() if side in needs}
    return found


def knowledge(name: str, teaching: str) -> dict[str, Knowledge]:
    """The loss itself, with what it builds on."""
    loss = getattr(losses, name)()
    own = {"own": Knowledge(loss, **taps(name, teaching))}
    if name == "SSKD":
        return {"head": Knowledge(losses.SelfSupervision()), **own}
    if name == "FactorTransfer":
        return {"paraphraser": Knowledge(losses.Paraphraser(), **taps("Paraphraser", teaching)), **own}
    return own


def module(name: str, teaching: str) -> Any:
    options: dict[str, Any] = {"knowledge": knowledge(name, teaching), "optimizer": sgd, "task_weight": 0.0}
    if teaching == "frozen":
        if name == "CAMKDFeatures":
            return Distiller(net(0), [net(1), net(2)], ensemble=CAMKD(), **options)
        return Distiller(net(0, name), net(1), **options)
    if teaching == "peers":
        return CoTrainer({"a": net(0, name), "b": net(1, name)}, teaching=Peers(), **options)
    if teaching == "average":
        made = CoTrainer({"net": net(0, name)}, teaching=MovingAverage(0.9), **options)
        # At the start the average is the network itself, which has nothing to say.
        made.teaching.get_submodule("copies.networks.net").load_state_dict(net(1, name).state_dict())
        return made
    exits = WithExits(net(0), ["layer1", "layer2"], "layer3", image=[1, 8, 8])
    return CoTrainer({"net": exits}, teaching=DeepestExit(), **options)


def values(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in network.named_parameters()}


class Watch(pl.Callback):
    """What is there before the first step, and whether every step is finite."""

    def __init__(self) -> None:
        self.finite: list[bool] = []
        self.learners: dict[str, Tensor] = {}
        self.teacher: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.learners, self.teacher = values(nn.ModuleDict(module.learners)), weights(module.teaching)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.finite.append(bool(outputs["loss"].isfinite()))


def copies(module: Any) -> list[nn.Module]:
    """The losses, once for each learner and teacher."""
    return [loss for each in module.knowledge.values() for loss in each.copies.values() or [each.loss]]


def moved(before: dict[str, Tensor], after: dict[str, Tensor], start: str = "") -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before if name.startswith(start))


def fitted(made: Any) -> Watch:
    """Two steps on real images; no loss gets a teacher's side with gradient."""
    watch, compared = Watch(), []

    def check(loss: nn.Module, sides: tuple[Outputs, Outputs, Tensor]) -> None:
        compared.append(loss)
        assert not any(tensor.requires_grad for tensor in sides[1].tensors())

    handles = [loss.register_forward_pre_hook(check) for loss in copies(made)]
    views = {view: VIEWS[view]() for each in made.knowledge.values() for view in each.views}
    trainer(max_steps=2, callbacks=[watch]).fit(made, digits(views=views, batch_size=16))
    for handle in handles:
        handle.remove()
    assert {*compared} == {*copies(made)}
    return watch


OF_SEQUENCES = ("HiddenCosine", "MiniLM", "MiniLMv2", "PKD", "TinyBERTAttention", "TinyBERTHidden")
"""Losses of texts, see tests/modules/test_token_training.py."""
CASES = [(name, teaching) for name in losses.__all__ if name not in OF_SEQUENCES for teaching in TEACHINGS]
QUICK = {case for case in CASES if case[1] == "frozen" or case[0] in ("SoftTargets", "Hint", "CRD", "FactorTransfer")}
"""Each loss with a frozen teacher, and each teaching with a loss of each kind; the others are full."""


@pytest.mark.parametrize(("name", "teaching"), tiered([case for case in CASES if case not in REFUSED], QUICK))
def test_it_takes_two_steps(name: str, teaching: str) -> None:
    made = module(name, teaching)
    watch = fitted(made)
    assert watch.finite == [True, True]
    after = values(nn.ModuleDict(made.learners))
    teaches = any(each.reads_student for each in made.knowledge.values())  # else it prepares its own parts alone
    for taught in TAUGHT[teaching]:
        assert moved(watch.learners, after, taught) == teaches, taught
    if teaching == "exits":  # the labels weigh 0, and nobody teaches the deepest
        assert not moved(watch.learners, after, "net.network.fc")
        assert not moved(watch.learners, after, "net.network.layer3")
    assert all(each.grad is None for each in made.teaching.parameters())
    if teaching == "frozen":
        assert same(watch.teacher, weights(made.teaching))
    trained = {id(each) for group in made.trainer.optimizers[0].param_groups for each in group["params"]}
    assert len(set(copies(made))) == len(made.knowledge) * (2 if teaching in ("peers", "exits") else 1)
    for part in copies(made):
        own = [each for each in part.parameters() if each.requires_grad]
        assert trained >= set(map(id, own))
        assert any(each.grad is not None and bool(each.grad.any()) for each in own) == bool(own)


@pytest.mark.parametrize(("name", "teaching"), REFUSED)
def test_or_an_error_says_why_not(name: str, teaching: str) -> None:
    made = module(name, teaching)
    before = values(nn.ModuleDict(made.learners))
    with pytest.raises(InputError) as error:
        fitted(made)
    text = str(error.value)
    assert text.startswith(f"Knowledge 'own' ({name})")
    assert REFUSED[name, teaching] in text
    assert name == "OFD" or text.endswith(f"needs a frozen teacher, but {TEACHER[teaching]!r} changes in training.")
    assert "\n" not in text
    assert ". " not in text
    assert same(before, values(nn.ModuleDict(made.learners)))
