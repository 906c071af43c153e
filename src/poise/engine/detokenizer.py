"""Text out of tokens as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Speech"]

BROKEN = "\N{REPLACEMENT CHARACTER}"


class Speech:
    """The text of one answer, a piece for each token; the pieces joined are the answer.

    A token whose character is not complete yet has an empty piece, and the one that completes it has it all.

    Args:
        tokenizer: The model's.
        stop: Strings that end the answer; they are no part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.text = ""
        self.out = 0  # tokens that have been let out; a cut leaves them
        self._whole = 0  # tokens whose text is complete
        self._before = 0  # where the tokens begin that the next is decoded with: spaces depend on their neighbours

    def hear(self, token: int) -> bool:
        """Take a token in; true when a stop string is complete, and the answer cut before it."""
        self.tokens.append(token)
        known = self._decode(self._before, self._whole)
        both = self._decode(self._before, len(self.tokens))
        if both.endswith(BROKEN):
            self.pieces.append("")
            return False
        self._before, self._whole = self._whole, len(self.tokens)
        return self._say(both[len(known) :])

    def end(self) -> None:
        """No more tokens: what is left of an incomplete character goes with the last one."""
        if self._whole < len(self.tokens):
            rest = self._decode(self._before, len(self.tokens))[len(self._decode(self._before, self._whole)) :]
            self.pieces[-1] += rest
            self.text += rest
            self._whole = len(self.tokens)

    @property
    def safe(self) -> int:
        """How many tokens can be let out, whatever comes."""
        held = max((n for s in self.stop for n in range(1, len(s)) if self.text.endswith(s[:n])), default=0)
        tokens, left = self._whole, held
        while left > 0:
            tokens -= 1
            left -= len(self.pieces[tokens])
        return max(tokens, self.out)

    def _say(self, piece: str) -> bool:
        old = len(self.text)
        self.pieces.append(piece)
        self.text += piece
        longest = max(map(len, self.stop), default=0)
        found = [at for s in self.stop if (at := self.text.find(s, max(old - longest + 1, 0))) >= 0]
        if not found:
            return False
        self._cut(min(found))
        return True

    def _cut(self, at: int) -> None:
        """Keep the text up to there, and the tokens that have any of it."""
        self.text, left = self.text[:at], at
        kept = 0
        for n, piece in enumerate(self.pieces):
            if left > 0 and piece:
                kept = n + 1
                self.pieces[n] = piece[:left]
                left -= len(self.pieces[n])
        kept = max(kept, self.out)
        del self.pieces[kept:], self.tokens[kept:]
        self._whole = self._before = kept

    def _decode(self, first: int, last: int) -> str:
        return str(self.tokenizer.decode(self.tokens[first:last], skip_special_tokens=True))
