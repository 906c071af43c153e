"""Do the detectors' pairs steer as well as the extraction pairs? Prints Markdown.

    python benchmarks/steering_exemplars.py [--model smollm2-135m] [--tokens 48] [--questions 20] [--keep FOLDER]

For each trait of the library a vector from its extraction pairs and one from its detector pairs, which share tone and
register on both sides, validated alike: the same judge, questions, settings and seed. Layer and dose are chosen on the
even questions, everything printed is from the odd ones. FOLDER keeps the answers, to resume a run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from poise import contrast
from poise.contrast import ResponseStore
from poise.engine import SamplingParams
from poise.extract import extract
from poise.model import load_model
from poise.statistics.estimates import Estimate
from poise.trait import ExemplarPair, Trait, library
from poise.validate import ValidationSettings, validate

SETTINGS = ValidationSettings(
    random_searches=0, layers=5, sweep_doses=(0.25,), doses=(0.15, 0.35), curve=(-1.0, -0.5, 0.5, 1.0)
)


def from_detector_pairs(trait: Trait) -> Trait:
    """The same trait, its vector to be computed from the detector's pairs."""
    pairs = tuple(
        ExemplarPair(question=p.question, positive=p.positive, negative=p.negative) for p in trait.exemplars.detector
    )
    return trait.model_copy(
        update={"exemplars": trait.exemplars.model_copy(update={"extraction": pairs, "detector": ()})}
    )


def shown(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"


def main(name: str, tokens: int, questions: int, keep: Path | None) -> None:
    model = load_model(name)
    print(f"{model.name}, {questions} questions × 2 answers of up to {tokens} tokens, temperature 0.7.\n")
    print("| trait | pairs | layer | dose | rise of the score | random directions | coherence | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for trait_name in library.names():
        trait = library.load_trait(trait_name)
        for pairs, source in (("extraction", trait), ("detector", from_detector_pairs(trait))):
            vector = extract(contrast.exemplars(source, model), model)
            run = ResponseStore(keep / f"{trait_name}-{pairs}" if keep else None)
            facts = validate(
                vector,
                model,
                questions=questions,
                rollouts=2,
                sampling=SamplingParams(max_new_tokens=tokens, temperature=0.7),
                settings=SETTINGS,
                run=run,
            )
            chosen = next(point for point in facts.curve if abs(point.dose - facts.dose) < 1e-9)
            cells = [trait_name, pairs, str(facts.layer), f"{facts.dose:.2f}", shown(facts.rise)]
            cells += [shown(facts.random.rise), f"{chosen.coherence.value:.0f}", facts.verdict]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    main(options.model, options.tokens, options.questions, options.keep)
