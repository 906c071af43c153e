"""Where an OpenAI-compatible server is, and what lets one in: as it was said, else from OpenAI's own variables."""

from __future__ import annotations

import os

__all__ = ["endpoint_address"]


def endpoint_address(base_url: str | None = None, api_key: str | None = None) -> tuple[str | None, str]:
    """The URL and the key that a client of ``openai`` is made with.

    Args:
        base_url: URL of the server, usually ending in ``/v1``; else ``OPENAI_BASE_URL``, else OpenAI's own (``None``).
        api_key: Else ``OPENAI_API_KEY``; local servers need none, and the client insists on one.
    """
    return (
        base_url or os.environ.get("OPENAI_BASE_URL") or None,
        api_key or os.environ.get("OPENAI_API_KEY") or "none",
    )
