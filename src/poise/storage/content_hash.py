"""Equal content, equal key: what a finished piece of work is found by."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["content_key"]


def content_key(**parts: Any) -> str:
    """Hash of JSON-able parts: equal content, equal key, in any process."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]
