"""Alerts on their way to people: posted to an address or mailed, tried again, from a queue that is on the disk.

Nothing waits for it: a webhook that hangs or a mail server that refuses holds up neither polls nor the page.
"""

from __future__ import annotations

import contextlib
import json
import logging
import smtplib
import ssl
import threading
import time
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import httpx

from poise.dashboard.alert_database import AlertDatabase
from poise.dashboard.rules import AlertMail, DashboardSettings
from poise.errors import InvalidArgument, SaveFailed, why_unread
from poise.serve.webhook import read_webhook_secrets, webhook_signature

__all__ = ["AlertNotifier"]

log = logging.getLogger("poise.dashboard")

POST_SECONDS = 5.0
MAIL_SECONDS = 10.0
LONGEST_POST = 15.0  # seconds, headers and body together
MOST_TRIES = 14  # over about an hour
FIRST_DELAY = 2.0  # seconds before the second try; twice as many before each next one
LONGEST_RETRY_DELAY = 600.0
IDLE_SECONDS = 1.0  # between polls of the queue


class AlertNotifier:
    """Notifies people of alerts.

    Args:
        settings: The dashboard's.
        database: Its database, which has the queue.

    Raises:
        InvalidArgument: a file with a secret or a password cannot be read.
    """

    def __init__(self, settings: DashboardSettings, database: AlertDatabase) -> None:
        self.settings, self.database = settings, database
        secret_file = Path(settings.webhook_secret_file) if settings.webhook_secret_file else None
        self.secrets = read_webhook_secrets(secret_file)
        self.password = _password(settings.mail)
        self.channels: tuple[str, ...] = (
            *(["webhook"] if settings.webhook else []),
            *(["mail"] if settings.mail else []),
        )
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to send, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="poise-notifications", daemon=True)
        self._thread.start()

    def close(self, wait: float = 2.0) -> None:
        """End; what waits is sent when the dashboard is started again."""
        self._closing.set()
        if self._thread:
            self._thread.join(wait)

    def _run(self) -> None:
        while not self._closing.wait(IDLE_SECONDS):
            try:
                self.send_due(time.time())
            except SaveFailed as error:
                log.warning("%s Alerts are sent when it can be read again.", error)
            except Exception:
                log.exception("Sending alerts failed; trying again in a moment.")

    def send_due(self, now: float) -> int:
        """Try everything that is due once; how many were sent."""
        waiting = self.database.rows("SELECT * FROM deliveries WHERE state = 'waiting' ORDER BY id")
        sent = 0
        for row in waiting:
            if self._closing.is_set():
                break
            longest = now + LONGEST_RETRY_DELAY + FIRST_DELAY  # what is due later still is of a clock moved back
            if now < row["due"] <= longest:
                continue
            fault = self.send_once(row["channel"], json.loads(row["body"]), f"msg_{row['id']}_{row['alert'] or 0}")
            sent += not fault
            self._note(row, fault, now)
        return sent

    def _note(self, row: dict[str, Any], fault: str, now: float) -> None:
        tries = row["tries"] + 1
        state = "sent" if not fault else "lost" if tries >= MOST_TRIES else "waiting"
        if state == "lost":
            log.error("An alert could not be sent by %s in %d tries: %s", row["channel"], tries, fault)
        delay = min(FIRST_DELAY * 2 ** (tries - 1), LONGEST_RETRY_DELAY)
        with self.database.changing() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, tries = ?, due = ?, fault = ? WHERE id = ?",
                [state, tries, now + delay if state == "waiting" else now, fault, row["id"]],
            )

    def send_once(self, channel: str, body: dict[str, Any], name: str) -> str:
        """Send one message; what went wrong, in words without secrets, or empty.

        Args:
            channel: ``webhook`` or ``mail``.
            body: The message.
            name: Id that a receiver knows a repeated post by.
        """
        if channel == "webhook" and self.settings.webhook:
            return self._post(body, name)
        if channel == "mail" and self.settings.mail:
            return self._mail(self.settings.mail, body, name)
        return f"there is no {channel} in the dashboard's file any more"

    def _post(self, body: dict[str, Any], name: str) -> str:
        data, sent = json.dumps(body, ensure_ascii=False).encode(), str(int(time.time()))
        signatures = [webhook_signature(secret, name, sent, data) for secret in self.secrets]
        headers = {"content-type": "application/json", "webhook-id": name, "webhook-timestamp": sent}
        headers |= {"webhook-signature": " ".join(signatures)} if signatures else {}
        end = time.monotonic() + LONGEST_POST
        try:
            with (
                httpx.Client(timeout=POST_SECONDS, follow_redirects=False) as client,
                client.stream("POST", self.settings.webhook, content=data, headers=headers) as answer,
            ):
                for _ in answer.iter_raw():
                    if time.monotonic() > end:
                        break
                return "" if answer.is_success else f"the webhook answered {answer.status_code}"
        except httpx.TimeoutException:
            return f"the webhook does not answer within {POST_SECONDS:g} s"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"the webhook cannot be reached ({type(error).__name__})"

    def _mail(self, mail: AlertMail, body: dict[str, Any], name: str) -> str:
        try:
            message = _alert_message(mail, body, name)
            with _smtp(mail) as client:
                if mail.user:
                    client.login(mail.user, self.password)
                refused = client.send_message(message)
            return f"mail to {', '.join(refused)} is refused" if refused else ""
        except smtplib.SMTPResponseException as error:
            return f"the mail server refuses ({error.smtp_code} {_as_one_line(error.smtp_error)})"
        except smtplib.SMTPRecipientsRefused as error:
            return f"mail to {', '.join(error.recipients)} is refused"
        except (smtplib.SMTPException, OSError, ValueError) as error:
            words = getattr(error, "strerror", None) or type(error).__name__
            return f"mail cannot be handed in at {mail.host}:{mail.port} ({words})"


