"""How many requests and tokens a key may ask for, with the headers by which OpenAI's clients wait and come again."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field, model_validator

from poise.errors import RequestError
from poise.settings import Settings

__all__ = ["RateLimit", "RateLimiter", "TokenReservation"]

DAY = 86_400.0
SLICES = 120  # in which a period is counted; what is too old is forgotten slice by slice, never too early


class RateLimit(Settings):
    """So many requests or tokens in a period; more than one limit may hold at once."""

    requests: int | None = Field(None, ge=1, description="Most requests in the period.")
    tokens: int | None = Field(None, ge=1, description="Most tokens, read and generated, in the period.")
    seconds: float | None = Field(None, gt=0, le=366 * DAY, description="The period.")
    days: float | None = Field(None, gt=0, le=366, description="The period, in days.")

    @model_validator(mode="after")
    def _one_of_each(self) -> RateLimit:
        if (self.requests is None) == (self.tokens is None) or (self.seconds is None) == (self.days is None):
            raise ValueError("needs one of requests and tokens, and one of seconds and days")
        return self

    @property
    def most(self) -> int:
        """The number of either."""
        return self.requests or self.tokens or 0

    @property
    def period(self) -> float:
        """In seconds."""
        return self.seconds or DAY * (self.days or 0)

    def __str__(self) -> str:
        period = f"{self.seconds:g} s" if self.seconds else f"{self.days:g} day{'' if self.days == 1 else 's'}"
        noun = "request" if self.requests else "token"
        return f"{self.most} {noun}{'' if self.most == 1 else 's'} in {period}"


@dataclass(slots=True)
class UsageWindow:
    """What was used in the last period: amounts by slice, the oldest first."""

    limit: RateLimit
    amounts: deque[list[float]] = field(default_factory=deque)  # [number of the slice, amount]

    def used(self, now: float) -> float:
        """In any stretch of one period that ends now; a slice counts until all of it is too old."""
        while self.amounts and self._end(self.amounts[0][0]) <= now:
            self.amounts.popleft()
        return sum(amount for _, amount in self.amounts)

    def add(self, amount: float, now: float) -> list[float]:
        """Count an amount; the slice that it is in, from which some may be given back."""
        number = math.floor(now / self._width)
        if not self.amounts or self.amounts[-1][0] != number:
            self.amounts.append([number, 0.0])
        self.amounts[-1][1] += amount
        return self.amounts[-1]

    def wait(self, amount: float, now: float) -> float:
        """Seconds until there is room for an amount; 0 for now."""
        excess = self.used(now) + amount - self.limit.most
        if excess <= 0:
            return 0.0
        for number, freed in self.amounts:
            excess -= freed
            if excess <= 0:
                return self._end(number) - now
        return math.inf

    def reset(self, now: float) -> float:
        """Seconds until nothing counts any more."""
        return self._end(self.amounts[-1][0]) - now if self.amounts else 0.0

    @property
    def _width(self) -> float:
        return self.limit.period / SLICES

    def _end(self, number: float) -> float:
        return (number + 1) * self._width + self.limit.period


@dataclass(slots=True, eq=False)
class TokenReservation:
    """Tokens that a request may come to need, as they were counted; what it did not need is given back."""

    tokens: int
    slices: Sequence[list[float]]


class RateLimiter:
    """Counts what each key uses.

    Args:
        clock: Seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._windows: dict[tuple[str | None, RateLimit], UsageWindow] = {}

    def take_request(self, key: str | None, limits: Sequence[RateLimit]) -> None:
        """Count a request of a key.

        Raises:
            RequestError: 429 where it has had as many as it may.
        """
        self._take(key, [limit for limit in limits if limit.requests], 1)

    def reserve(self, key: str | None, limits: Sequence[RateLimit], tokens: int) -> TokenReservation:
        """Count all tokens that a request may come to need.

        Raises:
            RequestError: 429 where they are more than are left; 400 where they are more than there can ever be.
        """
        counted = [limit for limit in limits if limit.tokens]
        for limit in counted:
            if tokens > limit.most:
                raise RequestError(
                    400,
                    f"The request may come to {tokens} tokens, prompt and longest answer together, and the limit here "
                    f"is {limit}; shorten it, or lower max_tokens.",
                    code="tokens_too_many",
                    param="max_tokens",
                )
        return TokenReservation(tokens, self._take(key, counted, tokens))

    def settle(self, reservation: TokenReservation, used: int) -> None:
        """Give back what was reserved and not used; once for each reservation."""
        with self._lock:
            for amounts in reservation.slices:
                amounts[1] -= max(reservation.tokens - used, 0)
        reservation.slices = ()

    def headers(self, key: str | None, limits: Sequence[RateLimit]) -> dict[str, str]:
        """What OpenAI's clients read: of requests and tokens each the limit that is nearest."""
        out: dict[str, str] = {}
        with self._lock:
            now = self._clock()
            for kind in ("requests", "tokens"):
                windows = [self._window(key, limit) for limit in limits if getattr(limit, kind)]
                if windows:
                    nearest = min(windows, key=lambda window: 1 - window.used(now) / window.limit.most)
                    out[f"x-ratelimit-limit-{kind}"] = str(nearest.limit.most)
                    out[f"x-ratelimit-remaining-{kind}"] = str(max(int(nearest.limit.most - nearest.used(now)), 0))
                    out[f"x-ratelimit-reset-{kind}"] = go_duration(nearest.reset(now))
        return out

    def _take(self, key: str | None, limits: Sequence[RateLimit], amount: int) -> list[list[float]]:
        with self._lock:
            now = self._clock()
            windows = [self._window(key, limit) for limit in limits]
            fullest = max(windows, key=lambda window: window.wait(amount, now), default=None)
            wait = fullest.wait(amount, now) if fullest else 0.0
            if not fullest or wait <= 0:
                return [window.add(amount, now) for window in windows]
        raise RequestError(
            429,
            f"This is more than {fullest.limit}, which is the limit here; try again in {math.ceil(wait)} s.",
            code="rate_limit_exceeded",
            headers={
                "Retry-After": str(math.ceil(wait)),
                "retry-after-ms": str(math.ceil(wait * 1000)),
                **self.headers(key, limits),
            },
        )

    def _window(self, key: str | None, limit: RateLimit) -> UsageWindow:
        return self._windows.setdefault((key, limit), UsageWindow(limit))


def go_duration(seconds: float) -> str:
    """A time as OpenAI writes it: ``820ms``, ``6m0s``, ``23h59m59s``."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0) * 1000)}ms"
    minutes, rest_seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{rest_seconds}s"
