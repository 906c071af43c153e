"""How well a model turns answers into statements that rules can be held against. Prints Markdown.

    python benchmarks/reasoning_translation.py --model FOLDER [--translations 2]

Thirty questions and answers over the three policies of ``tests/policies``, each with the finding that its words
deserve. The policy's rules are the same for all; what differs is what the model writes down of an answer. Counted are
findings that are right, ambiguous, missing and wrong, and the seconds of an answer.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from poise.model import load_model
from poise.reasoning import LocalFactWriter, PolicyReasoner, check_answer, load_policy
from poise.statistics.conformal import exact_interval

POLICIES = Path(__file__).parents[1] / "tests" / "policies"
CASES = [
    ("leave", "I am full-time and have been here for 14 months. May I take parental leave?", "Yes, you may.", "VALID"),
    ("leave", "I work part-time and joined 20 months ago. How many weeks do I get?", "You get 8 weeks.", "VALID"),
    ("leave", "I am a contractor. Can I take parental leave?", "No, you are not eligible.", "VALID"),
    ("leave", "I have been here for 5 months.", "Then you are not eligible for parental leave.", "VALID"),
    ("leave", "I am full-time, 3 years here, and eligible. How long?", "You may take 16 weeks.", "VALID"),
    ("leave", "I am eligible and gave notice in time. How much is paid?", "All of your salary is paid.", "VALID"),
    ("leave", "I am a contractor and have been here for 40 months.", "You are eligible for leave.", "INVALID"),
    ("leave", "I am full-time and have been here for 6 months.", "You are eligible.", "INVALID"),
    ("leave", "I work part-time, for 2 years now. How many weeks?", "You may take 16 weeks.", "INVALID"),
    ("leave", "I am full-time and joined 30 months ago.", "You may take 8 weeks of leave.", "INVALID"),
    ("leave", "I am a contractor.", "You may take 8 weeks.", "INVALID"),
    ("leave", "I have been here for 14 months. May I?", "Yes, you are eligible.", "SATISFIABLE"),
    ("leave", "I work full-time. May I take leave?", "Yes, you are eligible.", "SATISFIABLE"),
    ("refund", "I bought it 40 days ago and it works. Can I send it back?", "No, it cannot be sent back.", "VALID"),
    ("refund", "It broke; it is defective. I bought it 100 days ago.", "You can send it back.", "VALID"),
    ("refund", "I opened the software, and it is not defective.", "It cannot be sent back.", "VALID"),
    ("refund", "It is defective and I bought it 800 days ago.", "You can send it back.", "INVALID"),
    ("refund", "I opened the food, nothing is wrong with it.", "You can send it back.", "INVALID"),
    ("refund", "I bought it 60 days ago, it is not defective and cost 20 euros.", "You get 20 euros back.", "INVALID"),
    ("refund", "I bought it 10 days ago. Can I send it back?", "Yes, you can.", "SATISFIABLE"),
    ("refund", "It cost 30 euros. What do I get?", "You get 30 euros back.", "SATISFIABLE"),
    ("dose", "I took 6 tablets today. How many milligrams is that?", "That is 3000 mg.", "VALID"),
    ("dose", "I weigh 45 kg and took 5 tablets today.", "That is not safe.", "VALID"),
    ("dose", "I weigh 70 kg, my liver is healthy, and I took 6 tablets.", "That is safe.", "VALID"),
    ("dose", "I took 9 tablets today.", "That is above the limit, so it is not safe.", "VALID"),
    ("dose", "I weigh 45 kg and took 6 tablets today.", "That is safe.", "INVALID"),
    ("dose", "I took 4 tablets. How many milligrams?", "That is 400 mg.", "INVALID"),
    ("dose", "I have a liver disease. What is my limit?", "Your limit is 4000 mg a day.", "INVALID"),
    ("dose", "I took 6 tablets today.", "That is safe.", "SATISFIABLE"),
    ("dose", "I weigh 80 kg and took 5 tablets.", "That is safe.", "SATISFIABLE"),
]


def main(model: str, translations: int) -> None:
    reasoners = {name: PolicyReasoner(load_policy(POLICIES / f"{name}.yaml")) for name in ("leave", "refund", "dose")}
    write = LocalFactWriter(load_model(model), most_tokens=256)
    outcomes: Counter[str] = Counter()
    by_kind: Counter[tuple[str, str]] = Counter()
    began = time.perf_counter()
    for name, question, answer, kind in CASES:
        finding = check_answer(reasoners[name], question, answer, write, translations=translations)
        undecided = finding.kind in ("TRANSLATION_AMBIGUOUS", "NO_TRANSLATION", "TOO_COMPLEX")
        outcomes["right" if finding.kind == kind else finding.kind if undecided else "wrong"] += 1
        by_kind[kind, finding.kind] += 1
        print(f"{kind:12} {finding.kind:22} {answer} {finding.translations[:1]}", flush=True)
    seconds = (time.perf_counter() - began) / len(CASES)
    print(f"\n{model}, {translations} translations, {seconds:.1f} s an answer\n")
    print(f"| finding | of {len(CASES)} | 95 % interval |\n|---|---:|---|")
    for outcome, count in outcomes.most_common():
        low, high = exact_interval(count, len(CASES))
        print(f"| {outcome} | {count} | {low:.0%} to {high:.0%} |")
    print("\n" + "\n".join(f"{kind} → {got}: {n}" for (kind, got), n in sorted(by_kind.items())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--translations", type=int, default=2)
    given = parser.parse_args()
    main(given.model, given.translations)
