"""The page's files: read and packed once, and sent again only to those who do not have them yet."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

from poise.errors import RequestError

__all__ = ["add_page"]

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is, and as gzip; each has a tag of its own, since a tag names bytes."""

    media_type: str
    plain: bytes
    packed: bytes

    def response(self, request: Request) -> Response:
        """The file, or 304 where the client has it; without a body for HEAD."""
        packed = _accepts_gzip(request.headers.get("accept-encoding", ""))
        content = self.packed if packed else self.plain
        tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {"etag": tag, "vary": "accept-encoding, origin", "cache-control": "no-cache"}
        known = {t.strip().removeprefix("W/") for t in request.headers.get("if-none-match", "").split(",")}
        if tag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        headers |= {"content-encoding": "gzip"} if packed else {}
        if request.method == "HEAD":
            headers["content-length"] = str(len(content))
            return Response(headers=headers, media_type=self.media_type)
        return Response(content, headers=headers, media_type=self.media_type)


def add_page(app: FastAPI, package: str = "") -> None:
    """The page at ``/`` and its parts below ``/page/``.

    Args:
        app: The application.
        package: Package whose own ``page`` it is, made of the server's parts and its own; the server's by default.
    """
    known = _page_files() | (_page_files(package) if package else {})

    def page(name: str, request: Request) -> Response:
        if name not in known:
            parts = f"its parts are {', '.join(sorted(known))}" if known else "it is not installed"
            raise RequestError(404, f"The page has no part of that name: it is at /, and {parts}.", code="not_found")
        return known[name].response(request)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def index(request: Request) -> Response:
        return page("index.html", request)

    @app.api_route("/page/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    def asset(name: str, request: Request) -> Response:
        return page(name, request)


def _page_files(package: str = "poise.serve") -> dict[str, PageFile]:
    """The page's files by their path below it; libraries that it brings along lie in ``vendor``."""
    folder, out = files(package) / "page", {}
    folders = [("", folder), ("vendor/", folder / "vendor")]
    for prefix, place in folders:
        for file in place.iterdir() if place.is_dir() else ():
            if media_type := MEDIA_TYPES.get("." + file.name.rpartition(".")[2]):
                content = file.read_bytes()
                out[prefix + file.name] = PageFile(media_type, content, gzip.compress(content, mtime=0))
    return out


def _accepts_gzip(header: str) -> bool:
    """Whether an ``Accept-Encoding`` has gzip, by name or by ``*``, with a quality above 0."""
    qualities: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        quality = parameters.replace(" ", "").removeprefix("q=") or "1"
        try:
            qualities[name.strip()] = float(quality)
        except ValueError:
            qualities[name.strip()] = 0.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0
