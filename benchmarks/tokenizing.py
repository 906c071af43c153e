"""How long it takes to tokenise conversations of many turns, before and after there were batches. Prints Markdown.

    python benchmarks/tokenizing.py [--model smollm2-135m] [--turns 10 30 100 300 1000] [--words 50] [--rows 1000]

*Before* is the way of version 0.1.0: one conversation after another, and for each answer that the window cannot hold a
bisection over where its text may begin, each try tokenised whole. (Rendering is today's in both, so that the gain is
understated.) Both must give the same spans, or the run fails. No weights are read.
"""

from __future__ import annotations

import argparse
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from poise.data import Conversation, Message, Turn, turns
from poise.errors import UnsuitableModel
from poise.model import Encoded, ask, render_prompt
from poise.model.spans import (
    AnswerSpan,
    TextModel,
    UnreadAnswer,
    answer_spans,
    answer_spans_together,
    with_thought,
)
from poise.model.tokenizing import load_tokenizer

Spans = list[AnswerSpan | UnreadAnswer]
WORDS = ("the", "tide", "boat", "harbour", "question", "answer", "because", "never", "tomorrow", "green", "market")


def one_by_one(model: TextModel, asked: Sequence[Turn], part: Any) -> Spans:
    """Every answer's place as it was found before there were batches: text by text, each tokenised whole."""
    try:
        shared = [p for p in in_one_pass(model, asked) if p.text.end <= model.window] if part == "reply" else []
        if shared:
            ids = shared[-1].text.ids[: shared[-1].text.end]
            shared = [replace(place, text=Encoded(ids, place.text.start, place.text.end)) for place in shared]
        return [*shared, *(by_itself(model, turn, part) for turn in asked[len(shared) :])]
    except UnsuitableModel as error:
        return [UnreadAnswer(t.number, f"refused by the chat template: {error.__cause__ or error}") for t in asked]


def in_one_pass(model: TextModel, asked: Sequence[Turn]) -> list[AnswerSpan]:
    if len(asked) < 2 or not asked[0].history:
        return []
    prompts = [render_prompt(model.tokenizer, turn.history, tools=turn.tools) for turn in asked]
    text = prompts[-1] + asked[-1].answer
    if not all(text.startswith(prompt + turn.answer) for prompt, turn in zip(prompts, asked, strict=True)):
        return []
    out = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, spans = tuple(out["input_ids"]), out["offset_mapping"], []
    for turn, prompt in zip(asked, prompts, strict=True):
        end = len(prompt) + len(turn.answer)
        first = bisect_right(offsets, len(prompt), key=lambda span: span[1])
        last = len(ids) if turn is asked[-1] else bisect_right(offsets, end, key=lambda span: span[1])
        if first >= last or (last < len(ids) and offsets[last][0] < end):
            return []
        spans.append(
            AnswerSpan(turn=turn.number, text=Encoded(ids, first, last), history=turn.history, answer=turn.answer)
        )
    return spans


def by_itself(model: TextModel, turn: Turn, part: Any) -> AnswerSpan | UnreadAnswer:
    if part == "thought" and not turn.thought:
        return UnreadAnswer(turn.number, "no thought")
    answer = turn.answer if part == "reply" or not turn.thought else with_thought(model, turn)
    messages = list(turn.history) or ask("")
    system = messages[:1] if messages[0]["role"] == "system" else []
    begins = [len(system), *(i for i, m in enumerate(messages) if m["role"] == "user" and i > len(system))]
    within = {begin: [*system, *messages[begin:]] for begin in begins}

    def text(begin: int) -> Encoded:
        return model.encode(within[begin], answer, part=part, tools=turn.tools)

    first = bisect_left(begins, True, key=lambda begin: len(text(begin).ids) <= model.window)
    if first == len(begins):
        return UnreadAnswer(turn.number, f"longer than the model's window: {model.window} tokens")
    encoded = text(begins[first])
    if encoded.end <= encoded.start:
        return UnreadAnswer(turn.number, "empty turn: no tokens")
    cut = len(within[begins[first]]) < len(turn.history)
    return AnswerSpan(turn=turn.number, text=encoded, history=within[begins[first]], answer=answer, cut=cut)


def talk(count: int, words: int, draw: random.Random) -> list[Turn]:
    """The answers of a conversation of so many turns."""
    messages: list[Message] = [
        {"role": role, "content": " ".join(draw.choice(WORDS) for _ in range(words)) + "."}
        for role in ("user", "assistant") * (count // 2)
    ]
    return turns(Conversation(messages=tuple(messages), file="", row=0, index=0, raw=b""))


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, and the CPU and wall seconds that it took."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def compare(label: str, model: TextModel, rows: Sequence[Sequence[Turn]]) -> None:
    """Print a row of the table."""
    after, after_cpu, after_wall = timed(lambda: answer_spans_together(model, rows))
    before, before_cpu, before_wall = timed(lambda: [one_by_one(model, row, "reply") for row in rows])
    assert before == after == [answer_spans(model, row) for row in rows], f"other spans at {label}"
    spans = [span for row in after for span in row if isinstance(span, AnswerSpan)]
    cut = sum(span.cut for span in spans)
    print(
        f"| {label} | {len(spans):,} | {cut:,} | {before_cpu:.2f} | {after_cpu:.2f} | {before_cpu / after_cpu:.1f} "
        f"| {before_wall:.2f} | {after_wall:.2f} |",
        flush=True,
    )


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--turns", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--words", type=int, default=50, help="words a turn")
    parser.add_argument("--rows", type=int, default=1000, help="rows of one question and one answer")
    chosen = parser.parse_args()
    model, draw = load_tokenizer(chosen.model), random.Random(0)
    print(f"{chosen.model}, window {model.window:,} tokens, {chosen.words} words a turn.\n")
    print(
        "| data | answers | past the window | CPU s, before | CPU s, after | times | wall s, before | wall s, after |"
    )
    print("|---|---|---|---|---|---|---|---|")
    if chosen.rows:
        compare(f"{chosen.rows:,} rows of one answer", model, [talk(2, chosen.words, draw) for _ in range(chosen.rows)])
    for count in chosen.turns:
        compare(f"one conversation of {count:,} turns", model, [talk(count, chosen.words, draw)])


if __name__ == "__main__":
    main()
