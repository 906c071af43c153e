"""A language model ready to be read and steered: its blocks found, its template known, its identity hashed.

The only room that knows architectures. It does not know what a trait is.
"""

from poise.model.language_model import (
    BUNDLED,
    Encoded,
    Fingerprint,
    Message,
    Model,
    ask,
    cache_dir,
    load_model,
    render_prompt,
    wrap,
)

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
