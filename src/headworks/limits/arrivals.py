"""How often something has lately happened: a level that every arrival lifts and time lets sink.

An arrival adds ln 2 / H to the level, which halves every H = `HALF_LIFE` seconds; under a steady rate
its mean is that rate, per second.
"""

from __future__ import annotations

import math

HALF_LIFE = 5.0
"""Seconds after which an arrival counts half, unless told otherwise."""


class Arrivals:
    """How often something has lately happened, per second."""

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._level, self._at, self._half_life = 0.0, -math.inf, half_life

    def arrived(self, now: float) -> None:
        """It has happened once more."""
        self._level = self.now(now) + math.log(2) / self._half_life
        self._at = now

    def now(self, now: float) -> float:
        """Times per second."""
        return self._level * 0.5 ** ((now - self._at) / self._half_life) if self._level else 0.0
