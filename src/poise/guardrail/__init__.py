"""Guardrails: what is kept out of a model and out of its answers, as a YAML file says it.

schema, patterns      the file and its checks
draft                 a denied topic from one sentence, by a model behind an endpoint
words, sensitive      what is found by words and patterns (``pii_types``, ``pii_patterns``, ``pii_checks``)
checking              a guardrail ready for texts
apply                 texts and a guardrail to an answer in the shape of Amazon Bedrock's ApplyGuardrail

reasoning_rule, automated_reasoning   answers reasoned about, in Bedrock's shape

release               an answer that is still being written, behind a checked window
fitting, guard_file   topics and content as detectors of one model, their file, and what they read (``readings``)
versions              guardrails in a folder, with drafts and numbers that stay
fit_texts, planting   what they are fitted to: exemplars, ordinary talk, sentences planted in tools' results
rule_detectors        readings of a rule's texts to threshold and figures, whatever reads them
activation            texts read by themselves with the model's detectors
injection_reading     a tool's result, or an entry of a memory, read for hidden instructions
text_units, encoder_reader, encoder_fitting   rules that the sentence encoder reads, part by part, without a model
judging               all detectors, and a judge for what they are not sure of (``judge_settings``, ``uncertain_band``)
grounding_policy      answers over their source and query

What is found never carries the text that matched: that stays where it was, and a mark stands for it.
"""

from poise.guardrail.apply import GuardedText, apply_guardrail
from poise.guardrail.checking import Checker, checker_of
from poise.guardrail.findings import GuardFinding
from poise.guardrail.schema import Guardrail, load_guardrail

__all__ = [
    "Checker",
    "GuardFinding",
    "GuardedText",
    "Guardrail",
    "apply_guardrail",
    "checker_of",
    "load_guardrail",
]
