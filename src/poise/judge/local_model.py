"""A local model as a judge: the same prompt and the same expectation as the endpoint, from its own logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from poise.judge.judgement import Judgement
from poise.judge.prompts import coherence_prompt, expectation, trait_prompt
from poise.model import Encoded, Model, ask
from poise.model.batching import PaddedBatch, pad, plan_batches
from poise.model.cached_pass import newest_logits
from poise.model.self_check import check_model
from poise.trait import Trait

__all__ = ["LocalJudge"]

JUDGE_BATCH_TOKENS = 4096  # padded tokens a batch


@dataclass(frozen=True)
class LocalJudge:
    """Scores answers by the expectation over the integers 0–100 of what a local model would write next.

    Where the tokenizer splits numbers into digits, a number's probability is the product over its digits and of not
    going on.
    """

    model: Model
    prompt: Callable[[str, str], str]
    name: str

    @classmethod
    def of_trait(cls, model: Model, trait: Trait) -> LocalJudge:
        """A judge of one trait."""
        return cls(model, trait_prompt(trait), f"model:{model.name}")

    @classmethod
    def of_coherence(cls, model: Model) -> LocalJudge:
        """A judge of how well-formed answers are, whatever they say."""
        return cls(model, coherence_prompt, f"model:{model.name}")

    @torch.inference_mode()
    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Score every answer."""
        texts = [self.model.encode(ask(self.prompt(q, a))) for q, a in zip(questions, answers, strict=True)]
        out: dict[int, Judgement] = {}
        for rows in plan_batches([len(t.ids) for t in texts], budget=JUDGE_BATCH_TOKENS, most=32):
            batch = pad([texts[i] for i in rows], side="left", device=self.model.device)
            for i, numbers in zip(rows, _numbers(self.model, batch), strict=True):
                out[i] = expectation(numbers)
        return [out[i] for i in range(len(texts))]


def _numbers(model: Model, batch: PaddedBatch) -> list[dict[str, float]]:
    """For each row, the probability that the text goes on with each number from 0 to 100."""
    spelt = {str(n): tuple(model.tokenizer(str(n), add_special_tokens=False)["input_ids"]) for n in range(101)}
    beginnings = sorted({ids[:k] for ids in spelt.values() for k in range(1, len(ids))})
    steps = _continuations(model, batch, beginnings)
    digits = sorted({ids[0] for text, ids in spelt.items() if len(text) == 1})
    probabilities_by_row = []
    for row in range(len(batch.spans)):
        probabilities = {}
        for text, ids in spelt.items():
            p = 1.0
            for k, token in enumerate(ids):
                p *= float(steps[ids[:k]][row, token])
            if ids in steps:  # the number could go on: count only the texts that end here
                p *= max(0.0, 1 - float(steps[ids][row, digits].sum()))
            probabilities[text] = p
        probabilities_by_row.append(probabilities)
    return probabilities_by_row


@torch.inference_mode()
def _continuations(
    model: Model, batch: PaddedBatch, beginnings: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Next-token probabilities [B, vocabulary] after the prompt and after each beginning of a number.

    The prompt is run once and the beginnings branch off what is kept of it, where the model gives the same so;
    otherwise prompt and beginning are read anew for each.
    """
    prompts = [tuple(ids[real].tolist()) for ids, real in zip(batch.ids, batch.real, strict=True)]
    starts = [(), *beginnings]
    longest = max(map(len, starts))
    parts: list[tuple[list[int], dict[tuple[int, ...], torch.Tensor]]] = []
    for rows in _rows_together(model, [len(prompt) for prompt in prompts], longest):
        texts = [prompts[row] for row in rows]
        fits = len(texts[0]) + longest <= model.generation_window(len(texts[0]))
        cached = fits and not check_model(model).cache_fault
        branch = _branched if cached else _read_anew
        parts.append((rows, branch(model, texts, starts)))
    order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
    return {start: torch.cat([steps[start] for _, steps in parts])[order] for start in starts}


def _rows_together(model: Model, lengths: Sequence[int], longest: int) -> list[list[int]]:
    """Rows that may share a padded batch: all of them, or those of one length."""
    check, switch = check_model(model), model.rotary_switch
    apart = bool(check.cache_fault or check.padding_fault)

    def kind(row: int) -> tuple[bool, bool, int]:
        beyond, crosses = switch.is_long(lengths[row]), switch.is_long(lengths[row] + longest)
        return beyond, crosses, lengths[row] if apart or crosses != beyond else 0

    return [list(rows) for _, rows in groupby(sorted(range(len(lengths)), key=kind), key=kind)]


def _branched(
    model: Model, prompts: Sequence[tuple[int, ...]], starts: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Each beginning after the prompts' cache, which is put back where it can be cropped and else copied before."""
    batch = pad([Encoded(ids, len(ids), len(ids)) for ids in prompts], side="left", device=model.device)
    cache = DynamicCache(config=model.lm.config)
    croppable = all(type(layer) is DynamicLayer for layer in cache.layers)
    mask = batch.real.long() if batch.padded else None
    steps: dict[tuple[int, ...], torch.Tensor] = {
        (): _probabilities(newest_logits(model, cache, batch.ids, mask, batch.positions))
    }
    for start in starts[1:]:
        ids = torch.tensor([start] * len(prompts), device=model.device)
        more = None if mask is None else torch.cat([mask, torch.ones_like(ids)], dim=1)
        at = batch.positions[:, -1:] + 1 + torch.arange(len(start), device=model.device)
        branch = cache if croppable else copy.deepcopy(cache)
        steps[start] = _probabilities(newest_logits(model, branch, ids, more, at))
        if croppable:
            cache.crop(-len(start))
    return steps


def _read_anew(
    model: Model, prompts: Sequence[tuple[int, ...]], starts: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Prompts of one length, each with every beginning, in passes that keep nothing."""
    steps = {}
    for start in starts:
        ids = torch.tensor([(*prompt, *start) for prompt in prompts], device=model.device)
        steps[start] = _probabilities(newest_logits(model, None, ids, None, None))
    return steps


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1)
