"""What can steering do that a system prompt cannot, and what does it cost? Prints Markdown.

    python benchmarks/prompt_or_steering.py [--model smollm2-135m] [--trait impolite] [--vector FILE] [--keep FOLDER]

One trait, one model, one judge (the trait's exemplars), the same questions and random streams for every row:

1. strength: four system prompts from mild to strong, and four doses, beside no help at all;
2. fading: after 0, 3 and 8 earlier turns that show the opposite;
3. prompts that fight back: a system prompt, or the user, asks for the opposite;
4. a model without a system role: the same prompt folded into the user's turn;
5. losses: coherence, length, and one-word facts that are still answered right.

The prompt and the dose (and the layer, of a vector without a certificate) that are compared in 2 to 5 are the best of
each on selection questions that nothing else is reported on: the highest trait score among those whose coherence is 50
of 100 or more. FOLDER keeps every answer and judgement, to resume a run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from poise import contrast
from poise.contrast import ResponseRequest, ResponseStore, instructions
from poise.engine import SamplingParams
from poise.engine.static import LocalEngine
from poise.extract import extract
from poise.judge.coherence import LikelihoodCoherence
from poise.judge.exemplars import ExemplarJudge
from poise.model import Model, load_model
from poise.statistics.conformal import exact_interval
from poise.statistics.estimates import Estimate, mean_estimate
from poise.steer import Steering
from poise.trait import Trait, library
from poise.validate.conditions import Measured, Ordinary, ValidationRun, change_over_questions
from poise.validate.ladder import prompts
from poise.vector import PersonaVector, load_vector

LAYERS = (1 / 3, 1 / 2, 2 / 3)  # of the blocks, tried where the vector has no certificate that says where
DOSES = (0.15, 0.25, 0.35, 0.5)
SELECTION = 6  # questions that prompt and dose are chosen on
LEAST_COHERENCE = 50.0
TURNS = (0, 3, 8)
FACTS = (
    ("What is the capital of France?", "paris"),
    ("What is the capital of Italy?", "rome"),
    ("How many days are there in a week?", "seven|7"),
    ("What colour is the sky on a clear day?", "blue"),
    ("What is two plus two?", "four|4"),
    ("Which animal says miaow?", "cat"),
    ("What do bees make?", "honey"),
    ("Which planet do we live on?", "earth"),
    ("What is frozen water called?", "ice"),
    ("How many legs does a dog have?", "four|4"),
    ("What is the opposite of hot?", "cold"),
    ("Which language is spoken in Spain?", "spanish"),
    ("What is the first month of the year?", "january"),
    ("How many hours are there in a day?", "24|twenty"),
    ("What is the capital of Germany?", "berlin"),
    ("What gas do we need to breathe?", "oxygen"),
)
Conditions = dict[str, list[ResponseRequest]]


class Comparison:
    """Everything that stays the same from row to row."""

    def __init__(
        self, model: Model, trait: Trait, vector: PersonaVector, questions: int, tokens: int, keep: Path | None
    ):
        self.model, self.trait, self.vector = model, trait, vector
        judge = ExemplarJudge.fit(trait.judge_pairs)
        self.judge_auc = judge.cv_auc
        self.run = ValidationRun(
            engine=LocalEngine(model, batch=12, allow_other_model=True),
            model=model,
            judge=judge,
            scope=trait.name,
            coherence=lambda asked, answers: LikelihoodCoherence.fit(model, asked, answers),
            sampling=SamplingParams(max_new_tokens=tokens, temperature=0.7),
            rollouts=1,
            seed=0,
            store=ResponseStore(keep),
        )
        every = list(trait.questions.evaluation)
        self.selection, self.questions = every[:SELECTION], every[SELECTION : SELECTION + questions]
        self.ordinary: Ordinary = self.run.ordinary([*self.selection, *self.questions])
        self.layer = vector.at("steer").layer

    def steering(self, dose: float, layer: int | None = None) -> Steering:
        return Steering.add(self.vector, dose=dose, layer=self.layer if layer is None else layer)

    def asks(self, questions: Sequence[str], **template: object) -> list[ResponseRequest]:
        plain = ResponseRequest(question="")
        return [replace(ask, **template) for ask in self.run.asks(questions, plain)]  # type: ignore[arg-type]

    def measure(self, conditions: Conditions, what: str) -> dict[str, Measured]:
        return self.run.measure(conditions, self.ordinary, what=what)


def shown(of: Estimate, digits: int = 0, *, signed: bool = False) -> str:
    if of.value is None or of.low is None or of.high is None:
        return "–"
    sign = "+" if signed else ""
    return f"{of.value:{sign}.{digits}f} [{of.low:{sign}.{digits}f}, {of.high:{sign}.{digits}f}]"


def row(name: str, measured: Measured, plain: Measured) -> str:
    trait, coherence = measured.figures()
    change = change_over_questions(measured.by_question, plain.by_question)
    words = mean_estimate([len(answer.text.split()) for answer in measured.answers])
    cells = [name, shown(trait), shown(change, signed=True), shown(coherence), shown(words), str(trait.n)]
    return f"| {' | '.join(cells)} |"


def table(title: str, measured: Mapping[str, Measured], plain: Measured) -> None:
    print(f"\n### {title}\n")
    print("| | trait, 0 to 100 | beside no help, paired | coherence, 0 to 100 | words | n questions |")
    print("|---|---|---|---|---|---|")
    for name, one in measured.items():
        print(row(name, one, plain), flush=True)


def versus(words: str, steered: Measured, prompted: Measured) -> None:
    """Steering minus prompt, paired by question."""
    change = change_over_questions(steered.by_question, prompted.by_question)
    print(f"\nSteering minus prompt, {words}: {shown(change, 1, signed=True)}, n = {change.n} questions.", flush=True)


def best(measured: Mapping[str, Measured]) -> str:
    """The name of the highest trait score among those that are coherent enough; else the most coherent."""
    coherent = {name: one for name, one in measured.items() if one.mean_coherence >= LEAST_COHERENCE}
    if coherent:
        return max(coherent, key=lambda name: coherent[name].mean_trait)
    return max(measured, key=lambda name: measured[name].mean_coherence)


def choose(of: Comparison, systems: Mapping[str, str]) -> tuple[str, float]:
    """The best system prompt and the best dose, on the selection questions."""
    if of.vector.header.certificate is None:
        layers = [round(share * of.model.layers) for share in LAYERS]
        tried = of.measure(
            {str(at): of.asks(of.selection, steering=of.steering(DOSES[1], at)) for at in layers}, "layers"
        )
        of.layer = int(best(tried))
    conditions: Conditions = {name: of.asks(of.selection, system=text) for name, text in systems.items()}
    conditions |= {f"{dose:.0%}": of.asks(of.selection, steering=of.steering(dose)) for dose in DOSES}
    measured = of.measure(conditions, "selection")
    prompt = best({name: measured[name] for name in systems})
    dose = best({f"{dose:.0%}": measured[f"{dose:.0%}"] for dose in DOSES})
    print(f"Chosen on {len(of.selection)} questions: the prompt “{prompt}” and a dose of {dose}, layer {of.layer}.")
    return prompt, next(each for each in DOSES if f"{each:.0%}" == dose)


def strength(of: Comparison, systems: Mapping[str, str]) -> dict[str, Measured]:
    conditions: Conditions = {"no help": of.asks(of.questions)}
    conditions |= {f"prompt {name}": of.asks(of.questions, system=text) for name, text in systems.items()}
    conditions |= {f"steering {dose:.0%}": of.asks(of.questions, steering=of.steering(dose)) for dose in DOSES}
    measured = of.measure(conditions, "strength")
    table("1. Strength", measured, measured["no help"])
    return measured


def fading(of: Comparison, system: str, dose: float) -> None:
    pairs = [*of.trait.held_out_pairs, *of.trait.judge_pairs]
    for turns in TURNS:
        before = tuple((pair.question, pair.negative) for pair in pairs[:turns])
        conditions: Conditions = {
            "no help": of.asks(of.questions, before=before),
            "prompt": of.asks(of.questions, system=system, before=before),
            "steering": of.asks(of.questions, steering=of.steering(dose), before=before),
            "both": of.asks(of.questions, system=system, steering=of.steering(dose), before=before),
        }
        measured = of.measure(conditions, f"after {turns} turns")
        tokens = len(of.model.encode(conditions["prompt"][0].messages()).ids)
        table(
            f"2. Fading: after {turns} earlier turns without the trait ({tokens:,} tokens)",
            measured,
            measured["no help"],
        )
        versus(f"after {turns} turns", measured["steering"], measured["prompt"])


def fighting(of: Comparison, system: str, dose: float, opposite: str) -> None:
    steered = of.steering(dose)
    demand = "\n\nPlease be {} in your answer, whatever anybody else has told you."
    against_it = [question + demand.format(of.trait.opposite) for question in of.questions]
    for_it = [question + demand.format(of.trait.adjective) for question in of.questions]
    conditions: Conditions = {
        "no help": of.asks(of.questions),
        "system prompt against": of.asks(of.questions, system=opposite),
        "system prompt against, the user for": of.asks(for_it, system=opposite),
        "system prompt against, steering for": of.asks(of.questions, system=opposite, steering=steered),
        "the user against": of.asks(against_it),
        "the user against, system prompt for": of.asks(against_it, system=system),
        "the user against, steering for": of.asks(against_it, steering=steered),
    }
    measured = of.measure(conditions, "prompts that fight back")
    table("3. Prompts that fight back", measured, measured["no help"])
    versus(
        "against a system prompt",
        measured["system prompt against, steering for"],
        measured["system prompt against, the user for"],
    )
    versus(
        "against the user", measured["the user against, steering for"], measured["the user against, system prompt for"]
    )


def folded(of: Comparison, system: str, dose: float) -> None:
    conditions: Conditions = {
        "no help": of.asks(of.questions),
        "prompt, in the user's turn": of.asks([f"{system}\n\n{question}" for question in of.questions]),
        "steering": of.asks(of.questions, steering=of.steering(dose)),
    }
    measured = of.measure(conditions, "no system role")
    table("4. Without a system role", measured, measured["no help"])
    versus("without a system role", measured["steering"], measured["prompt, in the user's turn"])


def losses(of: Comparison, system: str, dose: float) -> None:
    questions = [f"{question} Answer in one word." for question, _ in FACTS]
    conditions: Conditions = {
        "no help": of.asks(questions),
        "prompt": of.asks(questions, system=system),
        "steering": of.asks(questions, steering=of.steering(dose)),
    }
    measured = of.measure(conditions, "losses")
    print("\n### 5. Losses: facts that are still answered right\n\n| | right | n |\n|---|---|---|")
    for name, one in measured.items():
        right = sum(
            any(word in answer.text.lower() for word in words.split("|"))
            for answer, (_, words) in zip(one.answers, FACTS, strict=True)
        )
        low, high = exact_interval(right, len(FACTS))
        print(f"| {name} | {right / len(FACTS):.2f} [{low:.2f}, {high:.2f}] | {len(FACTS)} |", flush=True)


def examples(measured: Mapping[str, Measured], prompt: str, dose: float) -> None:
    """The first question's answers, as they came."""
    print("\n### The first question, as it was answered\n")
    for name in ("no help", f"prompt {prompt}", f"steering {dose:.0%}"):
        answer = measured[name].answers[0]
        print(f"- {name}: {' '.join(answer.text.split())[:300]}")


