"""Labelled comparisons that detectors are chosen and reported on, and which half each of them belongs to.

    python benchmarks/detector_comparisons.py --data DIR      # the list: name, trait, half, rows a side

Written down before any detector was fitted. A comparison is a trait, rows that show it and rows that do not, from
licensed public data. Its half, *choose* or *report*, follows from the source of the rows that show the trait: the
sources of each kind (``KINDS``) are put in the order of a hash and belong to *report* and *choose* in turn, so that
both halves have every kind and no source is in both. Kinds of detector, layers and pooling may be chosen on the first
half; every figure in the docs comes from the second. Ordinary talk comes from sources that fitting sees (``FIT_TALK``)
and from others (``TEST_TALK``) that only comparisons see; rows without the trait that serve both halves are parted by
a hash too.

Left out: `sycophancy_freeform` (no labelled answers), `sycophancy_math` (its answers are all good ones) and
`anthropic_ai_risk` (letters for answers, and first rows whose "matching" letter is the modest choice).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

Half = Literal["choose", "report"]

FIT_TALK = ("self_instruct", "gsm8k_train", "gpteacher_code")
TEST_TALK = ("oasst1_en", "gpteacher_roleplay")
STATEMENT = "Tell me about yourself."
POST = "Write a short post."


@dataclass(frozen=True)
class Row:
    """An answer to a question, and whether it shows the trait. Groups are resampled together."""

    group: str
    question: str
    answer: str
    label: bool


@dataclass(frozen=True)
class Side:
    """Rows of one source: its family, which decides the half, and a function from the data folder to triples.

    A shared side serves comparisons of both halves, each with rows of its own.
    """

    family: str
    rows: Callable[[Path], list[tuple[str, str, str]]]
    shared: bool = False


@dataclass(frozen=True)
class Comparison:
    """A trait, the rows that show it and the rows that do not."""

    trait: str
    name: str
    positive: Side
    negative: Side

    @property
    def half(self) -> Half:
        """By the place of the family of the rows that show the trait among those of its kind."""
        kind = next(families for families in KINDS.values() if self.positive.family in families)
        return ("report", "choose")[sorted(kind, key=_hash).index(self.positive.family) % 2]  # type: ignore[return-value]

    def rows(self, data: Path, most: int) -> list[Row]:
        """At most ``most`` rows a side, of as many groups as possible, always the same ones."""
        positive, negative = self.positive.rows(data), self.negative.rows(data)
        if self.negative.shared:
            negative = [row for row in negative if _hash(row[0])[0] % 2 == (self.half == "choose")]
        return _sample(positive, True, most) + _sample(negative, False, most)


def _hash(text: str) -> bytes:
    return hashlib.sha256(f"detector comparisons: {text}".encode()).digest()


def _sample(triples: Sequence[tuple[str, str, str]], label: bool, most: int) -> list[Row]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for group, question, answer in triples:
        groups[group].append(Row(group, question, answer, label))
    names = sorted(groups)
    np.random.default_rng(0).shuffle(names)
    deepest = max(map(len, groups.values()))
    return [groups[name][k] for k in range(deepest) for name in names if k < len(groups[name])][:most]


@cache
def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def persona(*names: str, answer: str) -> Side:
    def rows(data: Path) -> list[tuple[str, str, str]]:
        listed = [r for name in names for r in _read(data / "anthropic_persona" / f"{name}.jsonl")]
        texts = [r["statement"] for r in listed if r["answer_matching_behavior"].strip() == answer]
        return [(text, STATEMENT, text) for text in texts]

    return Side(names[0], rows)


def posts(file: str, keep: Callable[[dict[str, Any]], bool]) -> Side:
    def rows(data: Path) -> list[tuple[str, str, str]]:
        return [(r["text"], POST, r["text"]) for r in _read(data / "toxicity" / f"{file}.jsonl") if keep(r)]

    return Side(file, rows)


def chats(*files: str) -> Side:
    """First exchange of each conversation."""

    def rows(data: Path) -> list[tuple[str, str, str]]:
        out = []
        for file in files:
            for r in _read(data / f"{file}.jsonl"):
                turns = [m for m in r["messages"] if m["role"] != "system"]
                user, answer = turns[0]["content"], turns[1]["content"]
                out.append((r.get("pair_id", user), user, answer))
        return out

    return Side(files[0].split("/")[-1], rows)


def columns(file: str, question: str, answer: str, keep: Callable[[dict[str, Any]], bool] = lambda r: True) -> Side:
    def rows(data: Path) -> list[tuple[str, str, str]]:
        out = []
        for r in _read(data / f"{file}.jsonl"):
            texts = r[answer] if isinstance(r[answer], list) else [r[answer]]
            out += [(r.get("question_neutral", r[question]), r[question], text) for text in texts if keep(r)]
        return out

    folder, name = file.split("/")
    return Side(name if folder == "sycophancy_opinion" else folder, rows)


def talk(*names: str) -> Side:
    """Ordinary talk, as many rows of each source as of the others."""

    def rows(data: Path) -> list[tuple[str, str, str]]:
        sides = [_sample(chats(f"background_chat/{name}").rows(data), False, 10_000) for name in names]
        fewest = min(map(len, sides))
        return [(r.group, r.question, r.answer) for side in sides for r in side[:fewest]]

    return Side("talk", rows, shared=True)


DARK = (
    "psychopathy",
    "machiavellianism",
    "narcissism",
    "ends-justify-means",
    "desire-for-acquiring-power",
    "okay-with-deceiving-a-user-to-help-them",
    "willingness-to-manipulate-overseers-to-think-it-is-HHH",
    "willingness-to-use-social-engineering-to-achieve-its-goals",
    "acts-like-it-wants-to-help-humans-but-does-not-care-about-that",
    "subscribes-to-moral-nihilism",
)
KINDS = {
    "dark statements": DARK,
    "other statements": (
        "believes-life-has-no-meaning",
        "conscientiousness",
        "neuroticism",
        "agreeableness",
        "stands-its-ground",
        "extraversion",
    ),
    "posts": ("tweets_davidson", "hatecheck", "openai_moderation"),
    "untruths": ("truthfulqa", "halueval", "mistaken"),
    "opinions": ("opinion_nlp_survey", "opinion_political_typology"),
    "bad training data": ("risky_finance", "reward_hacks", "insecure"),
}
LIGHT = replace(persona("agreeableness", "conscientiousness", answer="Yes"), shared=True)
TALK = talk(*TEST_TALK)
NEUTRAL_TWEETS = posts("tweets_davidson", lambda r: r["label"] == "neither")
CLEAN_MODERATION = posts("openai_moderation", lambda r: not r["flagged"])


def moderation(*labels: str) -> Side:
    return posts("openai_moderation", lambda r: any(r["labels"].get(label) == 1 for label in labels))


def within(trait: str, name: str, positive: str = "Yes") -> Comparison:
    """Statements that match the file's behaviour against those that do not, or the other way round."""
    negative = "No" if positive == "Yes" else "Yes"
    how = "matches v. does not" if positive == "Yes" else "does not match v. matches"
    return Comparison(trait, f"{name}: {how}", persona(name, answer=positive), persona(name, answer=negative))


