"""The two shapes of a limit. Pure numbers: microseconds in, microseconds out.

*Window*: at most `limit` units in any period, counted in sub-buckets of `grain_us`; the eleventh of
`10/min` is refused. Exact timestamps (a grain of one microsecond) up to 32 units.

*Bucket*: the generic cell rate algorithm (GCRA, ITU-T I.371): `limit` units per period, evenly, of
which `burst` may come at once.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT_UP_TO = 32
"""Windows of at most this many units keep every timestamp."""


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` units in any `period_us` microseconds.

    grain_us  width of a sub-bucket, ≥ 1: the window may refuse what would fit one grain later
    """

    limit: int
    period_us: int
    grain_us: int

    @classmethod
    def of(cls, limit: int, period: float, *, grains: int = 20) -> Window:
        """A window of `limit` units per `period` seconds in `grains` sub-buckets (exact up to 32)."""
        period_us = round(period * 1_000_000)
        grain_us = 1 if limit <= EXACT_UP_TO else -(-period_us // grains)
        return cls(limit, period_us, grain_us)


@dataclass(frozen=True, slots=True)
class Bucket:
    """`limit` units per `period_us` microseconds, evenly paced, `burst` ≥ 1 of them at once."""

    limit: int
    period_us: int
    burst: int

    @classmethod
    def of(cls, limit: int, period: float, *, burst: int = 1) -> Bucket:
        """A bucket of `limit` units per `period` seconds that lets `burst` units through at once."""
        return cls(limit, round(period * 1_000_000), burst)


Shape = Window | Bucket
