"""What the fake vendor counted: the source of `GET /stats`."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from headworks.testing.fake_vendor.judge import Judge, Limit

SERIES = 3600
"""Seconds of per-second counts that are kept."""

RECENT = 10
"""Seconds over which `accepted_per_second` is averaged."""


class Ledger:
    """Counts decisions and endings. Times are microseconds on the judge's clock."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Start counting anew. Calls in flight stay in flight; limits keep their state."""
        self.accepted = self.failed = self.streams_closed_early = 0
        self.rejected: Counter[str] = Counter()
        self.highest_in_flight = self.in_flight
        self.first_us: int | None = None
        self._units: Counter[Limit] = Counter()
        self._series: deque[int] = deque(maxlen=SERIES)
        self._second = 0

    def accept(self, charged: dict[Limit, int], now_us: int) -> None:
        self.accepted += 1
        self._units.update(charged)
        if self.first_us is None:
            self.first_us = now_us
        self._roll(now_us)
        self._series[-1] += 1

    def _roll(self, now_us: int) -> None:
        second = (now_us - (now_us if self.first_us is None else self.first_us)) // 1_000_000
        missing = second - self._second if self._series else 1
        self._series.extend([0] * min(missing, SERIES))
        self._second = second

    def begin(self) -> None:
        self.in_flight += 1
        self.highest_in_flight = max(self.highest_in_flight, self.in_flight)

    def end(self) -> None:
        self.in_flight -= 1

    def as_json(self, judge: Judge, now_us: int) -> dict[str, Any]:
        """The statistics; every count is since the start or the last reset."""
        if self.first_us is not None:
            self._roll(now_us)
        recent = list(self._series)[-RECENT:]
        return {
            "accepted": self.accepted,
            "rejected": dict.fromkeys(("requests", "tokens", "concurrency"), 0) | dict(self.rejected),
            "failed": self.failed,
            "in_flight": self.in_flight,
            "highest_in_flight": self.highest_in_flight,
            "streams_closed_early": self.streams_closed_early,
            "accepted_per_second": round(sum(recent) / len(recent), 3) if recent else 0.0,
            "seconds": 0.0 if self.first_us is None else (now_us - self.first_us) / 1e6,
            "utilisation": self._utilisation(judge, now_us),
            "series": list(self._series),
        }

    def _utilisation(self, judge: Judge, now_us: int) -> dict[str, dict[str, float]]:
        """Per limit, since the first accepted call.

        allowed      units the mechanism could have accepted, every burst included
        utilisation  accepted / allowed
        of_rate      accepted / (amount · elapsed / window): against the plain rate, bursts left out
        """
        shares: dict[str, dict[str, float]] = {}
        for limit, meter in judge.meters:
            accepted, since = self._units[limit], now_us if self.first_us is None else self.first_us
            plain = limit.amount * (now_us - since) / limit.window_us
            allowed = meter.most(since, now_us)
            shares[limit.name] = {
                "accepted": accepted,
                "allowed": allowed,
                "utilisation": round(accepted / allowed, 4),
                "of_rate": round(accepted / plain, 4) if plain else 0.0,
            }
        return shares
