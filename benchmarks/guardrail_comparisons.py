"""Labelled comparisons that a guardrail's content filters are chosen and reported on, and which half each belongs to.

    python benchmarks/guardrail_comparisons.py --data DIR      # the list: half, filter, comparison, rows a side

Written down before any filter was measured. The halves share no data set where a kind of content has more than one,
and otherwise no type of row: exemplars, layers, readings and regularisation are chosen on *choose*, and every figure of
the docs is of *report*. Ordinary talk is parted by a hash: one part for the fit, one for thresholds, one for each half.

Left out: SEXUAL has no comparison, since such rows were taken out of the public sets; its false alarms are counted all
the same. Texts of more than ``LONGEST`` characters are left out, which matters for jailbreaks alone (most are longer).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Half = Literal["choose", "report"]
Part = Literal["fit", "threshold", "choose", "report"]
Texts = Callable[[Path], list[str]]

LONGEST = 1200  # characters
TALK_PARTS: Mapping[Part, float] = {"fit": 0.3, "threshold": 0.35, "choose": 0.15, "report": 0.2}
TALK_ROWS = {
    "oasst1_en": 139,
    "self_instruct": 220,
    "gpteacher_roleplay": 160,
    "gpteacher_code": 120,
    "gsm8k_train": 120,
}
XSTEST_CHOSEN = ("homonyms", "safe_targets", "definitions", "discr")
"""Types of XSTest that are chosen on, safe and unsafe ones; the others are reported."""
GOALS_CHOSEN = ("Malware/Hacking", "Fraud/Deception", "Harassment/Discrimination")
"""Categories of JailbreakBench whose bare goals are chosen on."""


@dataclass(frozen=True)
class Comparison:
    """A filter, texts that it is to stop and texts that it is not to."""

    half: Half
    filter: str
    name: str
    positive: Texts
    negative: Texts | None = None
    """``None`` stands for ordinary talk of the half."""

    def sides(self, data: Path, most: int) -> tuple[list[str], list[str]]:
        """At most so many texts a side, always the same ones."""
        negative = self.negative(data) if self.negative else talk(data, self.half)
        return drawn(self.positive(data), most), drawn(negative, most if self.negative else len(negative))


def drawn(texts: list[str], most: int) -> list[str]:
    """Different texts that are not too long, the first in the order of a hash."""
    usable = {text for text in texts if 0 < len(text) <= LONGEST and text.strip()}
    return sorted(usable, key=_hash)[:most]


def _hash(text: str) -> bytes:
    return hashlib.sha256(f"guardrail comparisons: {text}".encode()).digest()


@cache
def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def talk(data: Path, part: Part) -> list[str]:
    """What people first say in ordinary conversations, of one part."""
    first = [text for name, most in TALK_ROWS.items() for text in drawn(prompts(name)(data), most)]
    bounds, reached = {}, 0.0
    for name, share in TALK_PARTS.items():
        bounds[name] = (reached, reached + share)
        reached += share
    low, high = bounds[part]
    return [text for text in first if low <= int.from_bytes(_hash(f"part {text}")[:4]) / 2**32 < high]


def prompts(name: str) -> Texts:
    """First thing that the user says."""

    def read(data: Path) -> list[str]:
        rows = read_rows(data / "background_chat" / f"{name}.jsonl")
        return [next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows]

    return read


def column(file: str, key: str, keep: Callable[[dict[str, Any]], bool] = lambda row: True) -> Texts:
    return lambda data: [row[key] for row in read_rows(data / f"{file}.jsonl") if keep(row)]


def tweets(label: str) -> Texts:
    return column("toxicity/tweets_davidson", "text", lambda row: row["label"] == label)


def moderation(*labels: str) -> Texts:
    file = "toxicity/openai_moderation"
    if not labels:
        return column(file, "text", lambda row: not row["flagged"])
    return column(file, "text", lambda row: any(row["labels"].get(label) == 1 for label in labels))


def hatecheck(label: str, *functions: str) -> Texts:
    file = "toxicity/hatecheck"
    return column(
        file, "text", lambda r: r["label"] == label and (not functions or r["functionality"].startswith(functions))
    )


def xstest(label: str, half: Half) -> Texts:
    def keep(row: dict[str, Any]) -> bool:
        chosen = row["type"].removeprefix("contrast_").startswith(XSTEST_CHOSEN) or "discr" in row["type"]
        return row["label"] == label and chosen == (half == "choose")

    return column("guardrail/xstest", "prompt", keep)


def goals(half: Half) -> Texts:
    """What attackers want, said plainly."""
    return column(
        "guardrail/jailbreakbench_prompts", "goal", lambda r: (r["category"] in GOALS_CHOSEN) == (half == "choose")
    )


def attacks(name: str) -> Texts:
    return column("guardrail/jailbreakbench_prompts", "prompt", lambda row: row["attack"] == name)


def continuations(category: str) -> Texts:
    return column("toxicity/toxic_continuation_prompts", "text", lambda row: row["category"] == category)


def role_play(half: Half) -> Texts:
    """Harmless prompts that ask for a role, none of which is in the ordinary talk."""
    first = TALK_ROWS["gpteacher_roleplay"] + (100 if half == "report" else 0)
    return lambda data: drawn(prompts("gpteacher_roleplay")(data), first + 100)[first:]


COMPARISONS = (
    Comparison("choose", "HATE", "tweets: hate v. neither", tweets("hate"), tweets("neither")),
    Comparison("choose", "HATE", "tweets: hate v. talk", tweets("hate")),
    Comparison("choose", "INSULTS", "tweets: offensive v. neither", tweets("offensive"), tweets("neither")),
    Comparison("choose", "INSULTS", "continuations: insult v. talk", continuations("insult")),
    Comparison("choose", "VIOLENCE", "continuations: threat v. talk", continuations("threat")),
    Comparison(
        "choose", "MISCONDUCT", "XSTest: unsafe v. safe", xstest("unsafe", "choose"), xstest("safe", "choose")
    ),
    Comparison("choose", "MISCONDUCT", "JailbreakBench: plain goals v. talk", goals("choose")),
    Comparison("choose", "PROMPT_ATTACK", "injections v. talk", column("guardrail/prompt_injections", "prompt")),
    Comparison(
        "choose", "PROMPT_ATTACK", "injections v. role play", column("guardrail/prompt_injections", "prompt"),
        role_play("choose"),
    ),
    Comparison("report", "HATE", "HateCheck: hateful v. not", hatecheck("hateful"), hatecheck("non-hateful")),
    Comparison("report", "HATE", "HateCheck: hateful v. talk", hatecheck("hateful")),
    Comparison("report", "HATE", "moderation: hate v. clean", moderation("H", "H2"), moderation()),
    Comparison("report", "INSULTS", "moderation: harassment v. clean", moderation("HR"), moderation()),
    Comparison("report", "INSULTS", "moderation: harassment v. talk", moderation("HR")),
    Comparison("report", "VIOLENCE", "moderation: violence v. clean", moderation("V", "V2", "H2"), moderation()),
    Comparison(
        "report", "VIOLENCE", "HateCheck: threats v. not hateful", hatecheck("hateful", "threat"),
        hatecheck("non-hateful"),
    ),
    Comparison(
        "report", "MISCONDUCT", "XSTest: unsafe v. safe", xstest("unsafe", "report"), xstest("safe", "report")
    ),
    Comparison("report", "MISCONDUCT", "JailbreakBench: plain goals v. talk", goals("report")),
    Comparison(
        "report", "PROMPT_ATTACK", "jailbreaks from forums v. talk", column("guardrail/jailbreak_in_the_wild", "prompt")
    ),
    Comparison(
        "report", "PROMPT_ATTACK", "jailbreaks from forums v. role play",
        column("guardrail/jailbreak_in_the_wild", "prompt"), role_play("report"),
    ),
    Comparison("report", "PROMPT_ATTACK", "PAIR (unseen kind) v. talk", attacks("PAIR")),
    Comparison("report", "PROMPT_ATTACK", "GCG (unseen kind) v. talk", attacks("GCG")),
)  # fmt: skip


def main(data: Path, most: int) -> None:
    print("| half | filter | comparison | to stop | not to stop |\n|---|---|---|---|---|")
    for c in COMPARISONS:
        positive, negative = c.sides(data, most)
        print(f"| {c.half} | {c.filter} | {c.name} | {len(positive)} | {len(negative)} |")
    sizes = ", ".join(f"{len(talk(data, part))} {part}" for part in TALK_PARTS)
    print(f"\nOrdinary talk: {sizes}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=100, help="most rows a side")
    options = parser.parse_args()
    main(options.data, options.rows)
