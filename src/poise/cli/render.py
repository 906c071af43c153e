"""What people read: results in words and tables, on stdout, at home in 80 columns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from poise.errors import InvalidVector
from poise.report import wording as words

if TYPE_CHECKING:
    from poise.engine import Generation
    from poise.judge.agreement import Agreement
    from poise.statistics.estimates import Estimate
    from poise.steer import Steering, Term
    from poise.trait import Trait
    from poise.trait.lint import LintReport
    from poise.validate.certificate import Certificate, Sample
    from poise.vector import Alarm, DetectorFacts, PersonaVector
    from poise.workflows.demo import DemoResult

__all__ = [
    "agreement",
    "answers",
    "certificate",
    "demo",
    "facts_table",
    "lint_results",
    "show",
    "terms",
    "traits",
    "vector",
    "whole_vector",
]


Parts = list[RenderableType]


def show(parts: Parts) -> None:
    """Print on stdout, in order: texts as they are, neither markup nor broken at the margin; tables fitted to it."""
    console = Console()
    for part in parts:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str | Text))


def traits(library: Iterable[Trait]) -> Table:
    """Names with what they mean."""
    table = _table("Trait", "What it is")
    for trait in library:
        table.add_row(Text(trait.name, style="bold"), Text(_first_sentence(trait.description)))
    return table


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]


def lint_results(report: LintReport) -> Parts:
    """What was counted, measured and found in one trait."""
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    title = Text.assemble((report.trait, "bold"), ": ", f"{_n(errors, 'error')}, {_n(warnings, 'warning')}")
    facts = facts_table(
        ("Entries", _entries(report.counts)),
        ("Longer with the trait", f"{report.longer_with:.0%} of the pairs"),
        ("Words alone tell the sides apart", f"AUC {_estimate(report.words)} on held-out pairs"),
        ("Length alone tells them apart", f"AUC {_estimate(report.length)} on held-out pairs"),
        *(
            [
                (
                    "Style alone tells them apart",
                    f"AUC {_estimate(report.style)} on the detector's pairs, cross-validated",
                )
            ]
            if report.style
            else []
        ),
    )
    problems = [
        Padding(Text.assemble((f.severity, _STYLE[f.severity]), f" {f.field}: {f.message}"), (0, 0, 0, 2), expand=False)
        for f in report.findings
    ]
    return [title, facts, *problems]


def _entries(counts: Mapping[str, int]) -> str:
    """``7 instructions, 20 + 20 questions``: lists of one kind together."""
    kinds: dict[str, list[str]] = {}
    for field, count in counts.items():
        kinds.setdefault(field.partition(".")[0], []).append(str(count))
    return ", ".join(f"{' + '.join(numbers)} {kind}" for kind, numbers in kinds.items())


def vector(of: PersonaVector, path: Path) -> Parts:
    """A vector's header in words."""
    header, layer, read_layer = of.header, of.at("steer").layer, of.at("read").layer
    dropped = ", ".join(f"{n} {why}" for why, n in header.dropped.items()) or "none"
    contrast = (
        header.provenance or f"{header.contrast}: kept {header.kept.get('positive', 0)} a side, left out {dropped}"
    )
    chosen = "the certificate's" if header.certificate else "a third of the depth, as it has no certificate"
    rows = [
        ("Trait", _meaning(of)),
        ("Model", f"{header.model.name}, {of.layers} layers of width {of.width}"),
        ("Contrast", contrast),
        *([("Judge", header.judge)] if header.judge else []),
        ("Layer", f"layer {layer} of {of.layers} ({chosen}), counted from 0"),
        *([("Read at", f"layer {read_layer} of {of.layers}")] if read_layer != layer else []),
        ("Norms there", f"‖v‖ {float(of.norms[layer]):.3g}, mean ‖h‖ {float(of.reference_norm[layer]):.3g}"),
        ("Strength", f"coefficient 1 is a dose of {words.dose(of.dose(1.0, layer))}"),
        *(
            [("Agreement", f"{header.agreement[layer]:.2f} mean cosine of the single differences")]
            if header.agreement
            else []
        ),
        *([("Detector", _detector_line(header.detector))] if header.detector else []),
        *([("Alarms", _alarms_line(of))] if header.alarms else []),
    ]
    return [Text.assemble((of.name, "bold"), f"  {path}"), facts_table(*rows)]


def _detector_line(facts: DetectorFacts) -> str:
    return (
        f"{facts.kind} at layer {facts.layer}, AUC {facts.auc:.2f} [{facts.low:.2f}, {facts.high:.2f}] cross-validated "
        f"on {facts.n_with} answers with the trait and {facts.n_without} others"
    )


