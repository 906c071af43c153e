"""A language model ready to be read and steered: its blocks found, its template known, its identity hashed.

The only room that knows architectures. It does not know what a trait is.
"""

from poise.model.chat_template import Encoded, Message, ask, render_prompt
from poise.model.fingerprint import Fingerprint
from poise.model.language_model import Model
from poise.model.loading import BUNDLED, cache_dir
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
