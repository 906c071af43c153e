"""Preference pairs as a report shows them: both answers, each token with its projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from poise.activations import Probe, project
from poise.data import turns
from poise.data.preference_rows import SIDES, PreferencePair
from poise.model import Encoded, Model
from poise.model.spans import AnswerSpan, answer_spans
from poise.progress import track
from poise.screen.examples import LONGEST_PROMPT, token_pieces
from poise.screen.pair_scores import PairScores
from poise.screen.scores import score_percentiles
from poise.screen.summary import AnswerExample

__all__ = ["read_pair_examples"]

ReadTokens = tuple[tuple[int, ...], torch.Tensor]  # ids of an answer, and their projections [T, k]


def read_pair_examples(
    model: Model,
    pairs: PairScores,
    probes: Sequence[Probe],
    places: Sequence[Sequence[tuple[int, bool]]],
    rows: Mapping[int, PreferencePair],
) -> list[tuple[AnswerExample, ...]]:
    """Pairs to look at, a list for each trait.

    Args:
        model: The model whose tokens the answers are read in.
        pairs: The scores.
        probes: k of them.
        places: For each trait the places of its pairs among the scores, and whether they are flagged.
        rows: These pairs, by index.
    """
    scores = pairs.scores
    wanted = sorted({at for some in places for at, _ in some})
    tokens: dict[int, tuple[ReadTokens, ReadTokens]] = {}
    with track("Reading what is shown", total=len(wanted)) as advance:
        for at in wanted:
            pair = rows[int(scores.index[at])]
            chosen, rejected = (_read_tokens(model, pair, number, probes) for number in range(len(SIDES)))
            tokens[at] = chosen, rejected
            advance(1)
    shown = []
    for k, some in enumerate(places):
        percentiles = score_percentiles(scores.scores[:, k])
        examples = []
        for at, flagged in some:
            pair = rows[int(scores.index[at])]
            question = pair.content.prompt[-1]["content"] if pair.content.prompt else ""
            pieces = [token_pieces(model, ids, values[:, k].tolist()) for ids, values in tokens[at]]
            chosen_reading, rejected_reading = (_five_digits(float(x)) for x in pairs.readings[:, at, k])
            examples.append(
                AnswerExample(
                    file=pair.file,
                    row=pair.row,
                    index=pair.index,
                    turn=0,
                    score=_five_digits(float(scores.scores[at, k])),
                    percentile=_five_digits(float(percentiles[at])),
                    prompt=question if len(question) <= LONGEST_PROMPT else "…" + question[1 - LONGEST_PROMPT :],
                    flagged=flagged,
                    pieces=pieces[0],
                    rejected=pieces[1],
                    readings=(chosen_reading, rejected_reading),
                )
            )
        shown.append(tuple(examples))
    return shown


def _read_tokens(model: Model, pair: PreferencePair, number: int, probes: Sequence[Probe]) -> ReadTokens:
    """One answer's tokens; of an answer of several turns all of these, one after another."""
    spans = answer_spans(model, turns(pair.conversation(SIDES[number])))
    texts = [span.text for span in spans if isinstance(span, AnswerSpan)]
    passes = [Encoded(text.ids[: text.end], 0, text.end) for text in texts]
    values = [one[text.start :] for one, text in zip(project(model, passes, probes), texts, strict=True)]
    return tuple(token for text in texts for token in text.ids[text.start : text.end]), torch.cat(values)


def _five_digits(value: float) -> float:
    return float(f"{value:.5g}")