def _alarms_line(of: PersonaVector) -> str:
    if alarms := of.at("read").alarms or ([] if of.detector else of.header.alarms):
        return _alarms(alarms)
    return "none for the detector; those for the vector's own direction serve caps and conditions (poise calibrate)"


def _alarms(alarms: Sequence[Alarm]) -> str:
    first = alarms[0]
    rates = ", ".join(f"{100 * rate:.3g} %" for rate in sorted({a.rate for a in alarms}))
    kind = "the model's own" if first.answers == "own" else "given"
    what = {"reply": "answers", "thought": "thoughts", "both": "answers with their thoughts"}[first.part]
    set_on = f"set on {first.n_answers:,} {what}, {kind} ({first.data})" + (
        f", on {first.model}" if first.model else ""
    )
    return f"{len(alarms)} at layer {first.layer}, each raised by {rates} of normal answers; {set_on}"


def _meaning(of: PersonaVector) -> str:
    description = getattr(of.header.trait, "description", None)
    return "given by exemplars alone" if description is None else _first_sentence(description)


def whole_vector(of: PersonaVector, path: Path) -> Parts:
    """A vector's header and its certificate, or how to get one."""
    from poise.validate.certificate import Certificate

    if of.header.certificate is None:
        hint = (
            f"No certificate yet: poise validate {shlex.quote(str(path))} --model {shlex.quote(of.header.model.name)}"
        )
        return [*vector(of, path), "", hint]
    try:
        stored = Certificate.model_validate(of.header.certificate)
    except ValidationError as error:
        raise InvalidVector(
            f"{path} has a certificate that this version cannot read ({error.error_count()} faults); validate it again."
        ) from error
    return [*vector(of, path), "", *certificate(of.name, of.header.model.name, stored)]


def certificate(trait: str, model: str, of: Certificate) -> Parts:
    """Verdict, why, and the figures behind it."""
    where = f"layer {of.layer} of {of.layers}, coefficient {of.coefficient:.3g} (dose {words.dose(of.dose)})"
    return [
        f"{trait} on {model}, {where}",
        *_findings(of),
        _curve(of),
        facts_table(*_controls_lines(of), *_readings_lines(trait, of)),
        *(_indented(f"Note: {note}") for note in of.notes),
    ]


def _findings(of: Certificate) -> Parts:
    """The verdict, what steering did, and the reasons."""
    styles = {"induced": "bold green", "indicative": "bold yellow"}
    verdict = Text(of.verdict, style=styles.get(of.verdict, "bold red"))
    return [
        Padding(Text.assemble(verdict, f": {words.moved(of)}"), expand=False),
        *(_indented(f"- {reason}") for reason in of.reasons),
    ]


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2), expand=False)


def _curve(of: Certificate) -> Table:
    table = _table("Coefficient", "Dose", "Trait, 0 to 100", "Coherence, 0 to 100", numbers=True)
    for point in of.curve:
        cells = (words.number(point.coefficient, 2), words.dose(point.dose), words.figure(point.trait))
        table.add_row(*cells, words.figure(point.coherence), style="bold" if point == words.chosen(of) else "")
    return table


def _controls_lines(of: Certificate) -> list[tuple[str, str]]:
    random, prompting = of.random, of.prompting
    return [
        (
            "Random directions",
            f"rise {words.figure(random.rise)} over {random.draws} draws; margin {words.figure(random.margin)}",
        ),
        *([("Free to choose", words.searched(random.search))] if random.search else []),
        (
            "Prompting instead",
            f"{words.figure(prompting.positive)} asked for it, {words.figure(prompting.negative)} for its opposite"
            if prompting
            else "not measured: the trait has no instructions",
        ),
        ("Usable doses", " to ".join(words.dose(dose) for dose in of.usable_doses)),
        ("Judge", f"{of.judge.name}, {_judge_auc(of)}"),
        ("Measured on", f"{_n(len(of.questions), 'question')} that neither extraction nor selection saw"),
    ]


def _readings_lines(trait: str, of: Certificate) -> list[tuple[str, str]]:
    """What was asked for on top."""
    rows = []
    if of.monitoring:
        rows += [("Reading prompts", words.monitored(of.monitoring)), ("Reading answers", words.told(of.monitoring))]
    if of.together:
        rows.append((f"With {of.together.other}", words.beside(of.together, trait)))
    return rows


def _judge_auc(of: Certificate) -> str:
    held_out, cross_validated = of.judge.held_out_auc, of.judge.auc
    if held_out:
        return f"AUC {words.figure(held_out, 2)} on held-out exemplars"
    return f"AUC {words.figure(cross_validated, 2)}, cross-validated" if cross_validated else "AUC unknown"


