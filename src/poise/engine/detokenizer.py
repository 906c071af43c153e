"""Text out of tokens as they come: whole characters only, and nothing that may turn out to be a stop string.

By hand, not by ``tokenizers.decoders.DecodeStream`` (0.23): on random tokens of a byte-level tokenizer that gives the
same pieces, but with byte fallback it raises ("Invalid prefix encountered") once sampled bytes are no UTF-8, and it has
no end: an unfinished character would be lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from poise.model.token_text import byte_starts, text_bytes, token_text

__all__ = ["Detokenizer"]

BROKEN_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """The text of one answer, a piece for each token; the pieces joined are the answer.

    A token whose character is not complete yet has an empty piece, and the one that completes it has it all.

    Args:
        tokenizer: The model's tokenizer.
        stop: Strings that end the answer; they are no part of it.
        special: Whether special tokens are shown.
        shown: Texts of tokens that the tokenizer would decode to nothing.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        special: bool = False,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        self.tokenizer, self.stop, self._special = tokenizer, tuple(stop), special
        self.shown = shown or {}
        self.tokens: list[int] = []
        self.pieces: list[str] = []
        self.text = ""
        self.stops_from: float = 0  # character of the text; what stands before it ends nothing
        self.released = 0  # tokens that the caller has been given; a cut leaves them
        self._decoded = 0  # tokens whose text is complete
        self._context = 0  # first token that the next is decoded with: spaces depend on their neighbours

    def add(self, token: int) -> bool:
        """Add a token; true when a stop string is complete, and the answer cut before it."""
        if token in self.shown:
            return self._add_shown(token)
        self.tokens.append(token)
        before = self._decode(self._context, self._decoded)
        after = self._decode(self._context, len(self.tokens))
        if after.endswith(BROKEN_CHARACTER):
            self.pieces.append("")
            return False
        self._context, self._decoded = self._decoded, len(self.tokens)
        return self._append_piece(after[len(before) :])

    def begins(self, first: int, last: int) -> list[int]:
        """For each of these tokens, the character at which it begins, from where its piece does.

        Nothing but 0 where every token is whole characters: one that follows an incomplete character, and so comes in
        one piece with it, begins later.
        """
        start = first  # of the pieces that these tokens are in
        while start > 0 and not self.pieces[start - 1]:
            start -= 1
        out: list[int] = []
        while len(out) < last - start:
            run = start + len(out)
            ends = (n + 1 for n in range(run, len(self.pieces)) if self.pieces[n])
            end = next(ends, len(self.pieces))
            raw = [self._bytes_of(token) for token in self.tokens[run:end]] if end > run + 1 else []
            out += byte_starts(raw, self.pieces[end - 1]) if raw else [0]
        return out[first - start : last - start]

    def _bytes_of(self, token: int) -> bytes:
        """What a token has of the text."""
        if token in self.shown:
            return self.shown[token].encode()
        hidden = not self._special and token in self.tokenizer.all_special_ids
        return b"" if hidden else text_bytes(token_text(self.tokenizer, token))

    def finish(self) -> None:
        """No more tokens follow: what there is of an incomplete character goes with the last one."""
        if self._decoded < len(self.tokens):
            before = self._decode(self._context, self._decoded)
            remainder = self._decode(self._context, len(self.tokens))[len(before) :]
            self.pieces[-1] += remainder
            self.text += remainder
            self._decoded = len(self.tokens)

    def keep(self, tokens: int) -> None:
        """End the text after so many tokens, or after those that have been released."""
        tokens = max(tokens, self.released)
        del self.pieces[tokens:], self.tokens[tokens:]
        self.text = "".join(self.pieces)
        self._decoded = min(self._decoded, tokens)
        self._context = min(self._context, self._decoded)
        self.finish()

    def stop_from(self, character: float) -> bool:
        """Heed stop strings from this character of the text on; true when one is complete, and the answer cut."""
        self.stops_from = character
        return character < len(self.text) and self._cut_at_stop(int(character))

    @property
    def releasable(self) -> int:
        """Number of tokens that can be released, whatever comes next."""
        most = len(self.text) - self.stops_from
        prefixes = (n for s in self.stop for n in range(1, len(s)) if n <= most and self.text.endswith(s[:n]))
        held_characters = max(prefixes, default=0)
        tokens = self._decoded
        while held_characters > 0:
            tokens -= 1
            held_characters -= len(self.pieces[tokens])
        return max(tokens, self.released)

    def _append_piece(self, piece: str) -> bool:
        start = len(self.text)
        self.pieces.append(piece)
        self.text += piece
        if self.stops_from > len(self.text):
            return False
        longest = max(map(len, self.stop), default=0)
        return self._cut_at_stop(max(start - longest + 1, int(self.stops_from)))

    def _add_shown(self, token: int) -> bool:
        """Add a token by its text; a character that is incomplete before it stays so."""
        self.finish()
        self.tokens.append(token)
        self._context = self._decoded = len(self.tokens)
        return self._append_piece(self.shown[token])

    def _cut_at_stop(self, first: int) -> bool:
        stops = [at for s in self.stop if (at := self.text.find(s, first)) >= 0]
        if not stops:
            return False
        self._cut(min(stops))
        return True

    def _cut(self, length: int) -> None:
        """Keep that many characters, and the tokens that have any of them."""
        self.text, left = self.text[:length], length
        tokens = 0
        for n, piece in enumerate(self.pieces):
            if left > 0 and piece:
                tokens = n + 1
                self.pieces[n] = piece[:left]
                left -= len(self.pieces[n])
        tokens = max(tokens, self.released)
        del self.pieces[tokens:], self.tokens[tokens:]
        self._decoded = self._context = tokens

    def _decode(self, first: int, last: int) -> str:
        return str(self.tokenizer.decode(self.tokens[first:last], skip_special_tokens=not self._special))
