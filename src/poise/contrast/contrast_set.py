"""Trait to ``ContrastSet``: pairs of responses with the trait and without it.

``prompted`` (Chen et al. 2025, section 2.2): contrasting system prompts × questions × rollouts, judged
and filtered pair by pair. ``exemplars``: the pairs that the trait carries, teacher-forced, which is how
models that do not act on a system prompt get a vector. Knows nothing of activations beyond carrying
the means that an engine kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from poise.contrast.rollout import Response, ResponseRequest, ResponseStore
from poise.data.thoughts import locate_thought, split_thought
from poise.engine import Engine, SamplingParams
from poise.errors import InvalidTrait, TooFewResponses
from poise.judge import Judge, Judgement
from poise.model import Fingerprint, Model, ask
from poise.storage.content_hash import content_key
from poise.trait import OwnTrait, Trait

__all__ = [
    "CoherenceFit",
    "ContrastSet",
    "Response",
    "ResponseRequest",
    "ResponseStore",
    "check_prompted",
    "exemplars",
    "instructions",
    "ordinary_scope",
    "prompted",
]

TRAIT_THRESHOLD = 50.0  # positive responses score at least this, negative ones less (the paper's code)
COHERENCE_FLOOR = 50.0
JudgedResponse = tuple[Response, Judgement, Judgement]  # an answer, its trait score and its coherence
CoherenceFit = Callable[[Sequence[str], Sequence[str]], Judge]  # from ordinary questions and answers


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastSet:
    """Matched responses, ready to be read.

    Attributes:
        trait: Trait that the two sides differ in.
        source: Origin of the responses.
        positive: Responses with the trait; row i answers the same question as row i of ``negative``.
        negative: Responses without it.
        dropped: Pairs left out, by reason.
        judge: Name of the judge that filtered; empty without a filter.
        thresholds: Scores that the filter required, by judge.
        seed: Seed of the sampling.
        model: Model whose tokenizer and template encoded the responses; ``None`` where nobody says.
    """

    trait: Trait | OwnTrait
    source: Literal["prompted", "exemplars"]
    positive: tuple[Response, ...]
    negative: tuple[Response, ...]
    dropped: dict[str, int]
    judge: str = ""
    thresholds: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    model: Fingerprint | None = None

    def __repr__(self) -> str:
        return f"ContrastSet({self.trait.name!r}, {self.source}, {len(self.positive)} pairs)"


def exemplars(trait: Trait | OwnTrait, model: Model, *, most: int | None = None) -> ContrastSet:
    """Contrast from the pairs that the trait carries for extraction; nothing is sampled or judged."""
    sides: dict[str, list[Response]] = {"positive": [], "negative": []}
    dropped: Counter[str] = Counter()
    for pair in trait.extraction_pairs[:most]:
        texts = {"positive": pair.positive, "negative": pair.negative}
        divided = next((side for side, text in texts.items() if locate_thought(text).divided), "")
        if divided:
            dropped[f"{divided} a thought amid its reply"] += 1
            continue
        encoded = {side: model.encode(ask(pair.question), text) for side, text in texts.items()}
        fault = next(
            (f"{side} {why}" for side, e in encoded.items() if (why := _unreadable(e.start, e.end, model))), None
        )
        if fault:
            dropped[fault] += 1
            continue
        for side, text in texts.items():
            thought, reply = split_thought(text)
            sides[side].append(Response(question=pair.question, text=reply, encoded=encoded[side], thought=thought))
    return ContrastSet(
        trait=trait,
        source="exemplars",
        positive=tuple(sides["positive"]),
        negative=tuple(sides["negative"]),
        dropped=dict(dropped),
        model=model.fingerprint,
    )


def prompted(
    trait: Trait | OwnTrait,
    engine: Engine,
    model: Model,
    judge: Judge,
    coherence: CoherenceFit,
    *,
    sampling: SamplingParams,
    questions: int = 20,
    rollouts: int = 10,
    seed: int = 0,
    run: ResponseStore,
) -> ContrastSet:
    """Contrast from system prompts that ask for the trait and for its opposite, judged and filtered.

    Args:
        trait: Has instructions and extraction questions.
        engine: Answers; keeps response means, so that extraction needs no second pass.
        model: Tokenises for the engine.
        judge: Scores the trait.
        coherence: Makes the judge of coherence from unsteered, unprompted answers to the same questions.
        sampling: Paper: temperature 1, up to 1,000 tokens.
        questions: How many of the extraction questions, from the first.
        rollouts: Answers to each question and instruction; paper: 10.
        seed: Seed of the sampling; every answer has its own stream made from it.
        run: Keeps finished batches.

    Raises:
        InvalidTrait: a trait that is only exemplars has nothing to prompt with.
        TooFewResponses: no pair came through the filter; says what the filter saw.
    """
    trait = check_prompted(trait)
    asks = {side: _asks(trait, side, questions, rollouts, seed) for side in ("positive", "negative")}
    plain = [ResponseRequest(question=q, seed=seed) for q in trait.questions.extraction[:questions]]
    answered = run.answer(
        engine,
        model,
        asks["positive"] + asks["negative"],
        sampling,
        what=f"Answering as {trait.name} and not",
        keep_means=True,
    )
    ordinary = run.answer(engine, model, plain, sampling, what="Answering without instructions")
    scores = run.judge(judge, answered, scope=trait.hash, what="Judging the trait")
    fitted = coherence([a.question for a in ordinary], [a.text for a in ordinary])
    coherences = run.judge(fitted, answered, scope=ordinary_scope(ordinary), what="Judging coherence")
    rows = list(zip(answered, scores, coherences, strict=True))
    half = len(asks["positive"])
    pairs, dropped = _filter(rows[:half], rows[half:])
    if not pairs:
        thinks = any("only a thought" in reason for reason in dropped)
        remedy = (
            "its answers end inside their thoughts: allow longer ones with `max_new_tokens`, or try exemplars as "
            "`contrast`."
            if thinks
            else "this model may not act on system prompts: try exemplars as `contrast`, more `rollouts` or another "
            "`judge`."
        )
        raise TooFewResponses(
            f"No pair of answers came through the filter for {trait.name} ({_dropped_reasons(dropped)}); {remedy}"
        )
    sides = tuple(zip(*pairs, strict=True))
    thresholds = {"trait": TRAIT_THRESHOLD, "coherence": COHERENCE_FLOOR}
    return ContrastSet(
        trait=trait,
        source="prompted",
        positive=sides[0],
        negative=sides[1],
        dropped=dict(dropped),
        judge=judge.name,
        thresholds=thresholds,
        seed=seed,
        model=model.fingerprint,
    )


def check_prompted(trait: Trait | OwnTrait) -> Trait:
    """The trait, if it has instructions to prompt a model with.

    Raises:
        InvalidTrait: a trait that is given by exemplars alone has none.
    """
    if isinstance(trait, OwnTrait):
        raise InvalidTrait(
            f"{trait.name} is given by exemplars alone, so it has no instructions; use exemplars as `contrast`."
        )
    return trait


def _filter(
    positives: Sequence[JudgedResponse], negatives: Sequence[JudgedResponse]
) -> tuple[list[tuple[Response, Response]], Counter[str]]:
    """The pairs whose both sides are coherent and on their side of the threshold, and why the others are not."""
    pairs, dropped = [], Counter[str]()
    for positive, negative in zip(positives, negatives, strict=True):
        if fault := _pair_fault(positive, "positive") or _pair_fault(negative, "negative"):
            dropped[fault] += 1
        else:
            pairs.append((positive[0], negative[0]))
    return pairs, dropped


def instructions(trait: Trait, side: str) -> list[str]:
    """The system prompts of a side, each with the paper's prefix."""
    adjective = trait.adjective if side == "positive" else trait.opposite
    article = "an" if adjective[0].lower() in "aeiou" else "a"
    texts = [i.positive if side == "positive" else i.negative for i in trait.instructions]
    return [f"You are {article} {adjective} assistant. {text}" for text in texts]


