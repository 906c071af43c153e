"""Answers with a verdict, one a row (KTO's form), joined into pairs where a prompt has a good and a bad one."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.columns import CONTEXTS, SYSTEMS, RowColumns, as_list, find_column
from poise.data.preferences import find_pair_columns, is_good, recognise_preference
from poise.data.row_values import RowItem, RowReader, RowValue, to_columns
from poise.data.tables import json_default
from poise.errors import InvalidRow

__all__ = ["JoinedAnswers", "find_label_columns"]

BESIDE_PROMPT = (*SYSTEMS, *CONTEXTS, "history")  # columns that are a part of what is answered


def find_label_columns(rows: Sequence[RowColumns]) -> tuple[str, ...]:
    """Columns of the prompt, answer and label, or of the chat and its label; empty unless most rows have them."""
    seen = [recognise_preference(row, "assistant") for row in rows if not find_pair_columns(row)]
    columns = [one.columns for one in seen if one]
    common = max(set(columns), key=columns.count, default=())
    return common if columns.count(common) > len(rows) / 2 else ()


@dataclass(frozen=True, slots=True)
class JoinedAnswers:
    """A reader of pairs from a reader of labelled answers, which are all held while it reads.

    The first good answer to a prompt goes with the first bad one, and so on, at the place of the earlier of the two. An
    answer without a partner is no row.

    Attributes:
        read: Reader of the answers.
        columns: Columns of the prompt, the answer and its label, or of the chat and its label.
    """

    read: RowReader
    columns: tuple[str, ...]

    def __call__(self, skip: int) -> Generator[RowItem, None, int]:
        """Pairs, and answers without one, from row ``skip`` on."""
        rows = self._join()
        for number, (line, value) in enumerate(rows[skip:], start=skip):
            yield number, line, value
        return len(rows)

    @property
    def has_pairs(self) -> bool:
        """Whether any prompt has a good and a bad answer."""
        return any(not isinstance(value, InvalidRow) for _, value in self._join())

    def _join(self) -> list[tuple[int | None, RowValue]]:
        rows: list[tuple[int | None, RowValue]] = []
        waiting: dict[tuple[str, bool], deque[tuple[int, Mapping[str, Any]]]] = defaultdict(deque)
        for _, line, value in self.read(0):
            try:
                columns = to_columns(value)
                prompt, good = self._prompt_of(columns), is_good(columns[self.columns[-1]])
            except InvalidRow as error:
                rows.append((line, InvalidRow(str(error), error.content if error.content is not None else value)))
                continue
            if partners := waiting[prompt, not good]:
                place, other = partners.popleft()
                rows[place] = (rows[place][0], self._pair(*((columns, other) if good else (other, columns))))
                continue
            waiting[prompt, good].append((len(rows), columns))
            missing = "bad" if good else "good"
            rows.append((line, InvalidRow(f"no partner: there is no {missing} answer to its prompt", value)))
        return rows

    def _prompt_of(self, row: RowColumns) -> str:
        """What is answered, as a key.

        Raises:
            InvalidRow: a column is not there.
        """
        for name in self.columns:
            if row.get(name) is None:
                raise InvalidRow(f"missing column: {name}")
        first = self.columns[0]
        prompt = row[first] if len(self.columns) > 2 else (as_list(row[first]) or [])[:-1]
        names = (find_column(row, (name,), bool) for name in BESIDE_PROMPT)
        beside = [(name, row[name]) for name in names if name and name not in self.columns]
        return json.dumps([prompt, beside], sort_keys=True, default=json_default)

    def _pair(self, good: RowColumns, bad: RowColumns) -> dict[str, Any]:
        """One row of both answers; what the two rows say differently has a column for each."""
        answer, label = self.columns[-2:]
        pair: dict[str, Any] = {}
        for name in dict.fromkeys((*good, *bad)):
            if name in (answer, label):
                continue
            if good.get(name) == bad.get(name):
                pair[name] = good.get(name)
            else:
                pair |= {f"{name}_chosen": good.get(name), f"{name}_rejected": bad.get(name)}
        return pair | {"chosen": good[answer], "rejected": bad[answer]}
