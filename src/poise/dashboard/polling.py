"""One poll of a source: its metrics over HTTP, the thresholds of its vectors, and new rows of its readings.

Whatever is wrong with a source is a sentence in what comes back: a server that is down is news, no error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from poise.dashboard.metrics_text import MOST_METRICS_BYTES, MetricsReport, read_metrics
from poise.dashboard.readings_reader import ReadingsReader, SourceReading
from poise.dashboard.rules import WatchedSource
from poise.errors import EndpointUnavailable, InvalidData, why_unread

__all__ = ["SourcePoll", "SourcePoller"]

POLL_SECONDS = 5.0  # that a server may take to answer
LONGEST_ANSWER = 15.0  # seconds from the first byte to the last
STATUS_WORDS = {401: "the key is missing or wrong", 403: "the key may not", 404: "there are no metrics there"}


@dataclass(frozen=True, kw_only=True)
class SourcePoll:
    """What one poll of a source brought.

    Attributes:
        report: Metrics; ``None`` where there were none to be had.
        fault: Why not, or why it takes no requests; empty where all is well.
        readings: Rows that came since the last poll.
        readings_fault: Why there are none.
        thresholds: Alarm levels by trait and reading; ``None`` where the server did not say.
    """

    report: MetricsReport | None = None
    fault: str = ""
    readings: tuple[SourceReading, ...] = ()
    readings_fault: str = ""
    thresholds: Mapping[str, Mapping[str, float]] | None = field(default=None)


class SourcePoller:
    """Looks at one source.

    Args:
        source: What to poll.
        seconds: How long a server may take to answer.
    """

    def __init__(self, source: WatchedSource, *, seconds: float = POLL_SECONDS) -> None:
        self.source, self._seconds = source, seconds
        self.reader = ReadingsReader(Path(source.readings)) if source.readings else None

    def poll(self, last_id: int) -> SourcePoll:
        """Poll once.

        Args:
            last_id: Id of the last reading that was taken in.
        """
        report, fault, thresholds = None, "", None
        if self.source.url:
            try:
                with httpx.Client(timeout=self._seconds, follow_redirects=False, headers=self._headers()) as client:
                    report = read_metrics(_metrics_text(client, f"{self.source.url}/metrics"))
                    thresholds = _vector_thresholds(client, f"{self.source.url}/v1/poise/vectors")
                fault = "" if report.usable else "it takes no requests: it is ending, or its model fails"
            except EndpointUnavailable as error:
                fault = str(error)
        readings, readings_fault = self._readings(last_id)
        return SourcePoll(
            report=report, fault=fault, readings=readings, readings_fault=readings_fault, thresholds=thresholds
        )

    def _readings(self, last_id: int) -> tuple[tuple[SourceReading, ...], str]:
        if self.reader is None:
            return (), ""
        try:
            return tuple(self.reader.after(last_id)), ""
        except InvalidData as error:
            return (), str(error)

    def _headers(self) -> dict[str, str]:
        if not self.source.key_file:
            return {}
        try:
            lines = Path(self.source.key_file).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise EndpointUnavailable(f"its key file cannot be read: {why_unread(error)}") from error
        if len(lines) != 1 or not lines[0].isascii():
            raise EndpointUnavailable("its key file does not hold one key alone")
        return {"Authorization": f"Bearer {lines[0]}"}


def _metrics_text(client: httpx.Client, address: str) -> str:
    end = time.monotonic() + LONGEST_ANSWER
    try:
        with client.stream("GET", address) as answer:
            if answer.status_code != 200:
                words = STATUS_WORDS.get(answer.status_code, "that is no metrics")
                raise EndpointUnavailable(f"it answered {answer.status_code}: {words}")
            data = b""
            for piece in answer.iter_bytes():
                data += piece
                if len(data) > MOST_METRICS_BYTES or time.monotonic() > end:
                    raise EndpointUnavailable("its metrics do not end")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        words = "it does not answer in time" if isinstance(error, httpx.TimeoutException) else "it cannot be reached"
        raise EndpointUnavailable(f"{words} ({type(error).__name__})") from error
    return data.decode("utf-8", "replace")


def _vector_thresholds(client: httpx.Client, address: str) -> dict[str, dict[str, float]] | None:
    """Alarm levels as the server's own vectors have them; ``None`` where it does not say."""
    try:
        answer = client.get(address)
        listed = answer.json()["data"] if answer.status_code == 200 else None
        return None if listed is None else {str(one["name"]): _levels(one.get("alarms") or ()) for one in listed[:500]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _levels(alarms: Any) -> dict[str, float]:
    levels: dict[str, float] = {}
    for alarm in alarms:
        value = float(alarm["threshold"])
        if math.isfinite(value):
            levels[str(alarm["reading"])] = min(value, levels.get(str(alarm["reading"]), math.inf))
    return levels
