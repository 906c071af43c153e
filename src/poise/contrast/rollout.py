"""Ask, answer, judge: each finished batch goes to the run folder before the next begins.

A killed run loses at most one batch. Batches are planned from the whole list, done or not, so that a
resumed run computes in the same batches and ends with the same answers as an unbroken one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from poise.engine import Engine, Generation, SamplingParams
from poise.engine.answer_parts import answer_parts
from poise.engine.types import engine_key
from poise.judge import Judge, Judgement
from poise.model import Encoded, Message, Model, ask
from poise.progress import track
from poise.steer import Steering
from poise.storage.atomic_write import saving
from poise.storage.content_hash import content_key
from poise.storage.journal import Journal
from poise.vector import PersonaVector

__all__ = ["Response", "ResponseRequest", "ResponseStore", "scores_of"]

JUDGED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseRequest:
    """A question to be answered once: system prompt, steering, seed and the (question, answer) turns before it."""

    question: str
    system: str | None = None
    steering: Steering | None = None
    seed: int = 0
    before: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[Message]:
        """The conversation up to the question."""
        *system, question = ask(self.question, self.system)
        turns = [turn for q, a in self.before for turn in (*ask(q), Message(role="assistant", content=a))]
        return [*system, *turns, question]


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A question and the reply to it, which is what is judged and read.

    Attributes:
        question: The question.
        text: The reply.
        encoded: Tokens of prompt and answer; its span is the reply's.
        mean: Mean activations of the reply float32 [L, d], where they were kept.
        thought: What the model thought before it replied; empty for most.
    """

    question: str
    text: str
    encoded: Encoded
    mean: torch.Tensor | None = None
    thought: str = ""


class ResponseStore:
    """Answers and judgements of one command, kept as they come so that a killed run can be resumed.

    Args:
        folder: ``None`` keeps everything in memory; else ``answers.jsonl``, ``judgements.jsonl`` and ``means/`` in it.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.answers = Journal(folder / "answers.jsonl" if folder else None)
        self.judgements = Journal(folder / "judgements.jsonl" if folder else None)

    def answer(
        self,
        engine: Engine,
        model: Model,
        requests: Sequence[ResponseRequest],
        sampling: SamplingParams,
        *,
        what: str,
        keep_means: bool = False,
    ) -> list[Response]:
        """Answer every request, in order, reusing what the folder already holds."""
        prompts = [model.encode(a.messages()) for a in requests]
        identity = asdict(model.fingerprint)
        keys = [
            content_key(
                model=identity,
                prompt=list(p.ids),
                sampling=asdict(sampling),
                seed=a.seed,
                steering=steering_key(a.steering),
                means=keep_means,
                **engine_key(engine),
            )
            for p, a in zip(prompts, requests, strict=True)
        ]
        out: dict[int, Response] = {}
        with track(what, total=len(requests)) as advance:
            for batch in engine.plan(prompts, sampling):
                if not (responses := self._recall(model, batch, keys, requests, prompts, keep_means)):
                    generations = engine.generate(
                        [prompts[i] for i in batch],
                        sampling,
                        seeds=[stream(requests[i]) for i in batch],
                        steering=[requests[i].steering for i in batch],
                        keep_means=keep_means,
                    )
                    means = [g.mean for g in generations if g.mean is not None]
                    self._keep_means([keys[i] for i in batch], means)
                    # First answers stay: what a later batch makes of the same question may differ in the last digit.
                    generated = {keys[i]: _answer_row(g) for i, g in zip(batch, generations, strict=True)}
                    self.answers.append((key, row) for key, row in generated.items() if key not in self.answers)
                    rows = [self.answers[keys[i]] for i in batch]
                    responses = [
                        _response(model, requests[i], prompts[i], row, g.mean)
                        for i, row, g in zip(batch, rows, generations, strict=True)
                    ]
                out |= dict(zip(batch, responses, strict=True))
                advance(len(batch))
        return [out[i] for i in range(len(requests))]

    def _recall(
        self,
        model: Model,
        batch: list[int],
        keys: list[str],
        requests: Sequence[ResponseRequest],
        prompts: list[Encoded],
        keep_means: bool,
    ) -> list[Response]:
        """The batch's answers if all of it is there, else nothing."""
        if not all(keys[i] in self.answers for i in batch):
            return []
        means: Sequence[torch.Tensor | None] = [None] * len(batch)
        if keep_means:
            path = self._means_path([keys[i] for i in batch])
            if path is None or not path.is_file():
                return []
            try:
                means = list(load_file(path)["means"])
            except SafetensorError:
                return []
        rows = [self.answers[keys[i]] for i in batch]
        responses = [
            _response(model, requests[i], prompts[i], row, mean)
            for i, row, mean in zip(batch, rows, means, strict=True)
        ]
        mixed = any(r.thought and "thought" not in row for r, row in zip(responses, rows, strict=True))
        return [] if keep_means and mixed else responses  # version 0.1.0 took means over thought and reply

    def _keep_means(self, keys: list[str], means: list[torch.Tensor]) -> None:
        path = self._means_path(keys)
        if means and path is not None:
            with saving(path) as temporary:
                temporary.write_bytes(save({"means": torch.stack(means)}))

    def _means_path(self, keys: list[str]) -> Path | None:
        """File of a batch's means, named by all its answers: the same first answer may come to lead another batch."""
        return self.folder / "means" / f"{content_key(batch=keys)}.safetensors" if self.folder else None

    def judge(self, judge: Judge, answers: Sequence[Response], *, scope: str, what: str) -> list[Judgement]:
        """Score every answer, in order, reusing what the folder already holds.

        Args:
            judge: Called on up to 64 answers at a time.
            answers: To score.
            scope: What the judge was fitted or wired to, e.g. the trait's hash; scores are shared within it only.
            what: Shown as progress.
        """
        keys = [content_key(judge=judge.name, scope=scope, question=a.question, answer=a.text) for a in answers]
        places: dict[str, int] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, i)
        first = list(places.values())
        with track(what, total=len(first)) as advance:
            # Always in the same batches, done or not: a judge that runs a model may depend on them in the last digit.
            for at in range(0, len(first), JUDGED_AT_ONCE):
                batch = first[at : at + JUDGED_AT_ONCE]
                if not all(keys[i] in self.judgements for i in batch):
                    judged = judge([answers[i].question for i in batch], [answers[i].text for i in batch])
                    new = [(keys[i], asdict(j)) for i, j in zip(batch, judged, strict=True)]
                    self.judgements.append(row for row in new if row[0] not in self.judgements)
                advance(len(batch))
        return [Judgement(**self.judgements[key]) for key in keys]