@contextlib.contextmanager
def _smtp(mail: AlertMail) -> Any:
    context = ssl.create_default_context()
    if mail.security == "tls":
        client: smtplib.SMTP = smtplib.SMTP_SSL(mail.host, mail.port, timeout=MAIL_SECONDS, context=context)
    else:
        client = smtplib.SMTP(mail.host, mail.port, timeout=MAIL_SECONDS)
    try:
        if mail.security == "starttls":
            client.starttls(context=context)
        yield client
    finally:  # whatever it says to goodbye, a mail that it took is taken
        with contextlib.suppress(smtplib.SMTPException, OSError):
            client.quit()
        client.close()


def _alert_message(mail: AlertMail, body: dict[str, Any], name: str) -> EmailMessage:
    message = EmailMessage()
    about = _as_one_line(f"{body.get('rule', '')} of {body.get('source', '')}".strip())
    message["Subject"] = f"[poise] {body.get('event', 'raised')}: {about}"[:200]
    message["From"], message["To"] = mail.sender, ", ".join(mail.to)
    message["Message-ID"] = f"<{name}@poise.dashboard>"
    began = body.get("began")
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(began)) if isinstance(began, int | float) else ""
    lines = [str(body.get("text", "")), "", f"Rule: {body.get('rule', '')}, {body.get('severity', '')}"]
    lines += [f"Source: {body.get('source', '')}", *([f"Since: {when}"] if when else [])]
    message.set_content("\n".join(lines) + "\n")
    return message


def _as_one_line(text: object) -> str:
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return " ".join(words.split())[:200]


def _password(mail: AlertMail | None) -> str:
    if mail is None or not mail.user:
        return ""
    if not mail.password_file:
        raise InvalidArgument("Mail has a `user` and no `password_file`; name the file with the password.")
    try:
        return Path(mail.password_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(
            f"Cannot read `password_file` {mail.password_file}: {why_unread(error)}; check it."
        ) from error


def channel_words(channels: Sequence[str]) -> str:
    """How people are notified, in words."""
    return " and ".join(channels) or "on the page alone"
