"""Language models whose teacher is a file: hidden states, most probable tokens, all logits; the teacher cache."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdlab import Distiller, Knowledge
from kdlab.config.first_step import _FirstStep
from kdlab.data import TextData
from kdlab.errors import InputError
from kdlab.losses import ForwardKL, SoftTargets, TopK
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.members import Stored
from kdlab.modules.output_writer import Choice
from kdlab.teaching import TeacherCache
from tests.modules.test_stored_teacher import Write
from tests.modules.tiny import same, sgd, trainer, weights
from tests.tiny_transformers import SENTENCES, sentences, tiny, tokenizer_folder

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("texts")
    return sentences(root / "data", SENTENCES * 2), tokenizer_folder(root / "tokenizer")


def texts(folders: tuple[str, str], **options: Any) -> TextData:
    return TextData(*folders, **{"task": "causal", "batch_size": 6, "cache": None, **options})


def network(seed: int, head: str = "ForCausalLM") -> Any:
    built = tiny("GPT2", head)
    torch.manual_seed(seed)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.2)
    return built


def distiller(teacher: Any, loss: nn.Module | None = None, chunk_size: int | None = None) -> Distiller:
    knowledge = {"kl": Knowledge(loss or ForwardKL(chunk_size=chunk_size))}
    task = TokenCrossEntropy(chunk_size=chunk_size)
    return Distiller(network(0).train(), teacher, knowledge, task=task, task_weight=0.5, optimizer=sgd)


def written(path: Path, data: TextData, choice: Choice) -> Stored:
    with pytest.raises(_FirstStep):
        trainer(1, callbacks=[Write(path, choice)]).fit(distiller(network(1)), datamodule=data)
    return Stored(str(path))


def trained(module: Distiller, data: TextData, **options: Any) -> dict[str, Tensor]:
    trainer(**({"max_steps": 5} | options)).fit(module, datamodule=data)
    return weights(module.student)


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.full
@pytest.mark.parametrize("choice", [Choice(), Choice(hidden=True)], ids=["logits", "hidden"])
def test_a_file_of_tokens_trains_as_the_teacher(tmp_path: Path, folders: Any, choice: Choice) -> None:
    """Whatever the padding: to rounding, since a matrix product of another length sums in another order."""
    file = written(tmp_path / "t.safetensors", texts(folders), choice)
    live = trained(distiller(network(1), chunk_size=4), texts(folders))
    assert difference(live, trained(distiller(file, chunk_size=4), texts(folders))) < 2e-6
    assert difference(live, trained(distiller(network(2), chunk_size=4), texts(folders))) > 1e-3


@pytest.mark.full
def test_hidden_states_of_the_same_batches_have_the_same_bits(tmp_path: Path, folders: Any) -> None:
    """The first epoch has the batches that the file was written with."""
    file = written(tmp_path / "t.safetensors", texts(folders), Choice(hidden=True))
    live = trained(distiller(network(1), chunk_size=4), texts(folders), max_steps=3)
    assert same(live, trained(distiller(file, chunk_size=4), texts(folders), max_steps=3))


def test_hidden_states_take_two_bytes_a_number(tmp_path: Path, folders: Any) -> None:
    data = texts(folders)
    file = written(tmp_path / "t.safetensors", data, Choice(hidden=True, dtype=torch.bfloat16)).file
    tokens = int(data._split("train").lengths.sum())  # type: ignore[attr-defined]
    assert file.tensors["hidden"].shape == (tokens, 32)
    assert file.tensors["hidden"].dtype == torch.bfloat16
    assert file.tensors["head.weight"].shape == (83, 32)
    others = 83 * 32 * 4 + 8 * len(SENTENCES) * 2 + 2 * 8 * len(SENTENCES) * 2
    assert (tmp_path / "t.safetensors").stat().st_size < tokens * 64 + others + 2000


@pytest.mark.full
def test_top_k_of_a_file_is_that_of_the_teacher(tmp_path: Path, folders: Any) -> None:
    file = written(tmp_path / "t.safetensors", texts(folders), Choice(top_k=8))
    live = trained(distiller(network(1), TopK(8)), texts(folders), max_steps=3)
    assert difference(live, trained(distiller(file, TopK(8)), texts(folders), max_steps=3)) < 2e-6
    with pytest.raises(InputError, match=r"compares 9 tokens, and .* has 8 a row: set k=8 or less"):
        trained(distiller(file, TopK(9)), texts(folders))
    spread = distiller(file)
    trained(spread, texts(folders), max_steps=1)
    assert math.isfinite(spread.dry_run.terms["kl"])  # type: ignore[union-attr]


@pytest.mark.full
def test_other_tokens_are_refused(tmp_path: Path, folders: Any) -> None:
    file = written(tmp_path / "t.safetensors", texts(folders), Choice(hidden=True))
    with pytest.raises(InputError, match="the texts, their order or their tokens differ"):
        trained(distiller(file), texts(folders, max_length=6))
    other = tokenizer_folder(tmp_path / "other", ["the", "film", "is", "good"])
    with pytest.raises(InputError, match="the texts, their order or their tokens differ"):
        trained(distiller(file), texts((folders[0], other)))
    with pytest.raises(InputError, match=r"A packed row is no sample|needs the sample index"):
        trained(distiller(file), texts(folders, packing=True))
    soft = network(1)
    soft.lm_head = nn.Sequential(soft.lm_head, nn.Tanh())
    writing = trainer(1, callbacks=[Write(tmp_path / "u.safetensors", Choice(hidden=True))])
    with pytest.raises(InputError, match="its plain output"):
        writing.fit(distiller(soft), datamodule=texts(folders))


@pytest.mark.full
def test_sentences_are_cached(tmp_path: Path, folders: Any) -> None:
    """Filled in the first epoch, read in all others: to the rounding of another padding."""

    def build(cache: TeacherCache | None) -> tuple[Distiller, list[int]]:
        teacher, calls = network(1, "ForSequenceClassification"), list[int]()
        teacher.register_forward_hook(lambda *_: calls.append(1))
        student = network(0, "ForSequenceClassification").train()
        knowledge = {"soft": Knowledge(SoftTargets(2.0), 0.5)}
        return Distiller(student, teacher, knowledge, optimizer=sgd, teacher_cache=cache, teacher_fast=None), calls

    found = []
    for cache in (None, TeacherCache(str(tmp_path), "float32"), TeacherCache(str(tmp_path), "float32")):
        module, calls = build(cache)
        data = texts(folders, task="classification")
        found.append((trained(module, data, max_steps=9), len(calls)))
    live, filled, read = found
    assert read[1] < filled[1] < live[1]
    assert filled[1] - read[1] == 3  # batches of one epoch
    assert difference(live[0], filled[0]) < 2e-6
    assert same(filled[0], read[0])
    of_tokens = distiller(network(1))
    of_tokens.teacher.cache = TeacherCache(str(tmp_path))  # type: ignore[union-attr]
    with pytest.raises(InputError, match="those of tokens are not cached"):
        trained(of_tokens, texts(folders))
