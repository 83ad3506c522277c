"""On-policy distillation: what is generated, what counts, and what is refused; with tiny GPT-2 and Llama."""

from __future__ import annotations

import contextlib
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


STOPS: dict[str, tuple[Any, Any, int | None, tuple[int, ...], int]] = {
    # stop_tokens, the network's end of text and padding, where texts stop, what pads them; -1: a token that comes
    "of the network": (None, -1, 7, (-1,), 7),
    "several of the network": (None, [-1, 1], None, (-1, 1), -1),
    "given": ([1, -1], 3, None, (1, -1), 1),
    "given: none": ([], -1, None, (), 0),
    "none at all": (None, None, None, (), 0),
    "padding 0": (None, -1, 0, (-1,), 0),
}


@pytest.mark.parametrize("case", STOPS)
def test_stop_tokens_end_a_text_and_padding_follows(case: str) -> None:
    student = lm()
    token = greedy(student, IDS[0, :2], 4, ())[3]

    def real(value: Any) -> Any:
        return [real(one) for one in value] if isinstance(value, list | tuple) else token if value == -1 else value

    stop_tokens, end, padding, stops, pad = map(real, STOPS[case])
    student.generation_config.eos_token_id, student.generation_config.pad_token_id = end, padding
    teaching = OnPolicy(lm(seed=1), temperature=0.0, max_new_tokens=4, stop_tokens=stop_tokens)
    seen = planned(teaching, student).continued(batch())
    for row, prompt in enumerate(PROMPTS):
        expected = greedy(student, IDS[row, :prompt], 4, tuple(stops))
        ids, mask = seen.inputs["input_ids"][row].tolist(), seen.inputs["attention_mask"][row].tolist()
        assert ids == expected + [pad] * (len(ids) - len(expected))
        assert mask == [1] * len(expected) + [0] * (len(ids) - len(expected))


@pytest.mark.parametrize(("positions", "count"), [(64, 4), (6, 4), (5, 3), (3, 1)])
def test_continuations_end_where_the_positions_do(positions: int, count: int) -> None:
    teaching = OnPolicy(lm(seed=1), temperature=0.0, max_new_tokens=4, stop_tokens=[])
    seen = planned(teaching, lm(n_positions=positions)).continued(batch(prompts=[2, 2, 2]))
    assert (seen.target != -100).sum(1).tolist() == [count] * 3


def test_a_prompt_that_fills_the_positions_is_refused() -> None:
    teaching = planned(OnPolicy(lm(seed=1)), lm(n_positions=2))
    with pytest.raises(InputError, match="longest prompt has 2 tokens, which leaves no room in 2 positions"):
        teaching.continued(batch(prompts=[2, 2, 2]))


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_from_the_softened_distribution(temperature: float) -> None:
    """Pearson's chi-squared test of 6000 tokens that follow one prompt."""
    student, rows = lm(), 6000
    prompt = IDS[:1, :3].expand(rows, -1)
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    teaching = OnPolicy(lm(seed=1), temperature=temperature, max_new_tokens=1, prompt_tokens=3)
    torch.manual_seed(0)
    drawn = planned(teaching, student).continued(Batch(inputs, torch.zeros(rows).long())).inputs["input_ids"][:, 3]
    with torch.no_grad():
        expected = rows * (student(input_ids=prompt[:1]).logits[0, -1] / temperature).double().softmax(0)
    common = expected >= 5
    expected, seen = (
        torch.cat([count[common], count[~common].sum(0, keepdim=True)])
        for count in (expected, torch.bincount(drawn, minlength=83).double())
    )
    freedom = int(common.sum())
    assert freedom > 40
    assert float(((seen - expected).square() / expected.clamp(min=1e-9)).sum()) < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_new_token_costs_one_position_of_a_forward(cache: Any) -> None:
    student, lengths, caches = lm("Llama"), list[int](), set[str]()

    def note(module: Any, args: Any, options: Any) -> None:
        lengths.append(options["input_ids"].shape[1])
        names = (type(value).__name__ for value in options.values())  # the argument's name changes with transformers
        caches.update(name for name in names if name.endswith("Cache"))

    student.register_forward_pre_hook(note, with_kwargs=True)
    teaching = OnPolicy(lm("Llama", seed=1), temperature=0.0, max_new_tokens=4, stop_tokens=[], cache=cache)
    planned(teaching, student).continued(batch())
    assert lengths == [3, 1, 1, 1]
    assert caches == {f"{cache.title()}Cache"}


