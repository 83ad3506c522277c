"""On-policy distillation: what is generated, what counts, and what is refused; with tiny GPT-2 and Llama."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kdlab import Distiller, Knowledge
from kdlab.data import TextData
from kdlab.errors import InputError
from kdlab.losses import GeneralizedJSD, SequenceKD
from kdlab.losses.tokens import TokenCrossEntropy
from kdlab.members import Learner, Stored
from kdlab.outputs import Batch
from kdlab.schedules import Constant, Linear, Progress
from kdlab.teaching import OnPolicy
from tests.modules.tiny import same, sgd, trainer, weights
from tests.tiny_transformers import lines, tiny, tokenizer_folder

pytest.importorskip("transformers")
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 0, 0, 0], [14, 15, 16, 17, 0, 0]])
LENGTHS, PROMPTS = [6, 3, 4], [2, 1, 3]


def lm(kind: str = "GPT2", seed: int = 0, **options: Any) -> Any:
    network = tiny(kind, "ForCausalLM", **options)
    torch.manual_seed(seed)
    for parameter in network.parameters():  # else logits are nearly equal
        nn.init.normal_(parameter, std=0.3)
    return network


def batch(step: int = 0, prompts: list[int] | None = None) -> Batch:
    mask = (torch.arange(6) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.full_like(IDS, -100)
    for row, (length, prompt) in enumerate(zip(LENGTHS, prompts or PROMPTS, strict=True)):
        labels[row, prompt - 1 : length - 1] = IDS[row, prompt:length]
    return Batch({"input_ids": IDS, "attention_mask": mask}, labels, torch.arange(3), progress=Progress(0, step))


def planned(teaching: OnPolicy, student: Any) -> OnPolicy:
    teaching.plan({"student": Learner("student", student)})
    return teaching


def greedy(network: Any, prompt: Tensor, count: int, stop: tuple[int, ...]) -> list[int]:
    """The most probable tokens, one full forward each."""
    ids = prompt.tolist()
    for _ in range(count):
        ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return ids


@pytest.mark.parametrize(
    ("kind", "cache", "generator"),
    [
        ("GPT2", "dynamic", "student"),
        pytest.param("GPT2", "dynamic", "teacher", marks=pytest.mark.full),
        pytest.param("Llama", "dynamic", "student", marks=pytest.mark.full),
        pytest.param("Llama", "static", "student", marks=pytest.mark.full),
    ],
)
def test_continuations_are_those_of_single_texts(kind: str, cache: Any, generator: Any) -> None:
    student, teacher = lm(kind), lm(kind, seed=1)
    plain = greedy(student if generator == "student" else teacher, IDS[0, :2], 4, ())
    stop = plain[3]  # the first text ends at its second new token, or earlier
    options = {"temperature": 0.0, "max_new_tokens": 4, "stop_tokens": [stop], "cache": cache}
    teaching = planned(OnPolicy(teacher, generator=generator, **options), student.train())
    seen = teaching.continued(batch())
    assert student.training
    network = (student if generator == "student" else teacher).eval()
    for row, prompt in enumerate(PROMPTS):
        expected = greedy(network, IDS[row, :prompt], 4, (stop,))
        count = int(seen.inputs["attention_mask"][row].sum())
        assert seen.inputs["input_ids"][row, :count].tolist() == expected
        labels = [-100] * (prompt - 1) + expected[prompt:]
        assert seen.target[row].tolist() == labels + [-100] * (seen.target.shape[1] - len(labels))
    assert seen.is_generated
    assert torch.equal(seen.index, torch.arange(3))


def test_first_tokens_are_prompts_where_asked() -> None:
    teaching = planned(OnPolicy(lm(), prompt_tokens=2, temperature=0.0, max_new_tokens=1), lm())
    seen = teaching.continued(batch(prompts=[1, 1, 1]))
    assert torch.equal(seen.inputs["input_ids"][:, :2], IDS[:, :2])
    assert (seen.target != -100).sum(1).tolist() == [1, 1, 1]


@pytest.mark.full
def test_the_share_is_that_of_the_batches() -> None:
    teaching = planned(OnPolicy(lm(), share=0.25, temperature=0.0, max_new_tokens=1), lm())
    drawn = []
    for seed in range(200):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(teaching.rewrite(batch()).is_generated)
        assert torch.equal(before, torch.get_rng_state()) or drawn[-1]
    assert 50 - 3.5 * 6.2 < sum(drawn) < 50 + 3.5 * 6.2  # binomial, deviation 6.12


def test_the_share_follows_its_schedule() -> None:
    teaching = planned(OnPolicy(lm(), share=1.0, schedule=Constant(2, unit="step"), max_new_tokens=1), lm())
    assert [teaching.rewrite(batch(step)).is_generated for step in range(4)] == [False, False, True, True]


def test_beta_follows_its_schedule() -> None:
    loss = GeneralizedJSD(0.5, schedule=Linear(4, start=0.2))
    betas = []
    for epoch in (0, 2, 4):
        loss.advance(epoch, 0)
        betas.append(loss.beta)
    assert betas == pytest.approx([0.1, 0.3, 0.5])


class Rows(list[dict[str, Tensor]]):
    """Texts of equal length with marked prompts."""

    def __init__(self, count: int = 8, prompt: int = 3) -> None:
        generator = torch.Generator().manual_seed(2)
        for number, ids in enumerate(torch.randint(5, 83, (count, 6), generator=generator)):
            labels = torch.cat([torch.full((prompt - 1,), -100), ids[prompt:], torch.tensor([-100])])
            self.append({"input_ids": ids, "attention_mask": torch.ones(6).long(), "labels": labels, "index": number})


def distiller(teacher: Any = None, student: Any = None, **options: Any) -> Distiller:
    defaults = {"task": TokenCrossEntropy(), "task_weight": 0.0, "optimizer": sgd}
    knowledge = {"jsd": Knowledge(GeneralizedJSD(0.5))}
    teacher = OnPolicy(lm(seed=1), share=0.5, max_new_tokens=5) if teacher is None else teacher
    return Distiller(student or lm().train(), teacher, **({"knowledge": knowledge} | defaults | options))


def fitted(module: Distiller, steps: int = 4, **options: Any) -> dict[str, Tensor]:
    trainer(max_steps=steps).fit(module, DataLoader(Rows(), batch_size=2), **options)
    return weights(module.student)


def test_a_step_is_the_divergence_on_the_students_own_tokens() -> None:
    """By hand: temperature 0, so that what is generated is known; in float64."""
    student, teacher = lm().double(), lm(seed=1).double()
    rows = Rows(2)
    teaching = OnPolicy(copy.deepcopy(teacher), share=1.0, temperature=0.0, max_new_tokens=4, stop_tokens=[2])
    module = distiller(teaching, copy.deepcopy(student).train(), task_weight=1.0)
    run = trainer(max_steps=1, precision="64-true", logger=False)
    run.fit(module, DataLoader(rows, batch_size=2))
    values = []
    for row in rows:
        ids = torch.tensor([greedy(student, row["input_ids"][:3], 4, (2,))])
        q, p = (network(input_ids=ids).logits[0, 2:-1].softmax(1) for network in (student, teacher))
        m = (p + q) / 2
        values += ((p * (p / m).log()).sum(1) / 2 + (q * (q / m).log()).sum(1) / 2).tolist()
    logged = run.callback_metrics
    assert float(logged["loss/jsd"]) == pytest.approx(sum(values) / len(values), rel=1e-6)
    assert float(logged["loss/total"]) == pytest.approx(float(logged["loss/jsd"]))
    assert "loss/task" not in logged, "nobody labeled these tokens"


@pytest.mark.full
def test_the_teachers_tokens_are_labels() -> None:
    student, teacher = lm().double(), lm(seed=1).double()
    options = {"share": 1.0, "temperature": 0.0, "max_new_tokens": 4, "stop_tokens": [2], "generator": "teacher"}
    knowledge = {"sequence": Knowledge(SequenceKD())}
    module = distiller(
        OnPolicy(copy.deepcopy(teacher), **options),  # type: ignore[arg-type]
        copy.deepcopy(student).train(),
        knowledge=knowledge,
        task_weight=1.0,
    )
    run, rows = trainer(max_steps=1, precision="64-true"), Rows(2)
    run.fit(module, DataLoader(rows, batch_size=2))
    values = []
    for row in rows:
        ids = torch.tensor([greedy(teacher, row["input_ids"][:3], 4, (2,))])
        log_q = student(input_ids=ids).logits[0, 2:-1].log_softmax(1)
        values += (-log_q.gather(1, ids[0, 3:, None])[:, 0]).tolist()
    expected = pytest.approx(sum(values) / len(values), rel=1e-6)
    assert float(run.callback_metrics["loss/sequence"]) == expected
    assert float(run.callback_metrics["loss/task"]) == expected


@pytest.mark.full
def test_a_share_of_0_is_the_frozen_teacher() -> None:
    dropping = {"resid_pdrop": 0.1}
    off = fitted(distiller(OnPolicy(lm(seed=1), share=0.0, max_new_tokens=5), lm(**dropping).train()))
    plain = fitted(distiller(lm(seed=1), lm(**dropping).train()))
    half = fitted(distiller(OnPolicy(lm(seed=1), share=0.5, max_new_tokens=5), lm(**dropping).train()))
    assert same(off, plain)
    assert not same(half, plain)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_resume_mid_epoch_is_bit_exact(tmp_path: Path) -> None:
    """Four batches an epoch, saved after the sixth step."""
    data, texts = tokenizer_folder(tmp_path / "tokenizer"), completions(tmp_path)

    def build() -> tuple[Distiller, TextData]:
        torch.manual_seed(3)
        dropping = lm(resid_pdrop=0.1, n_positions=64).train()
        options = {"task": "causal", "text": "prompt", "pair": "completion", "batch_size": 4, "cache": None}
        return distiller(None, dropping), TextData(texts, data, **options)  # type: ignore[arg-type]

    module, data_module = build()
    saved = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=6, save_top_k=-1)
    trainer(max_steps=10, callbacks=[saved], enable_checkpointing=True).fit(module, datamodule=data_module)
    again, data_module = build()
    trainer(max_steps=10).fit(again, datamodule=data_module, ckpt_path=tmp_path / "saved/step=6.ckpt")
    assert same(weights(module), weights(again))
    halfway, data_module = build()
    trainer(max_steps=6).fit(halfway, datamodule=data_module)
    assert not same(weights(module), weights(halfway))


def completions(folder: Path) -> str:
    words = ["the", "film", "is", "not", "good", "bad", "very", "dull", "fine", "plot", "act", "or", "and", "funny"]
    rows = [{"prompt": f"the {a}", "completion": f"is {b} {a}"} for a in words[:4] for b in words[4:8]]
    for split in ("train", "dev"):
        lines(folder / f"{split}.jsonl", rows)
    return str(folder)


def test_completions_alone_are_labeled(tmp_path: Path) -> None:
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    options = {"task": "causal", "text": "prompt", "pair": "completion", "batch_size": 16, "cache": str(tmp_path / "c")}
    for _ in range(2):  # tokenized, and from the cache
        data = TextData(completions(tmp_path), tokenizer, **options)  # type: ignore[arg-type]
        data.setup()
        first = next(iter(data.train_dataloader()))
        for ids, labels, mask in zip(first["input_ids"], first["labels"], first["attention_mask"], strict=True):
            tokens = data.backend.convert_ids_to_tokens(ids[mask.bool()])
            second = tokens.index("[SEP]") + 1
            expected = [-100] * (second - 1) + ids[second : int(mask.sum())].tolist() + [-100]
            assert labels[mask.bool()].tolist() == expected


def refused(module: Distiller, data: Any = None) -> str:
    with pytest.raises(InputError) as caught:
        trainer(max_steps=1).fit(module, DataLoader(data or Rows(), batch_size=2))
    return str(caught.value)


@pytest.mark.full
def test_what_cannot_be_generated_is_refused(tmp_path: Path) -> None:
    unmarked = Rows(prompt=1)
    assert "prompts are not marked" in refused(distiller(), unmarked)
    assert "data.pair" in refused(distiller(), unmarked)
    fitted(distiller(OnPolicy(lm(seed=1), share=1.0, max_new_tokens=2, prompt_tokens=2)))
    encoder = tiny("Bert", "ForMaskedLM").train()
    assert "The student (BertForMaskedLM) cannot generate" in refused(distiller(student=encoder))
    short = OnPolicy(lm(seed=1), max_new_tokens=64)
    assert "has 64 positions, but prompts of 3 tokens and max_new_tokens=64 need 67" in refused(distiller(short))
    assert "OnPolicy needs knowledge" in refused(distiller(knowledge={}))
    with pytest.raises(InputError, match="A file has no outputs on tokens"):
        OnPolicy(Stored(str(tmp_path / "t.npy")))
    with pytest.raises(InputError, match="OnPolicy says itself how its teacher acts"):
        distiller(teacher_weights=[1.0])


@pytest.mark.parametrize(
    "options", [{"share": 1.5}, {"temperature": -1.0}, {"max_new_tokens": 0}, {"generator": "peer"}, {"cache": "none"}]
)
def test_arguments_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(InputError):
        OnPolicy(lm(), **options)


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_labels_that_are_not_shifted_are_refused(kind: str) -> None:
    rows = [{**row, "labels": row["input_ids"]} for row in Rows()]
    plain = Distiller(lm(kind).train(), None, task=TokenCrossEntropy(), optimizer=sgd)
    message = refused(plain, rows)
    assert "next_token_labels" in message
    assert "TokenCrossEntropy" in message
    with_torch = Distiller(lm(kind).train(), None, optimizer=sgd)
    assert "set model.task=kdlab.losses.tokens.TokenCrossEntropy" in refused(with_torch, rows)
    fitted(Distiller(lm(kind).train(), None, task=TokenCrossEntropy(), optimizer=sgd), steps=1)