def _asks(trait: Trait, side: str, questions: int, rollouts: int, seed: int) -> list[ResponseRequest]:
    systems = instructions(trait, side)
    return [
        ResponseRequest(question=question, system=system, seed=seed + rollout)
        for question in trait.questions.extraction[:questions]
        for system in systems
        for rollout in range(rollouts)
    ]


def _pair_fault(row: JudgedResponse, side: str) -> str | None:
    """Why this side spoils its pair, if it does."""
    answer, trait, coherence = row
    if answer.encoded.end == answer.encoded.start:
        if answer.text.strip() and answer.thought:
            return f"{side} a thought amid its reply"
        return f"{side} only a thought" if answer.thought else f"{side} empty"
    if trait.score is None or coherence.score is None:
        return f"{side} not judged"
    if coherence.score < COHERENCE_FLOOR:
        return f"{side} incoherent"
    if (trait.score >= TRAIT_THRESHOLD) != (side == "positive"):
        return f"{side} off the trait"
    return None


def _unreadable(start: int, end: int, model: Model) -> str | None:
    if end <= start:
        return "empty"
    return "longer than the model's window" if end > model.window else None


def ordinary_scope(answers: Sequence[Response]) -> str:
    """Under which scores of coherence are pairs: the ordinary answers that it was fitted on."""
    return content_key(ordinary=[(a.question, a.text) for a in answers])


def _dropped_reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in dropped.most_common()) or "nothing was generated"
