"""Candidates side by side as one self-contained page."""

from __future__ import annotations

from html import escape

from poise.lifecycle.choice import CandidateFacts, ModelChoice
from poise.statistics.estimates import Estimate

__all__ = ["choice_page", "choice_rows"]

CHOICE_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .35rem .8rem; text-align: left; }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
.kept::before { content: "✓ "; } .broken::before { content: "✗ "; } .unsure::before { content: "? "; }
.best { font-weight: 600; }
"""


def choice_rows(choice: ModelChoice) -> list[tuple[str, list[str]]]:
    """What is known of each candidate, row by row: a label, and a text for each candidate."""
    facts = choice.candidates
    traits = list(dict.fromkeys(trait for one in facts for trait in one.traits))
    tasks = list(dict.fromkeys(task for one in facts for task in one.capability))
    detectors = list(dict.fromkeys(name for one in facts for name in one.detectors))
    rows = [
        ("licence", [one.licence or "not stated" for one in facts]),
        ("files", [f"{one.files}, {one.file_mib:,.0f} MiB" if one.files else "–" for one in facts]),
        ("parameters", [f"{one.parameters:,}" if one.parameters else "–" for one in facts]),
        ("memory of weights", [_memory_words(one) for one in facts]),
        ("tokens a second", [_interval_words(one.tokens_per_second) for one in facts]),
        ("seconds to first token", [_interval_words(one.first_token_seconds) for one in facts]),
        *((f"{trait}, 0 to 100", [_interval_words(one.traits.get(trait)) for one in facts]) for trait in traits),
        *((f"{task}, 0 to 1", [_interval_words(one.capability.get(task)) for one in facts]) for task in tasks),
        *((f"recall: {name}", [_interval_words(one.detectors.get(name)) for one in facts]) for name in detectors),
        ("steering", [", ".join(f"{k} {v}" for k, v in one.steerability.items()) or "no certificate" for one in facts]),
        ("price", [one.price or "not stated" for one in facts]),
    ]
    return [(label, ["not measured" if one.fault else text for one, text in zip(facts, texts, strict=True)])
            for label, texts in rows]  # fmt: skip


def choice_page(choice: ModelChoice) -> str:
    """The page; equal choices give equal text."""
    heads = "".join(
        f'<th scope="col" class="{"best" if one.name == choice.recommended else ""}">{escape(one.name)}</th>'
        for one in choice.candidates
    )
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(text)}</td>" for text in texts)}</tr>'
        for label, texts in choice_rows(choice)
    )
    checks = "".join(
        f"<h3>{escape(one.name)}</h3><ul>{_check_items(one)}</ul>"
        for one in choice.candidates
        if one.checks or one.fault
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Candidates</title>'
        f"<style>{CHOICE_STYLE}</style></head><body><h1>Candidates</h1><p>{escape(choice.use_case)}</p>"
        f"<p><strong>{escape(choice.recommended or 'No recommendation')}</strong>: {escape(choice.why)}</p>"
        f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<h2>Requirements</h2>{checks or '<p>None is stated.</p>'}</body></html>\n"
    )


def _check_items(one: CandidateFacts) -> str:
    if one.fault:
        return f"<li>{escape(one.fault)}</li>"
    return "".join(
        f'<li class="{check.state}">{escape(check.name)}: {escape(check.state)} ({escape(check.text)})</li>'
        for check in one.checks
    )


def _memory_words(one: CandidateFacts) -> str:
    return "–" if one.memory_mib is None else f"{one.memory_mib:,.0f} MiB, {one.dtype}"


def _interval_words(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.value is None else f"{estimate:.3g}, n = {estimate.n}"
