"""A local model as a judge: the same prompt and the same expectation as the endpoint, from its own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from poise.judge.judgement import Judgement
from poise.judge.prompts import coherence_prompt, expectation, trait_prompt
from poise.model import Model, ask
from poise.model.batching import PaddedBatch, pad, plan_batches
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


def _continuations(
    model: Model, batch: PaddedBatch, beginnings: Sequence[tuple[int, ...]]
) -> dict[tuple[int, ...], torch.Tensor]:
    """Next-token probabilities [B, vocabulary] after the prompt and after each beginning of a number.

    The prompt is run once; beginnings branch off its cache.
    """
    last = torch.tensor([batch.ids.shape[1] - 1], device=model.device)
    mask, cache = batch.real.long(), DynamicCache(config=model.lm.config)
    out = model.lm(
        input_ids=batch.ids,
        attention_mask=mask,
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    )
    steps: dict[tuple[int, ...], torch.Tensor] = {(): torch.softmax(out.logits[:, -1].float(), dim=-1)}
    for start in beginnings:
        ids = torch.tensor([start] * len(mask), device=model.device)
        more = torch.cat([mask, torch.ones_like(ids)], dim=1)
        at = batch.positions[:, -1:] + 1 + torch.arange(len(start), device=model.device)
        out = model.lm(input_ids=ids, attention_mask=more, position_ids=at, past_key_values=cache, use_cache=True)
        steps[start] = torch.softmax(out.logits[:, -1].float(), dim=-1)
        cache.crop(-len(start))
    return steps
