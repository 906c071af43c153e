"""A language model ready to be read and steered: its blocks found, its template known, its identity hashed.

The only room that knows architectures. It does not know what a trait is. Its names are imported when they are first
used, so that what needs no torch (licences, tokens as text) loads none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poise._lazy import lazy_names

if TYPE_CHECKING:
    from poise.model.bundled import BUNDLED, cache_dir
    from poise.model.chat_template import Encoded, Message, ask, render_prompt
    from poise.model.fingerprint import Fingerprint
    from poise.model.language_model import Model
    from poise.model.wrapping import load_model, wrap

__all__ = [
    "BUNDLED",
    "Encoded",
    "Fingerprint",
    "Message",
    "Model",
    "ask",
    "cache_dir",
    "load_model",
    "render_prompt",
    "wrap",
]

__getattr__, __dir__ = lazy_names(
    "poise.model",
    {
        "BUNDLED": "model.bundled",
        "cache_dir": "model.bundled",
        "Encoded": "model.chat_template",
        "Message": "model.chat_template",
        "ask": "model.chat_template",
        "render_prompt": "model.chat_template",
        "Fingerprint": "model.fingerprint",
        "Model": "model.language_model",
        "load_model": "model.wrapping",
        "wrap": "model.wrapping",
    },
)
