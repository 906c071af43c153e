"""A text as a model's tokens: ids, bytes, special ones, and how many tokens text, code and other languages take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poise.errors import BrokenModelFile, first_line
from poise.lifecycle.model_files import model_place
from poise.model.token_text import text_bytes, token_text
from poise.settings import FrozenModel

__all__ = ["TextToken", "TokenCounts", "TokenShare", "count_tokens"]

# The first sentence of the Universal Declaration of Human Rights, article 1 (United Nations, public domain), and code.
TOKEN_SAMPLES = {
    "English": "All human beings are born free and equal in dignity and rights.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "Arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "Chinese": "人人生而自由,在尊严和权利上一律平等。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "Python": "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n",
    "JSON": '{"name": "Ada", "born": 1815, "tags": ["maths", "engines"]}',
    "numbers": "1234567890 3.14159265 2026-11-30 1,000,000",
}


class TextToken(FrozenModel):
    """One token of a text.

    Attributes:
        id: Number in the vocabulary.
        text: Text of it by itself, with the space that it begins with.
        bytes: Bytes of it in hexadecimal.
        special: Whether it is a mark of the model's own and no text.
    """

    id: int
    text: str
    bytes: str
    special: bool


class TokenShare(FrozenModel):
    """How many tokens a sample takes.

    Attributes:
        name: Language or kind of text.
        characters: Length of the sample.
        bytes: Length in UTF-8.
        tokens: Tokens that it takes.
    """

    name: str
    characters: int
    bytes: int
    tokens: int


class TokenCounts(FrozenModel):
    """A text as a model's tokens.

    Attributes:
        text: The text.
        tokens: Its tokens, with those that the tokenizer adds.
        shares: Tokens that a sentence takes in several languages, and code.
    """

    text: str
    tokens: tuple[TextToken, ...]
    shares: tuple[TokenShare, ...]


def count_tokens(name: str, text: str) -> TokenCounts:
    """A text as a model's tokens.

    Args:
        name: A folder, a GGUF file, a bundled name, or a hub id that was fetched before.
        text: Any text; marks in it such as ``<|im_start|>`` count as special tokens, as they do in a prompt.

    Raises:
        ModelNotFound: nothing there.
        BrokenModelFile: the tokenizer cannot be read.
    """
    tokenizer = _tokenizer(name)
    specials = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    encoded = tokenizer.encode(text)
    pieces = _Pieces(tokenizer)
    tokens = [_text_token(pieces, i, special=i in specials) for i in encoded.ids]
    shares = [
        TokenShare(
            name=sample,
            characters=len(words),
            bytes=len(words.encode()),
            tokens=len(tokenizer.encode(words, add_special_tokens=False).ids),
        )
        for sample, words in TOKEN_SAMPLES.items()
    ]
    return TokenCounts(text=text, tokens=tuple(tokens), shares=tuple(shares))


class _Pieces:
    """A tokenizer as ``token_text`` takes one."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special ones too."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """A token as the vocabulary writes it."""
        piece = self.tokenizer.id_to_token(token)
        return piece if isinstance(piece, str) else None


def _text_token(pieces: _Pieces, token: int, *, special: bool) -> TextToken:
    text = token_text(pieces, token)
    return TextToken(id=token, text=text, bytes=text_bytes(text).hex(" "), special=special)


def _tokenizer(name: str) -> Any:
    """A tokenizer of the ``tokenizers`` library, straight from its file where there is one."""
    place = model_place(name)
    path = place / "tokenizer.json"
    if not path.is_file():
        from poise.model.tokenizing import load_tokenizer

        return load_tokenizer(name).tokenizer.backend_tokenizer
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise BrokenModelFile(f"{path} cannot be read ({first_line(error)}); fetch or save it again.") from error
