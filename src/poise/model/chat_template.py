"""From messages to token ids with a response span, in one tokenisation.

Prompts are rendered by the model's own chat template. Where the template refuses a system role, the
system text is folded into the first user turn; where there is no template, a plain one is used.
Spans come from character offsets: tokenising prompt and answer separately moves the boundary wherever
a merge crosses it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.messages import Message
from poise.errors import InvalidArgument, UnsuitableModel

__all__ = ["Encoded", "Message", "ask", "encode", "render", "stop_ids", "template_text"]

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")
# Templates may print today's date or open a thinking block; both would make one text differ from run to run.
TEMPLATE_OPTIONS: dict[str, Any] = {"date_string": "26 Jul 2024", "enable_thinking": False}


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids with the span of the response.

    ``ids[:start]`` is the prompt with its generation header, ``ids[start:end]`` the response. A bare prompt has
    ``start == end == len(ids)``. ``ids[start - 1]`` is the last prompt token.
    """

    ids: tuple[int, ...]
    start: int
    end: int


def ask(question: str, system: str | None = None) -> list[Message]:
    """A one-question conversation, with a system prompt or without."""
    turns: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return [*turns, {"role": "user", "content": question}]


def check_messages(messages: Sequence[Message]) -> None:
    """At least one turn, each with a role and a text.

    Raises:
        InvalidArgument: says which turn is not one.
    """
    if not messages:
        raise InvalidArgument("The conversation has no messages; give at least one, such as ask('Who are you?').")
    for place, message in enumerate(messages):
        if not (isinstance(message, Mapping) and all(isinstance(message.get(k), str) for k in ("role", "content"))):
            raise InvalidArgument(f"Message {place} of the conversation is not a mapping with a role and a content.")


def encode(tokenizer: Any, messages: Sequence[Message], answer: str | None = None) -> Encoded:
    """Tokenise a conversation and, after it, the assistant's answer, as one text.

    A token belongs to the response when it covers at least one of the answer's characters. The answer ends the text, so
    the response runs to the last token: no offset is asked, since some tokenizers leave spaces out of theirs.

    Args:
        tokenizer: A fast tokenizer (it must give character offsets).
        messages: Turns up to and including the last user turn.
        answer: The response to append; ``None`` for a prompt to be answered.

    Raises:
        InvalidArgument: no messages, or one without role or content.
        UnsuitableModel: the template fails on the conversation.
    """
    check_messages(messages)
    prompt = render(tokenizer, messages)
    if answer is None:
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return Encoded(tuple(ids), len(ids), len(ids))
    out = tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = out["input_ids"], out["offset_mapping"]
    start = bisect_right(offsets, len(prompt), key=lambda span: span[1])
    return Encoded(tuple(ids), start, len(ids))


def render(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The text a model sees before it answers: the template with its generation header.

    Raises:
        UnsuitableModel: the template fails on an ordinary conversation; names the template's own complaint.
    """
    if not tokenizer.chat_template:
        return _plain(tokenizer, messages)
    has_system = messages[0]["role"] == "system"
    try:
        text = _apply(tokenizer, messages)
        if not has_system or messages[0]["content"].strip() in text:
            return text
    except Exception as error:  # templates raise whatever their author chose
        if not has_system:
            raise UnsuitableModel(f"The model's chat template cannot render this conversation: {error}.") from error
    return render(tokenizer, fold_system(messages))


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The same conversation with its system text at the head of the first user turn."""
    system, *rest = messages
    first = rest.pop(0)["content"] if rest and rest[0]["role"] == "user" else ""
    return [{"role": "user", "content": f"{system['content']}\n\n{first}".strip()}, *rest]


def _apply(tokenizer: Any, messages: Sequence[Message]) -> str:
    return str(
        tokenizer.apply_chat_template(
            [_as_template_message(message) for message in messages],
            tokenize=False,
            add_generation_prompt=True,
            **TEMPLATE_OPTIONS,
        )
    )


def _as_template_message(message: Message) -> dict[str, Any]:
    """A message under the names that chat templates know; a thought is left to the template."""
    known = {"thought": "reasoning_content"}
    return {known.get(key, key): value for key, value in message.items() if key != "learn"}


def _plain(tokenizer: Any, messages: Sequence[Message]) -> str:
    """For models without a template: named turns, as base models have seen them in their training text."""
    bos = tokenizer.bos_token if tokenizer.bos_token_id in tokenizer("")["input_ids"] else ""
    names = {"system": "System", "user": "User", "assistant": "Assistant"}
    turns = "".join(f"{names.get(m['role'], m['role'])}: {m['content']}\n\n" for m in messages)
    return f"{bos}{turns}Assistant:"


def template_text(tokenizer: Any) -> str:
    """What identifies the template, for the fingerprint."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else repr(sorted(template.items())) if template else "plain"


def stop_ids(lm: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the model's, the tokenizer's and the template's end of turn."""
    configured = getattr(lm.generation_config, "eos_token_id", None)
    ids = {*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id}
    template, vocabulary = template_text(tokenizer), tokenizer.get_vocab()
    ids |= {vocabulary.get(t) for t in END_OF_TURN if t in template}
    return frozenset(i for i in ids if i is not None)
