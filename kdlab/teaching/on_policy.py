"""A frozen teacher of batches that the student, or the teacher, generates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from kdlab.compat import uncompiled
from kdlab.data.text.text_tasks import IGNORED
from kdlab.distributed import gather
from kdlab.errors import InputError, check_word
from kdlab.losses.tokens import next_token_labels
from kdlab.members.fast_options import Fast
from kdlab.members.member import Learner
from kdlab.members.stored import Stored
from kdlab.outputs import Batch, Outputs
from kdlab.schedules import Schedule
from kdlab.teaching.frozen_teacher import FrozenTeacher
from kdlab.teaching.plan import Plan, Way


class OnPolicy(FrozenTeacher):
    r"""A frozen teacher of causal language models, where part of the batches are continued by the student itself (GKD).

    With probability :math:`\lambda(t)` a batch keeps its prompts alone, and the student continues them: sampled at
    ``temperature``, without gradient, in eval mode. The knowledge compares teacher and student on the generated tokens;
    the labels of the data, and so the task loss, count on the other batches alone. With ``generator="teacher"`` the
    teacher continues them, and its tokens are the labels of the task loss and of :class:`~kdlab.losses.SequenceKD`
    (sequence-level distillation, Kim and Rush 2016).

    What is drawn is a function of (seed, process, epoch, batch) and of the weights, so that a resumed run is exact.
    Several processes generate the same batches; at temperature 0 they equal one process.

    Recipe: :class:`~kdlab.losses.GeneralizedJSD`, :math:`\lambda` 0.5 or 1, temperature 1, task weight 0.

    Paper: R. Agarwal, N. Vieillard, Y. Zhou, P. Stanczyk, S. Ramos, M. Geist, O. Bachem, "On-Policy Distillation of
    Language Models: Learning from Self-Generated Mistakes", ICLR 2024, arXiv 2306.13649. As in TRL, one draw decides
    for a whole batch.

    Args:
        teacher: a network with the student's tokens.
        share: :math:`\lambda`, from 0 to 1.
        schedule: a further factor of it over epochs or steps.
        generator: who continues the prompts.
        temperature: of the sampling; 0 takes the most probable token.
        max_new_tokens: longest continuation; shorter where the student has no further positions.
        stop_tokens: ids at which a continuation ends; by default the network's end of text.
        prompt_tokens: take the first tokens of each text as its prompt; by default, all tokens before the first label.
        cache: of keys and values while generating: transformers' ``"dynamic"`` or ``"static"``.
        fast: what may be done to make the teacher's forward cheaper; ``None`` for nothing.

    Raises:
        InputError: a number out of range, or a teacher that is a file; before the first step, a network that cannot
            generate, or no prompts.
    """

    learner: Learner
    ways = (Way("Generalized knowledge distillation (GKD)", "Agarwal et al. 2024", ("on_policy",)),)

    def __init__(
        self,
        teacher: nn.Module,
        share: float = 0.5,
        schedule: Schedule | None = None,
        generator: Literal["student", "teacher"] = "student",
        temperature: float = 1.0,
        max_new_tokens: int = 64,
        stop_tokens: list[int] | None = None,
        prompt_tokens: int | None = None,
        cache: Literal["dynamic", "static"] = "dynamic",
        fast: Fast | None = Fast(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__([teacher], fast=fast)
        if isinstance(teacher, Stored):
            raise InputError("A file has no outputs on tokens that are generated in training: give the teacher itself.")
        if not 0 <= share <= 1:
            raise InputError(f"The share of generated batches is from 0 to 1, not {share}.")
        if temperature < 0:
            raise InputError(f"The temperature of the sampling is at least 0, not {temperature}.")
        for name, number in (("max_new_tokens", max_new_tokens), ("prompt_tokens", prompt_tokens)):
            if number is not None and number < 1:
                raise InputError(f"{name} must be at least 1, not {number}.")
        check_word("generator", generator, ("student", "teacher"))
        check_word("cache", cache, ("dynamic", "static"))
        self.share, self.schedule, self.generator = share, schedule, generator
        self.max_new_tokens, self.prompt_tokens = max_new_tokens, prompt_tokens
        self.stop_tokens = stop_tokens
        self.options: dict[str, Any] = {"do_sample": temperature > 0}
        self.options |= {"cache_implementation": cache} if cache != "dynamic" else {}
        self.options |= {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}

    def plan(self, networks: dict[str, Learner]) -> Plan:
        """Return the frozen teacher's plan, with batches that are generated and a task that rests on them."""
        plan = super().plan(networks)
        (learner,) = networks.values()
        self.__dict__["learner"] = learner  # not a part of the teaching
        of_labels = dict.fromkeys(plan.supervision, _if_labeled)
        supervision: Mapping[str, Any] = plan.supervision if self.generator == "teacher" else of_labels
        return dataclasses.replace(plan, rewrite=self.rewrite, supervision=supervision)

    def network(self) -> Any:
        """Return the network that generates."""
        return uncompiled(self.learner.network if self.generator == "student" else self.networks[0])

    def rewrite(self, batch: Batch) -> Batch:
        """Return the batch, or with probability ``share`` its prompts with generated continuations."""
        assert batch.progress is not None
        share = self.share * (self.schedule(batch.progress) if self.schedule else 1.0)
        if share <= 0:
            return batch
        # The step was seeded; what decides takes nothing of its numbers. The first process decides for all.
        draw = torch.rand(1, generator=torch.Generator().manual_seed(torch.initial_seed() & (2**63 - 1)))
        return self.continued(batch) if float(gather(draw.to(batch.target.device))[0]) < share else batch

    @torch.no_grad()
    def continued(self, batch: Batch, longest: int | None = None) -> Batch:
        """Return the prompts of a batch with generated continuations of at most ``longest`` tokens, and their labels.

        Returns:
            A batch whose inputs are ``input_ids`` and ``attention_mask``, padded on the right, and whose labels are the
            next tokens, at the continuations alone.
        """
        network, prompts = self.network(), self.prompts(batch)
        width = max(map(len, prompts))
        limit = positions_of(network)
        longest = min(longest or self.max_new_tokens, *([] if limit is None else [limit - width]))
        if longest < 1:
            raise InputError(f"The longest prompt has {width} tokens, which leaves no room in {limit} positions.")
        config = network.generation_config
        stop: Any = config.eos_token_id if self.stop_tokens is None else self.stop_tokens
        stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        pad = next((x for x in (config.pad_token_id, *stop) if x is not None), 0)
        options = {**self.options, "eos_token_id": stop or None, "pad_token_id": pad, "max_new_tokens": longest}
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
        mask = (torch.arange(width, device=ids.device) >= width - lengths[:, None]).long()
        with _in_eval_mode(network):
            whole = network.generate(
                ids, attention_mask=mask, use_cache=True, num_beams=1, repetition_penalty=1.0, **options
            )
        new = whole[:, width:]
        is_stop = torch.isin(new, torch.tensor(stop, device=new.device, dtype=new.dtype))
        counts = (is_stop.cumsum(1) - is_stop.long() == 0).sum(1)  # up to the first stop token, and with it
        texts = [torch.cat([prompt, row[:count]]) for prompt, row, count in zip(prompts, new, counts, strict=True)]
        ids = pad_sequence(texts, batch_first=True, padding_value=pad)
        place = torch.arange(ids.shape[1], device=ids.device)
        mask = (place < (lengths + counts)[:, None]).long()
        labels = next_token_labels(ids, mask).masked_fill(place < lengths[:, None] - 1, IGNORED)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return batch._replace(inputs=inputs, target=labels, views=None, is_generated=True)

    def prompts(self, batch: Batch) -> list[Tensor]:
        """Return the tokens of each prompt: those before the first label, or the first ``prompt_tokens``.

        Raises:
            InputError: the batch has no token ids, or no labels of each token.
        """
        if not isinstance(batch.inputs, Mapping) or "input_ids" not in batch.inputs or batch.mask is None:
            raise InputError("On-policy distillation needs batches with input_ids and attention_mask.")
        ids, mask = batch.inputs["input_ids"], batch.mask.bool()
        labeled = batch.target.ne(IGNORED)
        if self.prompt_tokens is None and batch.target.shape != ids.shape:
            raise InputError(f"Labels {tuple(batch.target.shape)} of tokens {tuple(ids.shape)} mark no prompts.")
        prompts = []
        for row, (attended, label) in enumerate(zip(mask, labeled, strict=True)):
            tokens = ids[row][attended]
            if self.prompt_tokens is not None:
                prompts.append(tokens[: self.prompt_tokens])
            else:
                places = label[attended].nonzero()
                prompts.append(tokens[: int(places[0]) + 1] if len(places) else tokens)
        return prompts

    def check(self, batch: Batch) -> None:
        """Generate once, two tokens, before the training.

        Raises:
            InputError: the network cannot generate, its prompts leave no room, or every text has a label at its first
                token.
        """
        network, prompts = self.network(), self.prompts(batch)
        if not callable(getattr(network, "generate", None)) or not getattr(network, "can_generate", lambda: True)():
            raise InputError(
                f"The {self.generator} ({type(network).__name__}) cannot generate: use a causal language model of "
                "transformers (kdlab.models.hugging_face with task='causal-lm')."
            )
        if self.prompt_tokens is None and max(map(len, prompts)) == 1:
            raise InputError(
                "The prompts are not marked: each text has a label at its first token. Give prompts and completions "
                "(data.text and data.pair, task 'causal'), whose labels begin with the completion, or set "
                "prompt_tokens=N to take the first N tokens of each text."
            )
        longest = max(map(len, prompts))
        limit = positions_of(network)
        if limit is not None and longest + self.max_new_tokens > limit:
            raise InputError(
                f"The {self.generator} has {limit} positions, but prompts of {longest} tokens and "
                f"max_new_tokens={self.max_new_tokens} need {longest + self.max_new_tokens}: lower one of them."
            )
        self.continued(batch, longest=2)


def positions_of(network: nn.Module) -> int | None:
    """Return how many tokens a network with learned positions can read; ``None`` if there is no limit."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe"):
            used = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's begin after the padding's
            return module.num_embeddings - used
    limit = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _if_labeled(seen: Mapping[str, Outputs], batch: Batch) -> float:
    """Return the weight of the task: nobody labeled what the student generated."""
    return 0.0 if batch.is_generated else 1.0


@contextmanager
def _in_eval_mode(network: nn.Module) -> Any:
    """Put a network into eval mode, for the time of the context."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield network.eval()
    finally:
        for module, mode in modes:
            module.training = mode
