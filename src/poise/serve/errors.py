"""A request that is not answered, as OpenAI's clients expect to hear it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["Refused"]


class Refused(Exception):
    """An answer that is an error.

    Args:
        status: Of HTTP.
        message: One sentence.
        code: For programs.
        param: The field at fault.
        headers: That go with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}


def _kind(status: int) -> str:
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
