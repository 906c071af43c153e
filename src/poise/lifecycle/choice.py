"""Candidates of a use case side by side, and which one the requirements speak for, or that they do not tell.

Licence, size, memory and speed on this machine, and the traits, tasks and guardrails that the requirements name. Of an
endpoint what it says and how fast; its files are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from poise.errors import UserError
from poise.lifecycle.candidate_measures import (
    SPEED_PROMPTS,
    detector_recalls,
    generation_speed,
    greedy_answers,
    task_scores,
    trait_score,
)
from poise.lifecycle.endpoint_candidate import EndpointCandidate, is_endpoint
from poise.lifecycle.model_files import inspect_model
from poise.lifecycle.project import Project, TraitBound
from poise.progress import track
from poise.settings import FrozenModel
from poise.statistics.estimates import Estimate, mean_estimate

if TYPE_CHECKING:
    from poise.lifecycle.registry import Registry

__all__ = ["CandidateFacts", "CheckedRequirement", "ModelChoice", "choose_model", "measure_candidate"]

CheckState = Literal["kept", "broken", "unsure", "not measured"]


class CheckedRequirement(FrozenModel):
    """One requirement and whether a candidate keeps it.

    Attributes:
        name: Requirement in words.
        state: ``unsure`` where the interval lies on both sides of the limit.
        text: What was measured.
    """

    name: str
    state: CheckState
    text: str


class CandidateFacts(FrozenModel):
    """What was measured of a candidate.

    Attributes:
        name: Name in the project.
        fault: Why it could not be measured; empty where it was.
        licence: Licence that its files state.
        files: Number of its files.
        file_mib: Size of its files, in MiB.
        parameters: Number of weights.
        memory_mib: Weights as they were loaded, in MiB.
        dtype: Type of number that they were loaded in.
        tokens_per_second: One answer at a time, the reading of its prompt included; over prompts.
        first_token_seconds: Wait for the first token; over prompts.
        traits: Mean score of its ordinary answers by trait, 0 to 100, over questions.
        steerability: Verdicts of certificates in the registry, by trait.
        capability: Mean score by task, 0 to 1, over questions.
        unmeasured: Why a task or a guardrail was not measured, by its name.
        detectors: Recall of each detector of the guardrails that were fitted on it, over its examples, held out.
        price: Price that the project states.
        checks: Requirements.
    """

    name: str
    fault: str = ""
    licence: str = ""
    files: int = 0
    file_mib: float = 0.0
    parameters: int = 0
    memory_mib: float | None = None
    dtype: str = ""
    tokens_per_second: Estimate | None = None
    first_token_seconds: Estimate | None = None
    traits: dict[str, Estimate] = Field(default_factory=dict)
    steerability: dict[str, str] = Field(default_factory=dict)
    capability: dict[str, Estimate] = Field(default_factory=dict)
    unmeasured: dict[str, str] = Field(default_factory=dict)
    detectors: dict[str, Estimate] = Field(default_factory=dict)
    price: str = ""
    checks: tuple[CheckedRequirement, ...] = ()

    @property
    def states(self) -> set[str]:
        """States of its requirements."""
        return {check.state for check in self.checks}


class ModelChoice(FrozenModel):
    """Candidates side by side.

    Attributes:
        use_case: What it is for, in words.
        candidates: Candidates in the project's order.
        recommended: Candidate that the requirements speak for; empty where they do not tell.
        why: Reason, with the margin.
    """

    use_case: str
    candidates: tuple[CandidateFacts, ...]
    recommended: str
    why: str


def choose_model(
    project: Project,
    *,
    questions: int = 8,
    max_new_tokens: int = 48,
    registry: Registry | None = None,
    device: str | None = None,
    capability_limit: int = 100,
    folder: Path | None = None,
) -> ModelChoice:
    """Measure every candidate and say which one the requirements speak for.

    Args:
        project: Candidates and requirements.
        questions: Questions of each trait that is bounded.
        max_new_tokens: Longest answer, in tokens.
        registry: Registry whose certificates say what steering does.
        device: Device to run on; otherwise the best there is.
        capability_limit: Most questions of each task.
        folder: Folder that the paths of guardrails begin in.
    """
    candidates = []
    for name in project.candidates:
        try:
            if is_endpoint(name):
                facts = measure_endpoint(name, project, questions=questions, max_new_tokens=max_new_tokens)
            else:
                facts = measure_candidate(
                    name,
                    project,
                    questions=questions,
                    max_new_tokens=max_new_tokens,
                    device=device,
                    capability_limit=capability_limit,
                    folder=folder,
                )
        except UserError as error:
            facts = CandidateFacts(name=name, fault=str(error))
        certified = dict(_verdicts(registry, name)) if registry else {}
        facts = facts.model_copy(update={"steerability": certified, "price": project.prices.get(name, "")})
        checks = () if facts.fault else tuple(_requirement_checks(facts, project))
        candidates.append(facts.model_copy(update={"checks": checks}))
    recommended, why = _recommendation(candidates)
    return ModelChoice(use_case=project.use_case, candidates=tuple(candidates), recommended=recommended, why=why)


def measure_endpoint(name: str, project: Project, *, questions: int = 8, max_new_tokens: int = 48) -> CandidateFacts:
    """Speed and bounded traits of a candidate behind an endpoint.

    Raises:
        UserError: it does not answer, or a trait is unknown.
    """
    candidate, waits, rates = EndpointCandidate(name), [], []
    with track("Measuring speed", total=len(SPEED_PROMPTS)) as advance:
        candidate.ask("Hello.", 4)  # warm
        for prompt in SPEED_PROMPTS:
            answer = candidate.ask(prompt, max_new_tokens)
            waits.append(answer.first)
            rates.append(answer.tokens / answer.seconds)
            advance(1)

    def answers(listed: Sequence[str]) -> list[str]:
        return [candidate.ask(question, max_new_tokens).text for question in listed]

    behind = "it is behind an endpoint"
    return CandidateFacts(
        name=name,
        tokens_per_second=mean_estimate(rates),
        first_token_seconds=mean_estimate(waits),
        traits={trait: trait_score(answers, trait, questions) for trait in project.requirements.traits},
        unmeasured=dict.fromkeys([*project.requirements.capability, *project.requirements.guardrails], behind),
    )


def measure_candidate(
    name: str,
    project: Project,
    *,
    questions: int = 8,
    max_new_tokens: int = 48,
    device: str | None = None,
    capability_limit: int = 100,
    folder: Path | None = None,
) -> CandidateFacts:
    """Files, memory, speed, bounded traits, tasks and detectors of one candidate.

    Raises:
        UserError: it is not there, cannot be loaded, or a trait is unknown.
    """
    from poise.model import load_model

    seen = inspect_model(name, hashes=False)
    model = load_model(name, device=device)
    weights = {id(weight): weight for weight in model.lm.parameters()}.values()
    first, rate = generation_speed(model, max_new_tokens)
    scores, missing = task_scores(model, project, capability_limit)
    detectors, unfitted = detector_recalls(model, project, folder or Path())

    def answers(listed: Sequence[str]) -> list[str]:
        return greedy_answers(model, listed, max_new_tokens)

    return CandidateFacts(
        name=name,
        licence=seen.licence,
        files=len(seen.files),
        file_mib=round(sum(file.bytes for file in seen.files) / 2**20, 1),
        parameters=seen.parameters,
        memory_mib=round(sum(weight.numel() * weight.element_size() for weight in weights) / 2**20, 1),
        dtype=str(model.lm.dtype).removeprefix("torch."),
        tokens_per_second=rate,
        first_token_seconds=first,
        traits={trait: trait_score(answers, trait, questions) for trait in project.requirements.traits},
        capability=scores,
        detectors=detectors,
        unmeasured=missing | unfitted,
    )


def _verdicts(registry: Registry, name: str) -> Iterator[tuple[str, str]]:
    for _, record in registry:
        certificate = record.facts.get("certificate")
        if isinstance(certificate, dict) and record.facts.get("model") == name:
            yield str(record.facts.get("trait")), str(certificate.get("verdict"))


def _requirement_checks(facts: CandidateFacts, project: Project) -> Iterator[CheckedRequirement]:
    wanted = project.requirements
    if wanted.licences:
        state: CheckState = (
            "not measured" if not facts.licence else "kept" if facts.licence in wanted.licences else "broken"
        )
        yield CheckedRequirement(name="licence", state=state, text=facts.licence or "not stated in its files")
    if wanted.memory_mib is not None:
        known = facts.memory_mib
        state = "not measured" if known is None else "kept" if known <= wanted.memory_mib else "broken"
        text = "it is behind an endpoint" if known is None else f"{known:,} MiB"
        yield CheckedRequirement(name=f"memory ≤ {wanted.memory_mib:g} MiB", state=state, text=text)
    if wanted.tokens_per_second is not None:
        yield _bound("tokens a second", facts.tokens_per_second, at_least=wanted.tokens_per_second)
    if wanted.seconds_to_first_token is not None:
        yield _bound("seconds to the first token", facts.first_token_seconds, at_most=wanted.seconds_to_first_token)
    for trait, bound in wanted.traits.items():
        yield _bound_of(trait, facts.traits.get(trait), bound)
    for task, least in wanted.capability.items():
        check = _bound(f"capability {task}", facts.capability.get(task), at_least=least)
        reason = facts.unmeasured.get(task)
        yield check.model_copy(update={"text": reason}) if reason else check
    for guardrail in wanted.guardrails:
        reason = facts.unmeasured.get(guardrail)
        text = reason or "its detectors were fitted on this model"
        yield CheckedRequirement(name=f"guardrail {guardrail}", state="not measured" if reason else "kept", text=text)


def _bound_of(trait: str, score: Estimate | None, bound: TraitBound) -> CheckedRequirement:
    return _bound(trait, score, at_least=bound.at_least, at_most=bound.at_most)


def _bound(
    name: str, estimate: Estimate | None, *, at_least: float | None = None, at_most: float | None = None
) -> CheckedRequirement:
    """Whether a whole interval keeps its bounds, lies beyond one, or does not tell."""
    label = (
        name + (f" ≥ {at_least:g}" if at_least is not None else "") + (f" ≤ {at_most:g}" if at_most is not None else "")
    )
    if estimate is None or estimate.low is None or estimate.high is None:
        return CheckedRequirement(name=label, state="not measured", text="no interval")
    least, most = at_least if at_least is not None else estimate.low, at_most if at_most is not None else estimate.high
    if estimate.high < least or estimate.low > most:
        state: CheckState = "broken"
    else:
        state = "kept" if estimate.low >= least and estimate.high <= most else "unsure"
    return CheckedRequirement(name=label, state=state, text=f"{estimate:.3g}, n = {estimate.n}")


def _recommendation(candidates: Sequence[CandidateFacts]) -> tuple[str, str]:
    """The fastest of those that keep everything, where it is told apart; else empty, with the reason."""
    usable = [one for one in candidates if not one.fault and "broken" not in one.states]
    sure = [one for one in usable if one.states <= {"kept"}]
    if not usable:
        return "", "No candidate keeps the requirements."
    if not sure:
        doubts = {one.name: [check.name for check in one.checks if check.state != "kept"] for one in usable}
        listed = "; ".join(f"{name}: {', '.join(names)}" for name, names in doubts.items())
        return "", f"Unsure: of those that break nothing, not everything is measured or told apart ({listed})."
    ranked = sorted(sure, key=_rate, reverse=True)
    best = ranked[0]
    if len(ranked) == 1:
        others = "the only candidate" if len(candidates) == 1 else "the only one that surely keeps every requirement"
        return best.name, f"{best.name} is {others}."
    second = ranked[1]
    first_rate, other_rate = best.tokens_per_second, second.tokens_per_second
    if not first_rate or not other_rate or first_rate.low is None or other_rate.high is None:
        return "", f"Unsure: {best.name} and {second.name} keep every requirement, and their speed has no interval."
    text = f"{first_rate:.3g} and {other_rate:.3g} tokens a second, n = {first_rate.n} and {other_rate.n}"
    if first_rate.low <= other_rate.high:
        return "", f"Unsure: {best.name} and {second.name} keep every requirement and are about as fast ({text})."
    ratio = (first_rate.value or 0) / (other_rate.value or 1)
    return best.name, f"{best.name} keeps every requirement and is {ratio:.2g} times as fast as {second.name} ({text})."


def _rate(facts: CandidateFacts) -> float:
    return facts.tokens_per_second.value or 0.0 if facts.tokens_per_second else 0.0
