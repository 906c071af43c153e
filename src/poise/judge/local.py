"""A local model as a judge: the same prompt and the same expectation as the endpoint, from its own logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from poise.judge import Judgement
from poise.judge.prompt import coherence_prompt, expectation, trait_prompt
from poise.model import Model, ask
from poise.model.batch import pad, plan
from poise.trait import Trait

__all__ = ["LocalJudge"]

BUDGET = 4096  # padded tokens a batch


@dataclass(frozen=True)
class LocalJudge:
    """Scores answers by the expectation over the integers 0–100 of a local model's next token.

    Numbers that the tokenizer splits are scored by their first token alone, so models whose tokenizer keeps 0–100
    whole judge more finely than those that split digits.
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
        numbers = self._number_tokens()
        out: dict[int, Judgement] = {}
        for rows in plan([len(t.ids) for t in texts], budget=BUDGET, most=32):
            batch = pad([texts[i] for i in rows], side="left", device=self.model.device)
            logits = self.model.lm(
                input_ids=batch.ids, attention_mask=batch.real.long(), position_ids=batch.positions, logits_to_keep=1
            ).logits[:, -1]
            for i, p in zip(rows, torch.softmax(logits.float(), dim=-1), strict=True):
                out[i] = expectation({number: float(p[token]) for number, token in numbers.items()})
        return [out[i] for i in range(len(texts))]

    def _number_tokens(self) -> dict[str, int]:
        """Numbers that are one token, by text."""
        encoded = {str(n): self.model.tokenizer(str(n), add_special_tokens=False)["input_ids"] for n in range(101)}
        return {text: ids[0] for text, ids in encoded.items() if len(ids) == 1}
