"""How much a run may use, and what it has used."""

from __future__ import annotations

from dataclasses import dataclass

from poise.arguments import check_number

__all__ = ["AgentLimits", "RunUse"]

TOKENS_IN_A_MILLION = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """How much a run may use; what it may still use is asked before every request and every call.

    Attributes:
        steps: Most answers of the model, and most calls of tools.
        tokens: Most tokens of prompts and answers together; ``None`` for any number.
        seconds: Most seconds of work, waiting for people not counted; ``None`` for any number.
        spend: Most money, in the currency of the prices; ``None`` for any.
        prompt_price: Price of a million tokens of prompts.
        answer_price: Price of a million tokens of answers.
        answer_tokens: Most tokens of one answer.
        calls: Most calls in one answer.
        output: Most characters of a tool's output that the model is shown.
        retries: Most tries again in a row, of a call or of an answer that cannot be used.
        repeats: Most times that the same call may give the same output.
        revisions: Most changes of the plan.
    """

    steps: int = 40
    tokens: int | None = None
    seconds: float | None = None
    spend: float | None = None
    prompt_price: float = 0.0
    answer_price: float = 0.0
    answer_tokens: int = 1024
    calls: int = 8
    output: int = 6000
    retries: int = 2
    repeats: int = 3
    revisions: int = 5

    def __post_init__(self) -> None:
        for name, least, most in (
            ("steps", 1, 100_000),
            ("answer_tokens", 16, 1_000_000),
            ("calls", 1, 64),
            ("output", 200, 1_000_000),
            ("retries", 0, 20),
            ("repeats", 2, 100),
            ("revisions", 0, 100),
            ("prompt_price", 0, 1e6),
            ("answer_price", 0, 1e6),
        ):
            check_number(f"`{name}`", getattr(self, name), least=least, most=most)
        for name, least in (("tokens", 100), ("seconds", 1), ("spend", 0)):
            if getattr(self, name) is not None:
                check_number(f"`{name}`", getattr(self, name), least=least, most=1e12)


@dataclass(slots=True, kw_only=True)
class RunUse:
    """What a run has used so far.

    Attributes:
        answers: Answers of the model.
        calls: Calls of tools.
        prompt_tokens: Tokens of prompts.
        answer_tokens: Tokens of answers.
        seconds: Seconds of work.
    """

    answers: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0

    def spend(self, limits: AgentLimits) -> float:
        """Money that the tokens cost."""
        money = self.prompt_tokens * limits.prompt_price + self.answer_tokens * limits.answer_price
        return money / TOKENS_IN_A_MILLION

    def most_answer(self, limits: AgentLimits, prompt: int) -> int:
        """Most tokens that the next answer may have after a prompt of about so many; 0 where there is no room."""
        most = limits.answer_tokens
        if limits.tokens is not None:
            most = min(most, limits.tokens - self.prompt_tokens - self.answer_tokens - prompt)
        if limits.spend is not None and (limits.answer_price or limits.prompt_price):
            left = (limits.spend - self.spend(limits)) * TOKENS_IN_A_MILLION - prompt * limits.prompt_price
            most = min(most, int(left / limits.answer_price)) if limits.answer_price else (most if left >= 0 else 0)
        return max(0, most)

    def reached(self, limits: AgentLimits, *, call: bool) -> str:
        """The limit that is reached before the next call or answer, in words; empty where there is none."""
        count = self.calls if call else self.answers
        if count >= limits.steps:
            return f"{limits.steps} steps are used up"
        if limits.seconds is not None and self.seconds >= limits.seconds:
            return f"{limits.seconds:g} seconds are used up"
        return ""

    def seconds_left(self, limits: AgentLimits, most: float) -> float:
        """Seconds that one request or call may take."""
        return most if limits.seconds is None else max(0.1, min(most, limits.seconds - self.seconds))