def stream(request: ResponseRequest) -> int:
    """The random stream of an answer: its own for each question and seed, shared by all ways of steering it."""
    return int(content_key(question=request.question, seed=request.seed)[:16], 16)


def scores_of(judgements: Sequence[Judgement]) -> list[float]:
    """The scores as numbers, NaN where there is none: missing is never zero."""
    return [float("nan") if j.score is None else j.score for j in judgements]


def _answer_row(answer: Generation) -> dict[str, Any]:
    """An answer as it is kept; one without a thought as version 0.1.0 kept it."""
    row: dict[str, Any] = {"text": answer.text, "ids": list(answer.ids)}
    return row | ({"text": answer.reply, "thought": answer.thought} if "mark" in answer.parts or answer.thought else {})


def _response(
    model: Model, request: ResponseRequest, prompt: Encoded, row: dict[str, Any], mean: torch.Tensor | None
) -> Response:
    """An answer that was kept; which of its tokens are the reply is known from them."""
    ids, n = row["ids"], len(prompt.ids)
    parts = answer_parts(model, prompt.ids, ids)
    start, end = parts.reply_span
    return Response(
        question=request.question,
        text=parts.reply if parts.marked else row["text"],
        encoded=Encoded((*prompt.ids, *ids), n + start, n + end, n if start else None),
        mean=mean,
        thought=parts.thought,
    )


def steering_key(steering: Steering | None) -> list[object]:
    """What identifies a steering: the content of its vectors, and everything that it does with them."""
    if steering is None:
        return []
    terms: list[object] = [
        [
            _vector_digest(t.vector),
            t.value,
            t.layers if t.layers == "increments" else list(t.layers),
            t.operation,
            t.phase,
            list(t.tokens),
            [_vector_digest(t.when.vector), t.when.layer, t.when.value, t.when.above, t.when.reading]
            if t.when
            else None,
            *([t.part] if t.part != "reply" else []),
        ]
        for t in steering.terms
    ]
    return [*terms, "orthogonal"] if steering.orthogonal else terms


def _vector_digest(vector: PersonaVector) -> str:
    return hashlib.sha256(vector.directions.numpy().tobytes()).hexdigest()[:16]