def terms(steering: Steering | None) -> list[str]:
    """A line for each vector at work."""
    lines: list[str] = []
    adding = 0
    for term in steering.terms if steering else ():
        added = term.operation == "add"
        apart = (
            ", without what lies along those before it" if steering and steering.orthogonal and adding * added else ""
        )
        lines.append(f"{_work(term)}{_limits_text(term)}{apart}")
        adding += added
    return lines


def _work(term: Term) -> str:
    vector = term.vector
    if term.layers == "increments":
        return f"{vector.name}: coefficient {term.value:.3g}, as increments at all {vector.layers} layers"
    if term.operation == "add":
        doses = " and ".join(words.dose(vector.dose(term.value, layer)) for layer in term.layers)
        what = f"coefficient {term.value:.3g} (dose {doses})"
    elif term.operation == "project_out":
        what = "projected out"
    else:
        what = f"{term.operation} at {term.value:.3g}"
    return f"{vector.name}: layer {', '.join(map(str, term.layers))} of {vector.layers}, {what}"


def _limits_text(term: Term) -> str:
    first, last = term.tokens
    parts = (
        [{"prompt": "on the prompt", "all": "on prompt and response"}[term.phase]] if term.phase != "response" else []
    )
    parts += [{"thought": "in the thought", "both": "in thought and reply"}[term.part]] if term.part != "reply" else []
    parts += [f"tokens {first} to {'the end' if last is None else last - 1}"] if term.scheduled else []
    if when := term.when:
        sign, which = ">" if when.above else "<", "the prompt" if when.reading == "prompt" else "a token"
        parts.append(f"while {which} reads {when.vector.name} {sign} {when.value:.3g} at layer {when.layer}")
    return "".join(f", {part}" for part in parts)


def answers(prompts: Sequence[str], generations: Sequence[Generation]) -> Parts:
    """One answer alone, several under their prompts."""
    if len(generations) == 1:
        return _thought_and_reply(generations[0])
    parts: Parts = []
    for prompt, answer in zip(prompts, generations, strict=True):
        parts += [Text(f"> {plain_text(prompt)}", style="bold"), *_thought_and_reply(answer), ""]
    return parts[:-1]


def _thought_and_reply(answer: Generation) -> Parts:
    """The reply, and above it in dim letters what the model thought before."""
    reply = _said(answer.reply)
    if not answer.thought:
        return [reply]
    return [Text("Thought:", style="dim bold"), Text(_said(answer.thought).plain, style="dim"), "", reply]


def demo(done: DemoResult) -> Parts:
    """What the demo made, and what to run next."""
    of, vector_file = done.certificate, shlex.quote(str(done.vector_path))
    return [
        *(_side_by_side(sample, of) for sample in done.samples),
        *_findings(of),
        "",
        f"Vector: {done.vector_path}",
        f"Report: {done.report}",
        "",
        "Next:",
        f"  poise show {vector_file}",
        f"  poise generate 'How do I boil an egg?' --model smollm2-135m --steer {vector_file}={of.dose:.0%}",
        "  poise traits list",
    ]


def _side_by_side(sample: Sample, of: Certificate) -> Table:
    table = Table(
        title=Text(sample.question, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        expand=True,
        padding=(0, 1),
    )
    for heading in (f"− (dose {words.dose(-of.dose)})", "0 (unsteered)", f"+ (dose {words.dose(of.dose)})"):
        table.add_column(heading, ratio=1, overflow="fold")
    table.add_row(*(_said(text) for text in (sample.negative, sample.plain, sample.positive)))
    return table


def agreement(trait: str, on: str, measured: Agreement, own_auc: Estimate | None) -> Parts:
    """How far a judge agrees with labels."""
    missing = ", ".join(f"{n} {kind}" for kind, n in measured.missing.items()) or "none"
    rows = [
        ("AUC", _estimate(measured.auc)),
        ("κ at 50", _estimate(measured.kappa)),
        ("Correlation", _estimate(measured.r)),
        ("Answers scored", f"{measured.scored}, to {_n(measured.auc.n, 'question')}; without a score: {missing}"),
        *([("On its own exemplars", f"AUC {_estimate(own_auc)}, cross-validated")] if own_auc else []),
    ]
    return [Text.assemble((measured.judge, "bold"), f" as a judge of {trait}, on {on}"), facts_table(*rows)]


_STYLE = {"error": "bold red", "warning": "yellow"}


def _table(*headings: str, numbers: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    return table


def facts_table(*rows: tuple[str, str]) -> Table:
    """Names and values below each other."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(f"  {name}", Text(plain_text(value)))
    return table


def _estimate(estimate: Estimate) -> str:
    """``0.93 [0.88, 0.97]``, dashes for what is not finite."""
    value, low, high = (words.number(x, 2) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _said(text: str) -> Text:
    return Text(plain_text(text.strip()) or "(nothing)")


def plain_text(text: str) -> str:
    """Without control characters, with which a model could move the cursor or set a title."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
