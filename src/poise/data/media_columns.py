"""Images, audio and video beside the text of a row: none is read, each is counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from poise.data.messages import Message

__all__ = ["count_media", "media_in"]

MEDIA_COLUMNS = {
    **dict.fromkeys(("image", "images", "image_path", "image_paths", "image_url", "image_urls", "image_file"), "image"),
    **dict.fromkeys(("audio", "audios", "audio_path", "audio_url", "speech", "wav"), "audio"),
    **dict.fromkeys(("attachments", "pdf", "pdfs"), "file"),
    **dict.fromkeys(("video", "videos", "video_path", "video_url"), "video"),
}
_PLACEHOLDERS = re.compile(
    r"(?:<(?P<plain>image|video|audio)>"
    r"|<\|(?:vision_start|audio_bos)\|><\|(?P<padded>image|video|audio)_?pad\|><\|(?:vision_end|audio_eos)\|>"
    r"|<(?P<tagged>img)>[^<\n]*</img>"
    r"|<\|(?P<numbered>image|video|audio)(?:_\d+)?\|>)[ \t]*\n?",
    re.I,
)


def media_in(columns: Mapping[str, Any]) -> list[str]:
    """What stands in the columns of a row, or the keys of a turn, that is no text: a kind for each."""
    kinds = []
    for name, value in columns.items():
        kind = MEDIA_COLUMNS.get(str(name).strip().lower())
        if kind and value is not None and value not in ("", [], {}):
            kinds += [kind] * (len(value) if isinstance(value, list) else 1)
    return kinds


def count_media(
    messages: Sequence[Message], in_turns: Sequence[tuple[Message, str]], columns: Mapping[str, Any]
) -> list[tuple[Message, str]]:
    """What is no text in a row, each with the turn that it belongs to.

    The places in a question where it belongs (``<image>``) are taken out and count once with it. Where the row has
    nothing of the kind, they are words of the text, which stay and are counted as placeholders.

    Args:
        messages: The row's turns, changed in place.
        in_turns: What stands in the turns themselves.
        columns: Those beside the conversation.
    """
    beside = Counter(media_in(columns))
    media = list(in_turns)
    inside = Counter(kind for _, kind in in_turns)
    first = next((turn for turn in messages if turn["role"] == "user"), messages[0] if messages else None)
    places: list[tuple[Message, str]] = []
    for message in messages:
        if message["role"] == "user" and "<" in message["content"]:
            marks = list(_PLACEHOLDERS.finditer(message["content"]))
            kinds = [next(filter(None, mark.groups())).lower().replace("img", "image") for mark in marks]
            if any(beside[kind] or inside[kind] for kind in kinds):
                message["content"] = _PLACEHOLDERS.sub("", message["content"]).strip()
                places += [(message, kind) for kind in kinds]
            else:
                media += [(message, f"{kind} placeholder") for kind in kinds]
    for kind in ("image", "audio", "video", "file"):
        targets = [message for message, other in places if other == kind]
        more = max(len(targets), beside[kind] + inside[kind]) - inside[kind]
        targets += [first] * more if first is not None else []
        media += [(target, kind) for target in targets[:more]]
    return media