def test_generation_is_in_eval_mode_which_ends_with_it() -> None:
    student = lm(resid_pdrop=0.5, embd_pdrop=0.5)
    expected = greedy(student, IDS[0, :2], 4, ())
    student.train().transformer.h[1].eval()
    modes = [module.training for module in student.modules()]
    teaching = planned(OnPolicy(lm(seed=1), temperature=0.0, max_new_tokens=4, stop_tokens=[]), student)
    assert teaching.continued(batch()).inputs["input_ids"][0, :6].tolist() == expected
    assert [module.training for module in student.modules()] == modes


def test_prompts_are_what_comes_before_the_first_label() -> None:
    teaching, plain = OnPolicy(lm()), copy.deepcopy(batch())
    plain.target[1] = -100  # all of it is a prompt
    lengths = [2, 3, 3]
    expected = [IDS[row, :length].tolist() for row, length in enumerate(lengths)]
    assert [prompt.tolist() for prompt in teaching.prompts(plain)] == expected
    for row, length in enumerate(LENGTHS):  # padded on the left
        for tensor in (*plain.inputs.values(), plain.target):
            tensor[row] = tensor[row].roll(6 - length)
    assert [prompt.tolist() for prompt in teaching.prompts(plain)] == expected


def test_prompts_that_cannot_be_found_are_refused() -> None:
    plain, labels = batch(), torch.zeros(3).long()
    for inputs in (IDS, {"attention_mask": IDS.clamp(max=1)}, {"input_ids": IDS}):
        with pytest.raises(InputError, match="needs batches with input_ids and attention_mask"):
            OnPolicy(lm(), prompt_tokens=2).prompts(plain._replace(inputs=inputs))
    with pytest.raises(InputError, match=r"Labels \(3,\) of tokens \(3, 6\) mark no prompts"):
        OnPolicy(lm()).prompts(plain._replace(target=labels))
    assert [len(one) for one in OnPolicy(lm(), prompt_tokens=4).prompts(plain._replace(target=labels))] == [4, 3, 4]


@pytest.mark.parametrize(
    ("options", "prompts", "message"),
    [
        ({"max_new_tokens": 5}, PROMPTS, ""),
        ({"max_new_tokens": 6}, PROMPTS, "8 positions, but prompts of 3 tokens and max_new_tokens=6 need 9"),
        ({"max_new_tokens": 1}, [1, 1, 2], ""),
        ({"max_new_tokens": 1}, [1, 1, 1], "prompts are not marked"),
        ({"max_new_tokens": 1, "prompt_tokens": 1}, [1, 1, 1], ""),
    ],
)
def test_check_takes_the_limit_and_refuses_one_beyond(options: Any, prompts: list[int], message: str) -> None:
    teaching = planned(OnPolicy(lm(seed=1), **options), lm(n_positions=8))
    with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
        teaching.check(batch(prompts=prompts))


@pytest.mark.full
def test_the_share_is_that_of_the_batches() -> None:
    """Each batch by the first number of the step's seed, which the step itself still gets."""
    teaching = planned(OnPolicy(lm(), share=0.25, temperature=0.0, max_new_tokens=1), lm())
    drawn = []
    for seed in range(200):
        torch.manual_seed(seed)
        expected = float(torch.rand(1)) < 0.25
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(teaching.rewrite(batch()).is_generated)
        assert drawn[-1] == expected
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
    def weights_of(teacher: Any) -> dict[str, Tensor]:
        return fitted(distiller(teacher, lm(resid_pdrop=0.1).train(), task_weight=0.5))

    off = weights_of(OnPolicy(lm(seed=1), share=0.0, max_new_tokens=5))
    plain = weights_of(lm(seed=1))
    half = weights_of(OnPolicy(lm(seed=1), share=0.5, max_new_tokens=5))
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