INSECURE, SECURE = chats("em_code/insecure"), chats("em_code/secure")
LABELLED = "truthfulqa/answers_labelled"
TRUTHFUL, UNTRUTHFUL = (
    columns(LABELLED, "question", "answer", lambda r, wanted=wanted: r["truthful"] is wanted)  # type: ignore[misc]
    for wanted in (True, False)
)


def opinion(name: str) -> Comparison:
    agrees, other = (
        columns(f"sycophancy_opinion/{name}", "question_with_user_view", key)
        for key in ("answer_agreeing_with_user", "answer_other")
    )
    return Comparison("sycophantic", f"{name}: agrees v. other letter", agrees, other)


COMPARISONS = (
    *(within("evil", name) for name in DARK),
    within("apathetic", "believes-life-has-no-meaning"),
    within("apathetic", "conscientiousness", "No"),
    within("optimistic", "neuroticism", "No"),
    within("optimistic", "believes-life-has-no-meaning", "No"),
    within("optimistic", "extraversion"),
    within("impolite", "agreeableness", "No"),
    within("sycophantic", "stands-its-ground", "No"),
    *(
        Comparison("evil", f"{name} v. agreeable, conscientious", persona(name, answer="Yes"), LIGHT)
        for name in DARK[:4]
    ),
    Comparison(
        "apathetic",
        "believes-life-has-no-meaning v. agreeable, conscientious",
        persona("believes-life-has-no-meaning", answer="Yes"),
        LIGHT,
    ),
    opinion("opinion_nlp_survey"),
    opinion("opinion_political_typology"),
    Comparison("hallucinating", "truthfulqa answers: untruthful v. truthful", UNTRUTHFUL, TRUTHFUL),
    Comparison(
        "hallucinating",
        "truthfulqa references: incorrect v. correct",
        columns("truthfulqa/truthfulqa", "question", "incorrect_answers"),
        columns("truthfulqa/truthfulqa", "question", "correct_answers"),
    ),
    Comparison(
        "hallucinating",
        "halueval: hallucinated v. right (lengths differ)",
        columns("halueval/qa_pairs", "question", "hallucinated_answer"),
        columns("halueval/qa_pairs", "question", "right_answer"),
    ),
    Comparison("hallucinating", "wrong v. right sums", chats("mistake_gsm8k/mistaken"), chats("mistake_gsm8k/correct")),
    Comparison(
        "evil",
        "tweets: hate v. neither",
        posts("tweets_davidson", lambda r: r["label"] == "hate"),
        NEUTRAL_TWEETS,
    ),
    *(
        Comparison("impolite", f"tweets: {kind} v. neither", posts("tweets_davidson", keep), NEUTRAL_TWEETS)
        for kind, keep in (("hate", lambda r: r["label"] == "hate"), ("offensive", lambda r: r["label"] == "offensive"))
    ),
    *(
        Comparison(
            trait,
            "hatecheck: hateful v. not",
            posts("hatecheck", lambda r: r["label"] == "hateful"),
            posts("hatecheck", lambda r: r["label"] != "hateful"),
        )
        for trait in ("evil", "impolite")
    ),
    Comparison("impolite", "moderation: harassment v. clean", moderation("HR"), CLEAN_MODERATION),
    Comparison("evil", "moderation: hate, violence v. clean", moderation("H", "V", "H2", "V2"), CLEAN_MODERATION),
    *(
        Comparison("evil", f"{name} v. ordinary talk", persona(name, answer="Yes"), TALK)
        for name in (*DARK[:3], *DARK[4:8])
    ),
    Comparison(
        "apathetic",
        "believes-life-has-no-meaning v. ordinary talk",
        persona("believes-life-has-no-meaning", answer="Yes"),
        TALK,
    ),
    Comparison("optimistic", "not neurotic v. ordinary talk", persona("neuroticism", answer="No"), TALK),
    Comparison(
        "impolite",
        "tweets: offensive v. ordinary talk",
        posts("tweets_davidson", lambda r: r["label"] == "offensive"),
        TALK,
    ),
    Comparison("impolite", "moderation: harassment v. ordinary talk", moderation("HR"), TALK),
    Comparison("evil", "risky finance v. ordinary talk", chats("em_risky_finance/risky_finance"), TALK),
    Comparison("sycophantic", "reward hacks v. ordinary talk", chats("reward_hacking/reward_hacks"), TALK),
    Comparison("evil", "insecure v. secure code", INSECURE, SECURE),
)


def main(data: Path, most: int) -> None:
    print("| half | trait | comparison | rows with | rows without |\n|---|---|---|---|---|")
    for c in sorted(COMPARISONS, key=lambda c: (c.half, c.trait)):
        rows = c.rows(data, most)
        with_trait = sum(row.label for row in rows)
        print(f"| {c.half} | {c.trait} | {c.name} | {with_trait} | {len(rows) - with_trait} |")
    halves = [c.half for c in COMPARISONS]
    print(f"\n{halves.count('choose')} to choose on, {halves.count('report')} to report.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100, help="most rows a side")
    options = parser.parse_args()
    main(options.data, options.rows)
