"""An agent's memory: what happened, what is known, how things are done, and what of it goes into a prompt.

entries          what is remembered, and what its text must be
memory_file      the one SQLite file (``entry_index``: what is kept, searchable, in memory)
memory           a memory: written, recalled, let in, deleted
procedures       how things are done, as files
recalling        what of it goes into a prompt, by a budget of tokens, and why
write_gate       what is let in: provenance, repeats, ``contradictions``, instructions
entry_effect     what an entry does to a model's answers (``effect_gate``: with a threshold, in a file)
write_hook       the gate for other memories
subjects         what is known about somebody, exported
forgetting       what is forgotten by rule
consolidating    episodes to facts
"""

from poise.memory.consolidating import ConsolidatedFact, consolidate
from poise.memory.effect_gate import EffectGate, FittedEffectGate, fit_effect_gate, load_effect_gate
from poise.memory.entries import EntryDraft, MemoryEntry
from poise.memory.forgetting import ForgetRule, forgettable
from poise.memory.injection_effect import InjectionEffect, joined_effect
from poise.memory.memory import Memory, WrittenEntry
from poise.memory.recalling import RecalledEntry, memory_prompt
from poise.memory.subjects import entries_about, entry_facts, export_entries
from poise.memory.write_gate import EntryEffect, EntryReview, review_entry
from poise.memory.write_hook import before_write, guarded_store

__all__ = [
    "ConsolidatedFact",
    "EffectGate",
    "EntryDraft",
    "EntryEffect",
    "EntryReview",
    "FittedEffectGate",
    "ForgetRule",
    "InjectionEffect",
    "Memory",
    "MemoryEntry",
    "RecalledEntry",
    "WrittenEntry",
    "before_write",
    "consolidate",
    "entries_about",
    "entry_facts",
    "export_entries",
    "fit_effect_gate",
    "forgettable",
    "guarded_store",
    "joined_effect",
    "load_effect_gate",
    "memory_prompt",
    "review_entry",
]
