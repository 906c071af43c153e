"""The page of a run while it goes: what has happened, and the call that waits for approval, with its two buttons.

It listens on the loopback alone, and answers only who knows its token, which stands in its address and nowhere in the
run's folder: tools and other pages of a browser cannot approve anything. There is no script in it.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import unicodedata
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from poise.agent.approval import ApprovalDecision
from poise.agent.person import PendingCall
from poise.agent.records import RECORDS_FILE, read_records
from poise.agent.run_page import page_of_records
from poise.errors import InvalidArgument
from poise.report.agent_run import WaitingCall, html_agent_run

__all__ = ["LiveRunPage"]

LOOKS_AGAIN, LOOKS_AGAIN_WAITING = 3, 10  # seconds; a page that is being read is not drawn anew under the reader's eyes
MOST_DECISION_FORM = 10_000  # bytes
PAGE_HOSTS = ("127.0.0.1", "localhost", "[::1]")
_LIVE_HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
}


class LiveRunPage:
    """A run's page, served while it goes.

    Args:
        folder: Folder of the run; what it holds already is shown too.
        port: Port to listen on; 0 for a free one.
        seconds: Seconds after which a call that nobody decides is not made.

    Raises:
        InvalidArgument: the port is taken.
        InvalidRun: the folder holds records that are no run.
    """

    def __init__(self, folder: Path, *, port: int = 0, seconds: float = 600.0) -> None:
        self.token = secrets.token_urlsafe(24)
        self._seconds, self._numbers = seconds, 0
        self._rows: list[Mapping[str, Any]] = list(read_records(folder)) if (folder / RECORDS_FILE).is_file() else []
        self._decision: ApprovalDecision | None = None
        try:
            self._server = _LiveServer(("127.0.0.1", port), self)
        except OSError as error:
            raise InvalidArgument(f"Cannot show the page on port {port} ({error}); choose another `page`.") from error
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """Where it is, with its token: whoever has it may approve."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/?token={self.token}"

    def take(self, row: Mapping[str, Any]) -> None:
        """Take in a record of the run."""
        self._rows.append(row)

    def ask(self, call: PendingCall) -> ApprovalDecision:
        """Show a call with its buttons; what becomes of it, to be waited for."""
        self._numbers += 1
        self._decision = ApprovalDecision(call, self._numbers, self._seconds)
        return self._decision

    def approves(self, call: PendingCall) -> bool | None:
        """Wait until a call is decided, or nobody has decided it in time."""
        decision = self.ask(call)
        while not decision.wait(1.0):
            pass
        return decision.approved

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def decide(self, number: int, *, approved: bool) -> str:
        """Settle a call that waits; a sentence where that came too late."""
        decision = self._decision
        if decision is None or decision.number != number:
            return "That call is decided already."
        if decision.settle(approved, "the page"):
            return ""
        verdict = {True: "It was allowed at", False: "It was refused at", None: "Nobody decided it in"}[
            decision.approved
        ]
        return f"{verdict} {decision.by}; nothing was changed."

    def html(self, remark: str = "") -> tuple[str, int]:
        """The page as it is now, and the seconds after which it is to be looked at again."""
        decision = self._decision
        waits = decision is not None and not decision.by
        waiting = _waiting_call(decision, self.token) if decision is not None and waits else None
        rows = list(self._rows)
        if not rows:
            return _EMPTY_RUN_PAGE, LOOKS_AGAIN
        text = html_agent_run(page_of_records(rows), waiting=waiting, remark=remark)
        return text, LOOKS_AGAIN_WAITING if waits else LOOKS_AGAIN


_EMPTY_RUN_PAGE = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Run of an agent</title><p>The run begins.</html>"
)


def _waiting_call(decision: ApprovalDecision, token: str) -> WaitingCall:
    call = decision.call
    arguments = tuple((name, shown_signs(_value_text(value))) for name, value in call.arguments.items())
    return WaitingCall(
        tool=call.tool,
        touches=tuple(call.touches),
        arguments=arguments,
        number=decision.number,
        token=token,
        seconds=round(decision.seconds_left),
    )


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)


def shown_signs(text: str) -> str:
    """A text whose unseen signs, such as those that turn its order around, are written out."""
    return "".join(
        f"\\u{ord(sign):04x}" if sign not in "\n\t" and unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co") else sign
        for sign in text
    )


class _LiveServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], page: LiveRunPage) -> None:
        self.page = page
        super().__init__(address, _LiveHandler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no news."""


class _LiveHandler(BaseHTTPRequestHandler):
    server: _LiveServer
    timeout = 30

    def do_GET(self) -> None:
        """The page."""
        parts = urlsplit(self.path)
        if self._refuses(parse_qs(parts.query).get("token", [""])[0]):
            return
        if parts.path != "/":
            self._send(HTTPStatus.NOT_FOUND, "There is one page here, at /.")
            return
        text, again = self.server.page.html()
        self._send(HTTPStatus.OK, text, {"Refresh": str(again)})

    def do_POST(self) -> None:
        """A decision."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MOST_DECISION_FORM:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "This is no decision of the page's.")
            return
        form = parse_qs(self.rfile.read(int(length)).decode("utf-8", "replace"))
        values = {name: form.get(name, [""])[0] for name in ("token", "number", "decision")}
        if self._refuses(values["token"]):
            return
        number, decision = values["number"], values["decision"]
        if decision not in ("allow", "deny") or not (number.isascii() and number.isdigit() and len(number) < 10):
            self._send(HTTPStatus.BAD_REQUEST, "A decision is allow or deny, with the call's number.")
            return
        page = self.server.page
        if remark := page.decide(int(number), approved=decision == "allow"):
            text, again = page.html(remark)
            self._send(HTTPStatus.CONFLICT, text, {"Refresh": f"{again}; url=/?token={page.token}"})
            return
        self._send(HTTPStatus.SEE_OTHER, "", {"Location": f"/?token={page.token}"})

    def _refuses(self, token: str) -> bool:
        """Whether a request is none of the page's own; it is answered so."""
        name = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if name not in PAGE_HOSTS or not hmac.compare_digest(token.encode(), self.server.page.token.encode()):
            self._send(HTTPStatus.FORBIDDEN, "This page needs its token; open the address that the run printed.")
            return True
        return False

    def _send(self, status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> None:
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        for name, value in {**_LIVE_HEADERS, **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""
