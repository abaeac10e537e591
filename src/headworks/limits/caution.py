"""What a line learns from those who waited in vain: to foresee longer waits, for a while.

An estimate of a wait cannot know who else will come and overtake. Each time somebody has waited in vain,
estimates are taken for `CAUTION` as long, `MOST_CAUTION` at most, and then less so with a half-life of
`FORGET` seconds.
"""

from __future__ import annotations

import math

CAUTION = 1.5
MOST_CAUTION = 6.0
FORGET = 120.0


class Caution:
    """How much longer than estimated a wait is taken to be."""

    def __init__(self) -> None:
        self._factor, self._at = 1.0, -math.inf

    def now(self, now: float) -> float:
        """The factor, 1 to `MOST_CAUTION`."""
        if self._factor <= 1.0:
            return 1.0
        return 1.0 + (self._factor - 1.0) * math.exp2((self._at - now) / FORGET)

    def in_vain(self, joined_at: float, now: float) -> None:
        """Somebody has waited in vain since `joined_at`; who joined before the last lesson has none."""
        if joined_at >= self._at:
            self._factor, self._at = min(self.now(now) * CAUTION, MOST_CAUTION), now
