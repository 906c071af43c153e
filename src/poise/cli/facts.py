"""What ``--json`` prints: values as plain objects, missing figures as null."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from poise.engine import Generation
    from poise.judge.agreement import Agreement
    from poise.statistics.estimates import Estimate
    from poise.steer import Condition, Steering, Term
    from poise.trait.lint import LintReport
    from poise.validate.certificate import Certificate, Monitoring, Point
    from poise.vector import PersonaVector

__all__ = ["of_agreement", "of_answers", "of_certificate", "of_lint", "of_vector", "of_whole_vector", "print_json"]

Facts = dict[str, Any]


def print_json(facts: Facts) -> None:
    """One object on one line of stdout, readable in any encoding."""
    typer.echo(json.dumps(facts, allow_nan=False))


def of_vector(vector: PersonaVector, path: Path) -> Facts:
    """Where a vector lies, what it is of, and the counts behind it."""
    header = vector.header
    return {
        "vector": str(path),
        "trait": vector.name,
        "model": header.model.name,
        "layers": vector.layers,
        "width": vector.width,
        "contrast": header.contrast,
        "kept": header.kept,
        "dropped": header.dropped,
    }


NOT_SHOWN: Any = dict.fromkeys(("trait", "model", "contrast", "kept", "dropped"), True) | {
    "detector": {"normal_keys"}  # hundreds of them
}


def of_whole_vector(vector: PersonaVector, path: Path) -> Facts:
    """All that the file says about the vector but the trait's texts, and the norms at every layer."""
    header = vector.header.model_dump(mode="json", exclude=NOT_SHOWN)
    norms = {"norms": _rounded(vector.norms.tolist()), "reference_norms": _rounded(vector.reference_norm.tolist())}
    return of_vector(vector, path) | {"fingerprint": vector.header.model.model_dump(), **header, **norms}


def of_certificate(certificate: Certificate, report: Path) -> Facts:
    """Verdict, curve and controls; the whole certificate lies beside the report."""
    random, prompting = certificate.random, certificate.prompting
    return {
        "verdict": certificate.verdict,
        "reasons": list(certificate.reasons),
        "layer": certificate.layer,
        "layers": certificate.layers,
        "coefficient": certificate.coefficient,
        "dose": certificate.dose,
        "usable_doses": list(certificate.usable_doses),
        "rise": certificate.rise.model_dump(),
        "monotone": certificate.monotone.model_dump(),
        "curve": [_point_facts(point) for point in certificate.curve],
        "random": {
            "draws": random.draws,
            "dose": random.dose,
            "trait": random.trait.value,
            "coherence": random.coherence.value,
            "rise": random.rise.model_dump(),
            "margin": random.margin.model_dump(),
            "search": random.search and random.search.model_dump(),
        },
        "prompting": prompting
        and {
            "positive": prompting.positive.value,
            "negative": prompting.negative.value,
            "coherence": prompting.coherence.value,
        },
        "judge": certificate.judge.model_dump(),
        "monitoring": certificate.monitoring and _monitoring(certificate.monitoring),
        "together": certificate.together and certificate.together.model_dump(mode="json"),
        "notes": list(certificate.notes),
        "report": str(report),
    }


def _monitoring(of: Monitoring) -> Facts:
    """The chosen layers' figures; the certificate has every layer and rung."""
    left_out = {"rungs", "by_layer"}
    prompts, answers = of.of_prompts, of.of_answers
    return of.model_dump(mode="json", exclude=left_out) | {
        "prompts": prompts.model_dump(include={"overall", "within"}),
        "answers": answers and answers.model_dump(include={"auc_mean", "auc_peak"}),
    }


def _point_facts(point: Point) -> Facts:
    return {
        "coefficient": point.coefficient,
        "dose": point.dose,
        "trait": point.trait.value,
        "coherence": point.coherence.value,
        "trait_interval": [point.trait.low, point.trait.high],
        "coherence_interval": [point.coherence.low, point.coherence.high],
        "missing": point.missing,
    }


def of_answers(
    model: str,
    prompts: Sequence[str],
    answers: Sequence[Generation],
    steering: Steering | None,
    seed: int,
    system: str | None = None,
) -> Facts:
    """Answers in order, and the system prompt that stood before each.

    ``coefficient`` is α, 0 unsteered, null where several terms steer, or one that adds nothing.
    """
    terms = [_term_facts(term) for term in (steering.terms if steering else ())]
    coefficient = None if len(terms) > 1 else terms[0]["coefficient"] if terms else 0.0
    return {
        "model": model,
        "seed": seed,
        "system": system,
        "steering": terms,
        "answers": [
            {
                "prompt": prompt,
                "text": answer.reply,
                **({"reasoning_content": answer.thought} if answer.thought else {}),
                "coefficient": coefficient,
                "tokens": len(answer.ids),
                "finish": answer.finish,
            }
            for prompt, answer in zip(prompts, answers, strict=True)
        ],
    }


def _term_facts(term: Term) -> Facts:
    """What a term does and where; ``coefficient`` and ``dose`` of additions, ``level`` of the others."""
    layer = term.layers[0]
    added, leveled = term.operation == "add", term.operation not in ("add", "project_out")
    return {
        "trait": term.vector.name,
        "operation": term.operation,
        "layer": layer if len(term.layers) == 1 else term.layers,
        "layers": term.vector.layers,
        "coefficient": term.value if added else None,
        "dose": round(term.vector.dose(term.value, layer), 4) if added and isinstance(layer, int) else None,
        "level": term.value if leveled else None,
        "phase": term.phase,
        "part": term.part,
        "tokens": term.tokens,
        "when": _condition_facts(term.when) if term.when else None,
    }


def _condition_facts(when: Condition) -> Facts:
    return {
        "trait": when.vector.name,
        "layer": when.layer,
        "value": when.value,
        "above": when.above,
        "reading": when.reading,
    }


def of_lint(report: LintReport) -> Facts:
    """What was counted, measured and found in one trait."""
    return {
        "trait": report.trait,
        "ok": report.ok,
        "counts": dict(report.counts),
        "longer_with": report.longer_with,
        "words": estimate(report.words),
        "length": estimate(report.length),
        "style": estimate(report.style) if report.style else None,
        "findings": [{"severity": f.severity, "field": f.field, "message": f.message} for f in report.findings],
    }


def of_agreement(trait: str, on: str, agreement: Agreement, own_auc: Estimate | None) -> Facts:
    """How far a judge agrees with labels, and its own cross-validated AUC where it has one."""
    return {
        "trait": trait,
        "judge": agreement.judge,
        "on": on,
        "auc": estimate(agreement.auc),
        "kappa": estimate(agreement.kappa),
        "r": estimate(agreement.r),
        "scored": agreement.scored,
        "missing": dict(agreement.missing),
        "cross_validated_auc": own_auc and estimate(own_auc),
    }


def estimate(estimate_value: Estimate) -> Facts:
    """A figure with its interval; what is not finite as null."""
    parts = {"value": estimate_value.value, "low": estimate_value.low, "high": estimate_value.high}
    return {name: None if x is None else round(x, 4) for name, x in parts.items()} | {"n": estimate_value.n}


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(x, 4) for x in values]
