"""Grounding: whether an answer follows from a source, sentence by sentence, and which passage carries each.

sentences   texts to sentences, and sources to passages
facts       numbers, names and quotations of a sentence that the source does not have
likelihood  how much likelier a source and a query make each sentence, under one model
score       both together as a score from 0 to 1
scoring     all of it for one answer

What is measured is what a model's log-probabilities and a comparison of words can tell, see docs/grounding.md: a low
score is a reason to look, and no proof.
"""

from poise.grounding.score import GROUNDING_FEATURES
from poise.grounding.scoring import Grounding, SentenceGrounding, ground
from poise.grounding.sentences import split_passages, split_sentences

__all__ = [
    "GROUNDING_FEATURES",
    "Grounding",
    "SentenceGrounding",
    "ground",
    "split_passages",
    "split_sentences",
]
