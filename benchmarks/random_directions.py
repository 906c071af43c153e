"""How often does a random direction pass as a trait? Prints Markdown.

    python benchmarks/random_directions.py [--trait impolite] [--directions 40] [--out random-directions]

Each of the random directions, of the norms of the trait's own vector on SmolLM2-135M, is validated as if it were a
vector: it chooses layer and dose on the even questions and is measured on the odd ones, beside three fixed random
directions. Two verdicts are counted: what everything but the free random directions lets pass (until now that was
`induced`), and what the ranks let pass as well, each direction against all the others. Some 320 answers a direction at
the defaults, about ten thousand tokens, two minutes of processor time: an hour and a quarter for 40. Finished answers
are kept in the folder: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from poise import load_model
from poise.contrast import ResponseStore, exemplars
from poise.engine import SamplingParams
from poise.extract import extract
from poise.progress import quiet
from poise.statistics.conformal import exact_interval
from poise.trait import library
from poise.validate import Certificate, ValidationSettings, validate
from poise.validate.random_control import LARGEST_P, random_vector
from poise.validate.verdict import LEAST_QUESTIONS

FIRST_SEED = 10_000  # far from those of the fixed random directions


def passes(certificate: Certificate, others: list[Certificate]) -> bool:
    """Whether the ranks let it pass: few enough of the others rise as far with coherent text."""
    rises = [rise(c) for c in others if (chosen(c) or 0.0) >= c.coherence_floor]
    as_high = sum(one >= rise(certificate) for one in rises)
    return (1 + as_high) / (1 + len(others)) <= LARGEST_P


def rise(certificate: Certificate) -> float:
    return -np.inf if certificate.rise.value is None else certificate.rise.value


def chosen(certificate: Certificate) -> float | None:
    """Coherence at the chosen dose."""
    return next(p.coherence.value for p in certificate.curve if p.dose == round(certificate.dose, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trait", default="impolite")
    parser.add_argument("--directions", type=int, default=40)
    parser.add_argument("--questions", type=int, default=2 * LEAST_QUESTIONS)
    parser.add_argument("--rollouts", type=int, default=1)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("random-directions"))
    arguments = parser.parse_args()
    if arguments.directions < 2:
        parser.error("--directions must be at least 2: each is ranked among the others.")
    model = load_model("smollm2-135m")
    vector = extract(exemplars(library.load_trait(arguments.trait), model), model)
    store = ResponseStore(arguments.out)
    certificates = []
    for k in range(arguments.directions):
        with quiet():
            certificate = validate(
                random_vector(vector, seed=FIRST_SEED + k),
                model,
                questions=arguments.questions,
                rollouts=arguments.rollouts,
                sampling=SamplingParams(max_new_tokens=arguments.max_new_tokens, temperature=0.7),
                settings=ValidationSettings(random_searches=0),
                run=store,
            )
        certificates.append(certificate)
        print(f"{k}: layer {certificate.layer}, dose {certificate.dose:g}, {certificate.verdict}, {certificate.rise}")
    n = len(certificates)
    without = [c.verdict != "not-induced" for c in certificates]
    ranked = [
        ok and passes(c, certificates[:k] + certificates[k + 1 :])
        for k, (c, ok) in enumerate(zip(certificates, without, strict=True))
    ]
    spread = np.std([rise(c) for c in certificates], ddof=1)
    print(f"\nRises of {n} random directions at their own choice: standard deviation {spread:.1f} points.\n")
    print("| what is asked | pass | share, % | 95 % interval |\n|---|---:|---:|---|")
    for name, passed in (("all but the ranks", without), ("and the ranks", ranked)):
        low, high = exact_interval(sum(passed), n)
        print(f"| {name} | {sum(passed)} of {n} | {100 * sum(passed) / n:.1f} | {100 * low:.1f} to {100 * high:.1f} |")


if __name__ == "__main__":
    main()
