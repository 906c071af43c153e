"""The judge behind any OpenAI-compatible server: one request an answer, many at a time, none asked twice.

Knows requests, retries and the cache. What is asked and how a reply becomes a score is in ``prompt``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openai import APIConnectionError, APIStatusError, OpenAI, OpenAIError
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice

from poise.endpoint_address import endpoint_address
from poise.errors import JudgeUnavailable
from poise.judge.judgement import EMPTY, Judgement
from poise.judge.prompts import (
    REFUSED,
    UNREADABLE_REPLY,
    Prompt,
    coherence_prompt,
    expectation,
    is_number,
    read_number,
    trait_prompt,
)
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.trait import Trait

__all__ = ["FAILED", "EndpointJudge", "JudgeUsage", "endpoint_coherence", "endpoint_judge", "first_token_probabilities"]

FAILED = "failed"
"""Kind of reason: the request failed for good. Asked again in the next call, unlike a refusal."""

_CACHE = "endpoint-judge.jsonl"

# Tried in order, each when the server rejects the one before with 400 or 422. Four tokens hold "100" also where a
# tokenizer splits numbers into digits; the score still comes from the first. Reasoning models reject all limits.
_WAYS: tuple[dict[str, Any], ...] = (
    {"temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 20},
    {"temperature": 0, "max_tokens": 16},
    {},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeUsage:
    """What a judge has cost since it was made: times the provider's price a token, the bill."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: int = 0
    unreadable: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    """One finished request."""

    judgement: Judgement
    way: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class EndpointJudge:
    """Scores answers with a model behind an OpenAI-compatible server.

    The first token's 20 likeliest candidates give the expectation over 0-100 (Chen et al. 2025,
    arXiv:2507.21509); where the server gives no log-probabilities, or its tokenizer writes numbers digit by
    digit, the number it wrote is read instead. 429, 5xx, timeouts and lost connections are retried by the client,
    with exponential back-off and jitter. An answer that still fails gets no score and the reason.

    Args:
        model: Name that the server knows the model by.
        prompt: From (question, answer) to the message that is sent.
        cache: JSONL file of replies, kept and added to; ``None`` remembers them for this object only.
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own.
        api_key: Else ``OPENAI_API_KEY``; local servers need none.
        concurrency: Requests under way at once.
        retries: How often one request is repeated after its first failure; with the default an answer is given up
            after half a minute of waiting.
        timeout: Seconds that one request may take.
    """

    def __init__(
        self,
        model: str,
        prompt: Prompt,
        *,
        cache: Path | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        concurrency: int = 16,
        retries: int = 6,
        timeout: float = 120.0,
    ) -> None:
        self.model = model
        self.usage = JudgeUsage()
        self._prompt = prompt
        self._journal = Journal(cache)
        self._base_url, self._api_key = endpoint_address(base_url, api_key)
        self._concurrency, self._retries, self._timeout = concurrency, retries, timeout
        self._way = 0
        self._reached = False

    @property
    def name(self) -> str:
        """``endpoint:`` and the model's name."""
        return f"endpoint:{self.model}"

    def __call__(self, questions: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """Score ``answers[i]`` as a reply to ``questions[i]``; replies are on disk as soon as they are here.

        Raises:
            JudgeUnavailable: the server cannot be reached, refuses the key, does not know the model, stopped
                answering midway, or nothing of what it answered could be read.
            SaveFailed: the cache cannot be written.
        """
        client = OpenAI(
            base_url=self._base_url, api_key=self._api_key, max_retries=self._retries, timeout=self._timeout
        )
        with client:
            url = str(client.base_url).rstrip("/")
            prompts = [self._prompt(q, a) if a.strip() else None for q, a in zip(questions, answers, strict=True)]
            keys = [None if p is None else content_key(url=url, model=self.model, prompt=p) for p in prompts]
            prompts_by_key = {key: p for key, p in zip(keys, prompts, strict=True) if key is not None and p is not None}
            fresh = {key: p for key, p in prompts_by_key.items() if key not in self._journal}
            judgements = {key: Judgement(**self._journal[key]) for key in prompts_by_key if key not in fresh}
            self.usage = replace(self.usage, cached=self.usage.cached + len(judgements))
            judgements |= self._ask_all(client, url, fresh)
        _check_useful(judgements, self.model, url)
        return [Judgement(None, EMPTY) if key is None else judgements[key] for key in keys]

    def _ask_all(self, client: OpenAI, url: str, prompts: Mapping[str, str]) -> dict[str, Judgement]:
        """Ask in parallel; write each batch of replies down before waiting for the next."""
        judgements = self._knock(client, url, prompts)
        lost_in_a_row = 0
        executor = ThreadPoolExecutor(self._concurrency, thread_name_prefix="judge")
        try:
            keys = {executor.submit(self._ask, client, p): key for key, p in prompts.items() if key not in judgements}
            waiting: set[Future[_Reply]] = set(keys)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                replies = {keys[future]: future.result() for future in done}
                judgements |= self._keep(replies)
                for reply in replies.values():
                    lost_in_a_row = lost_in_a_row + 1 if reply.judgement.kind == FAILED else 0
                if lost_in_a_row >= self._concurrency:
                    raise JudgeUnavailable(
                        f"The judge at {url} stopped answering ({reply.judgement.reason}); run the same command again "
                        "when it is back, finished scores are kept where a cache was given."
                    )
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
        return judgements

    def _knock(self, client: OpenAI, url: str, prompts: Mapping[str, str]) -> dict[str, Judgement]:
        """The very first request alone with few retries, so that a server that is not there is told at once."""
        if self._reached or not prompts:
            return {}
        key, prompt = next(iter(prompts.items()))
        try:
            reply = self._send(client.with_options(max_retries=min(2, self._retries)), prompt)
        except APIStatusError as error:
            if error.status_code == 401:
                raise JudgeUnavailable(
                    f"The judge at {url} refused the key ({_cause(error)}); set OPENAI_API_KEY."
                ) from error
            if error.status_code in (404, 405):
                raise JudgeUnavailable(
                    f"There is no judge {self.model!r} at {url} ({_cause(error)}); correct the model's name, or "
                    "OPENAI_BASE_URL, which usually ends in /v1."
                ) from error
            return {}  # may be about this one answer, or pass
        except APIConnectionError as error:
            raise JudgeUnavailable(
                f"The judge at {url} cannot be reached ({_cause(error)}); start the server, or set OPENAI_BASE_URL to "
                "where it runs."
            ) from error
        self._reached = True
        return self._keep({key: reply})

    def _ask(self, client: OpenAI, prompt: str) -> _Reply:
        try:
            return self._send(client, prompt)
        except OpenAIError as error:
            return _Reply(judgement=Judgement(None, f"{FAILED}: {_cause(error)}"))

    def _send(self, client: OpenAI, prompt: str) -> _Reply:
        """One answered request, in the first way from the current one on that the server can do."""
        for way in range(self._way, len(_WAYS)):
            last = way == len(_WAYS) - 1
            try:
                completion: object = client.chat.completions.create(
                    model=self.model, messages=[{"role": "user", "content": prompt}], **_WAYS[way]
                )
            except APIStatusError as error:
                if last or error.status_code not in (400, 422):
                    raise
                continue
            except ValueError as error:
                return _Reply(judgement=Judgement(None, f"{UNREADABLE_REPLY}: {error}"), way=way)
            reply = _judge_completion(completion, way)
            if reply is not None:
                return reply
        raise AssertionError("the last way always replies")

    def _keep(self, replies: Mapping[str, _Reply]) -> dict[str, Judgement]:
        """Write down what would come out the same again, count everything, and pass the judgements on."""
        self._journal.append(
            (key, {"score": r.judgement.score, "reason": r.judgement.reason})
            for key, r in replies.items()
            if r.judgement.score is not None or r.judgement.kind == REFUSED
        )
        for reply in replies.values():
            kind, use = reply.judgement.kind, self.usage
            if reply.judgement.score is not None:
                self._way = max(self._way, reply.way)
            self.usage = replace(
                use,
                requests=use.requests + 1,
                prompt_tokens=use.prompt_tokens + reply.prompt_tokens,
                completion_tokens=use.completion_tokens + reply.completion_tokens,
                refused=use.refused + (kind == REFUSED),
                unreadable=use.unreadable + (kind == UNREADABLE_REPLY),
                failed=use.failed + (kind == FAILED),
            )
        return {key: reply.judgement for key, reply in replies.items()}


def _judge_completion(completion: object, way: int) -> _Reply | None:
    """What the server sent, as a score; ``None`` where log-probabilities were asked for and not given."""
    if not isinstance(completion, ChatCompletion) or not completion.choices:
        return _Reply(
            judgement=Judgement(None, f"{UNREADABLE_REPLY}: no chat completion, {str(completion).strip()[:60]!r}"),
            way=way,
        )
    choice, use = completion.choices[0], completion.usage
    text = (choice.message.content or "").strip()
    probabilities = first_token_probabilities(choice)
    if probabilities is None and way == 0:
        return None
    written = read_number(text)
    if choice.finish_reason == "length" and text[-1:].isdigit():
        written = Judgement(None, f"{UNREADABLE_REPLY}: cut off, {text[-60:]!r}")
    judgement = written
    if probabilities is not None:
        judgement = expectation(probabilities)
        if judgement.score is None and written.kind == REFUSED:
            judgement = written
        elif judgement.score is not None and not any(is_number(t) and len(t.strip()) > 1 for t in probabilities):
            judgement = written  # the tokenizer writes digit by digit: the first token of "85" is an 8
    return _Reply(
        judgement=judgement,
        way=way,
        prompt_tokens=use.prompt_tokens if use else 0,
        completion_tokens=use.completion_tokens if use else 0,
    )


def first_token_probabilities(choice: Choice) -> dict[str, float] | None:
    """Probabilities of the first token that is not blank, by its text; candidates that read the same are summed."""
    content = choice.logprobs.content if choice.logprobs else None
    first = next((token for token in content or () if token.token.strip()), None)
    if first is None or not first.top_logprobs:
        return None
    probabilities: dict[str, float] = {}
    for candidate in first.top_logprobs:
        text = candidate.token.strip()
        probabilities[text] = probabilities.get(text, 0.0) + math.exp(candidate.logprob)
    return probabilities


def _check_useful(judgements: Mapping[str, Judgement], model: str, url: str) -> None:
    """A call that scored nothing, refusals aside, is the judge's fault and not the answers'."""
    if not judgements or any(j.score is not None or j.kind == REFUSED for j in judgements.values()):
        return
    example = next(iter(judgements.values()))
    if example.kind == FAILED:
        raise JudgeUnavailable(
            f"The judge {model!r} at {url} failed on all of {len(judgements)} answers ({example.reason}); fix the "
            "server or choose another, then run the same command again."
        )
    raise JudgeUnavailable(
        f"None of {len(judgements)} replies of the judge {model!r} at {url} could be read as a number from 0 to 100 "
        f"({example.reason}); choose a model that follows instructions."
    )


def _cause(error: OpenAIError) -> str:
    """The innermost cause in a few words."""
    if isinstance(error, APIStatusError):
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return f"HTTP {error.status_code}: {str(message or error.message)[:200]}"
    return str(error.__cause__ or error)[:200]


def endpoint_judge(model_name: str, trait: Trait, *, cache: Path | None = None) -> EndpointJudge:
    """Judge of a trait on the server at ``OPENAI_BASE_URL``; ``cache`` is a folder."""
    return EndpointJudge(model_name, trait_prompt(trait), cache=cache and cache / _CACHE)


def endpoint_coherence(model_name: str, *, cache: Path | None = None) -> EndpointJudge:
    """Judge of coherence on the server at ``OPENAI_BASE_URL``; ``cache`` is a folder, the same one will do."""
    return EndpointJudge(model_name, coherence_prompt, cache=cache and cache / _CACHE)