def main(options: argparse.Namespace) -> None:
    began = time.process_time()
    model = load_model(options.model)
    trait = library.load_trait(options.trait)
    vector = load_vector(options.vector) if options.vector else extract(contrast.exemplars(trait, model), model)
    of = Comparison(model, trait, vector, options.questions, options.tokens, options.keep)
    graded = [step for step in prompts(trait) if step.name.startswith("+")]
    systems = {step.name: str(step.system) for step in graded}
    print(
        f"{options.name or model.name}, {trait.name}; {len(of.questions)} questions, one answer of up to "
        f"{options.tokens} tokens\neach, temperature 0.7; judge: exemplars, cross-validated AUC "
        f"{shown(of.judge_auc, 3)}, n = {of.judge_auc.n}.\n"
    )
    prompt, dose = choose(of, systems)
    measured = strength(of, systems)
    versus("the best of each", measured[f"steering {dose:.0%}"], measured[f"prompt {prompt}"])
    fading(of, systems[prompt], dose)
    fighting(of, systems[prompt], dose, instructions(trait, "negative")[0])
    folded(of, systems[prompt], dose)
    losses(of, systems[prompt], dose)
    examples(measured, prompt, dose)
    print(f"\n{np.ceil((time.process_time() - began) / 60):.0f} CPU-minutes.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--name", default="", help="what the model is called in the output")
    parser.add_argument("--trait", default="impolite")
    parser.add_argument("--vector", type=Path, help="a vector file; otherwise one from the trait's exemplars")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=40)
    parser.add_argument("--keep", type=Path, help="a folder for the answers, to resume a run")
    main(parser.parse_args())
