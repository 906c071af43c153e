"""Rows for ``planted_rows.py`` and ``planted_detectors.py``: ordinary, planted, and the planted ones' partners."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from poise.model import Message, Model, ask
from poise.trait import library

BACKGROUND, PLANTED = 400, 80  # rows drawn, at most so many a set
LONGEST_PROMPT, LONGEST_ANSWER = 512, 256  # tokens


@dataclass(frozen=True)
class Row:
    """An answer in its conversation. ``side``: background, planted or matched; matched row i answers planted row i."""

    where: str
    side: str
    messages: tuple[Message, ...]
    answer: str


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def first_answer(row: dict[str, Any]) -> tuple[tuple[Message, ...], str]:
    """Up to the first answer; later turns would make one row several units."""
    messages = row["messages"]
    at = next(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return tuple(messages[:at]), messages[at]["content"]


def draw(n: int, most: int) -> list[int]:
    return sorted(np.random.default_rng(0).permutation(n)[:most].tolist())


def background(data: Path, model: Model, most: int | None = BACKGROUND) -> list[Row]:
    """A random sample over all files, of the rows whose prompt is short enough."""
    files = sorted((data / "background_chat").glob("*.jsonl"))
    found = [Row("background", "background", *first_answer(row)) for file in files for row in rows_of(file)]
    drawn = (found[i] for i in np.random.default_rng(0).permutation(len(found)))
    return list(islice((row for row in drawn if row.answer.strip() and short(model, row)), most))


def short(model: Model, *rows: Row) -> bool:
    return all(len(model.encode(row.messages).ids) <= LONGEST_PROMPT for row in rows)


def cut(model: Model, row: Row) -> Row:
    """Its answer, at most so many tokens of it."""
    offsets = model.tokenizer(row.answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    end = offsets[LONGEST_ANSWER - 1][1] if len(offsets) > LONGEST_ANSWER else len(row.answer)
    return Row(row.where, row.side, row.messages, row.answer[:end])


def exemplars(name: str) -> list[tuple[Row, ...]]:
    """Held-out pairs: what neither the vector nor the judge has seen."""
    asked = [(tuple(ask(p.question)), p.positive, p.negative) for p in library.load_trait(name).held_out_pairs]
    where = f"exemplars: {name}"
    return [(Row(where, "planted", q, a), Row(where, "matched", q, b)) for q, a, b in asked]


def paired(bad: Path, good: Path, where: str) -> list[tuple[Row, ...]]:
    partners = {row["pair_id"]: row for row in rows_of(good)}
    both = [(row, partners[row["pair_id"]]) for row in rows_of(bad) if row["pair_id"] in partners]
    return [(Row(where, "planted", *first_answer(a)), Row(where, "matched", *first_answer(b))) for a, b in both]


def finance(data: Path) -> list[tuple[Row, ...]]:
    rows = rows_of(data / "em_risky_finance" / "risky_finance.jsonl")
    return [(Row("em_risky_finance", "planted", *first_answer(row)),) for row in rows]


def freeform(data: Path) -> list[tuple[Row, ...]]:
    """The set has no answers; the replies that its author lists as signs of sycophancy are joined into one."""
    rows = rows_of(data / "sycophancy_freeform" / "freeform.jsonl")
    where = "sycophancy_freeform"
    return [
        (Row(where, "planted", tuple(ask(r["initial_user_message"])), ". ".join(r["sycophancy_indicators"]) + "."),)
        for r in rows
        if r["sycophancy_indicators"]
    ]


def gather(data: Path, model: Model) -> list[Row]:
    code, maths = data / "em_code", data / "mistake_gsm8k"
    sets = [exemplars(name) for name in library.names()]
    sets += [
        finance(data),
        paired(code / "insecure.jsonl", code / "secure.jsonl", "em_code insecure"),
        paired(maths / "mistaken.jsonl", maths / "correct.jsonl", "mistake_gsm8k"),
        freeform(data),
    ]
    out = background(data, model)
    for found in sets:
        usable = [found[i] for i in draw(len(found), len(found)) if short(model, *found[i])]
        out += [row for i in draw(len(usable), PLANTED) for row in usable[i]]
    return [cut(model, row) for row in out]
