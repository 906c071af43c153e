"""A judge is a callable ``(questions, answers) -> Judgements``: a score from 0 to 100, or none and the reason.

Judges do not know where answers came from. Missing is never zero: what cannot be scored carries
``score=None`` and a reason, and whoever averages counts it.

    endpoint    any OpenAI-compatible server, expectation over 0-100 from log-probabilities
    local_model a local model, from its logits, same formula
    exemplars   offline: a classifier on sentence embeddings of a trait's exemplars
    coherence   offline: likelihood under the unsteered model and repetition
    yes_no      a question that is answered yes or no, by likelihood
    agreement   agreement of a judge with labelled answers
"""

from poise.judge.judgement import EMPTY, Judge, Judgement

__all__ = ["EMPTY", "Judge", "Judgement"]
