"""What a lane learns about its own pace: how fast its line moves, and how much of the demand is its."""

from __future__ import annotations

import math
from collections import deque

REPORT_EVERY = 1.0
"""Seconds between two reports of this pod's demand."""

HALF_LIFE = 5.0
"""Seconds after which an arrival counts half in this pod's demand."""


class DrainRate:
    """How fast the line has lately moved, in seconds per call, while it had something to move.

    Until it has been seen to move, the slots alone are assumed to set the pace: better to let someone
    wait in vain once than to refuse what a burst would have served.
    """

    def __init__(self, interval: float, remember: int = 32) -> None:
        self._interval = interval
        self._times: deque[float] = deque(maxlen=remember)

    def served(self, now: float, *, busy: bool) -> None:
        """A call left the line at `now`; the line is `busy` if others still wait."""
        if busy:
            self._times.append(now)
        else:
            self._times.clear()

    def wait(self, ahead: int, now: float) -> float:
        """Seconds until a call with so many ahead of it is likely to be served."""
        interval = self._interval
        if len(self._times) >= 4:
            interval = (now - self._times[0]) / len(self._times)
        return ahead * interval


class Demand:
    """This pod's arrivals, in calls per second, and its share of the fleet's as last heard."""

    def __init__(self) -> None:
        self._level = 0.0
        self._at = -math.inf
        self._reported_at = -math.inf
        self._reported = 0.0
        self.share = 1.0

    def arrived(self, now: float) -> None:
        """One call has come in."""
        self._decay(now)
        self._level += math.log(2) / HALF_LIFE

    def to_report(self, now: float) -> float:
        """Calls per second to report with the question at hand; 0 when it is not yet time."""
        if now - self._reported_at < REPORT_EVERY:
            return 0.0
        self._decay(now)
        self._reported_at, self._reported = now, max(self._level, 0.001)
        return self._reported

    def heard(self, fleet: float) -> None:
        """The fleet's demand from a verdict; 0 says nothing."""
        if fleet > 0 and self._reported > 0:
            self.share = min(1.0, self._reported / fleet)

    def _decay(self, now: float) -> None:
        if self._at > -math.inf:
            self._level *= 0.5 ** ((now - self._at) / HALF_LIFE)
        self._at = now
