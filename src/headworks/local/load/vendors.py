"""What the vendors themselves counted during a run, from their `GET /stats`.

The vendor is the judge of the whole stack: only it knows how many calls arrived within its limits.
Its counts run since its own start; a watch adds up what they grew by, and goes on from zero when a
vendor has been restarted.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from headworks.local.load.wire import Broken, Client, loopback

POLL = 1.0
"""Seconds between two looks at a vendor's count."""


@dataclass(frozen=True, slots=True)
class VendorCount:
    """One vendor's count of a run.

    rejected           calls it refused, by reason
    highest_in_flight  since its own start
    utilisation        per limit: units accepted while requests were being sent / what the plain rate
                       allows in that time
    restarts           times it came back with a fresh count
    answered           whether `/stats` could ever be read
    """

    name: str
    answered: bool
    accepted: int
    rejected: dict[str, int]
    failed: int
    highest_in_flight: int
    streams_closed_early: int
    utilisation: dict[str, float]
    restarts: int


class VendorWatch:
    """Follows one vendor's `/stats`. `url` is the vendor's address, on loopback."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        host, port = loopback(url)
        self._request = f"GET /stats HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        self._client = Client(host, port, timeout=2.0)
        self._last: dict[str, Any] | None = None
        self._grown: Counter[str] = Counter()
        self._rejected: Counter[str] = Counter()
        self._units: Counter[str] = Counter()
        self._used: dict[str, float] = {}
        self._highest = self._restarts = 0

    async def look(self) -> None:
        """Read the count once; a vendor that does not answer keeps its last one."""
        try:
            answer = await self._client.exchange(self._request)
            stats = json.loads(answer.body)
            self._add(stats)
        except (Broken, ValueError, KeyError, TypeError):
            return

    def _add(self, stats: dict[str, Any]) -> None:
        """Add what the count grew by since the last look; the first look is where counting starts."""
        last = self._last if self._last is not None else stats
        if stats["seconds"] < last["seconds"]:
            self._restarts += 1
            last = {
                "accepted": 0,
                "failed": 0,
                "streams_closed_early": 0,
                "rejected": {},
                "utilisation": {},
            }
        for name in ("accepted", "failed", "streams_closed_early"):
            self._grown[name] += stats[name] - last[name]
        for reason, count in stats["rejected"].items():
            self._rejected[reason] += count - last["rejected"].get(reason, 0)
        for limit, used in stats["utilisation"].items():
            before = last["utilisation"].get(limit, {"accepted": 0})
            self._units[limit] += used["accepted"] - before["accepted"]
        self._highest = max(self._highest, stats["highest_in_flight"])
        self._last = stats

    def mark(self, seconds: float) -> None:
        """Take the utilisation now, after so many seconds of sending."""
        stats = self._last or {"utilisation": {}}
        for limit, used in stats["utilisation"].items():
            if used["of_rate"] > 0 and stats["seconds"] > 0:
                rate = used["accepted"] / used["of_rate"] / stats["seconds"]
                self._used[limit] = round(self._units[limit] / (rate * seconds), 4)

    async def follow(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(POLL)

    def count(self) -> VendorCount:
        """The count so far."""
        return VendorCount(
            self.name,
            self._last is not None,
            self._grown["accepted"],
            {reason: count for reason, count in self._rejected.items() if count},
            self._grown["failed"],
            self._highest,
            self._grown["streams_closed_early"],
            dict(self._used),
            self._restarts,
        )

    def close(self) -> None:
        self._client.close()
