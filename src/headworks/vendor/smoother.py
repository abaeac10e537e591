"""The optional local smoother: this pod asks for bookings evenly, never in bursts.

`next_at = max(now, next_at) + period / amount`: a pace, not a bucket, so nothing is saved up.
"""

from __future__ import annotations


class Smoother:
    """Spaces bookings `interval` seconds apart; an interval of 0 lets everything through."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._next_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next booking may be asked for, at `now` on the loop's clock."""
        return max(0.0, self._next_at - now)

    def pass_one(self, now: float) -> None:
        """A booking was granted at `now`."""
        self._next_at = max(now, self._next_at) + self._interval
