"""The two shapes of a limit. Pure numbers: microseconds in, microseconds out.

*Window*: at most `limit` units in any period, counted in sub-buckets of `grain_us`; the eleventh of
`10/min` is refused. Exact timestamps (a grain of one microsecond) up to 32 units.

*Bucket*: the generic cell rate algorithm (GCRA, ITU-T I.371): `limit` units per period, evenly, of
which `burst` may come at once.

Numbers stay below 2⁵³, so that a script which knows only doubles computes the same; a shape that
would leave this range is refused with `ValueError` when it is made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

EXACT_UP_TO = 32
"""Windows of at most this many units keep every timestamp."""

EXACT_INTEGERS = 2**53
"""Doubles hold every integer below this."""


Mark = tuple[str, int, int, int]
"""The kind of a shape by its letter, and its numbers."""


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` units in any `period_us` microseconds.

    grain_us  width of a sub-bucket, ≥ 1: the window may refuse what would fit one grain later
    most      units that can ever come at once: the limit
    period    the period in seconds
    mark      tells it from every other shape, in numbers and text alone
    """

    limit: int
    period_us: int
    grain_us: int
    most: int = field(init=False, repr=False, compare=False)
    period: float = field(init=False, repr=False, compare=False)
    mark: Mark = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "most", self.limit)
        object.__setattr__(self, "mark", ("w", self.limit, self.period_us, self.grain_us))
        object.__setattr__(self, "period", self.period_us / 1_000_000)
        if self.limit < 1 or self.period_us < 1 or not 1 <= self.grain_us <= self.period_us:
            raise ValueError(f"{self}: limit ≥ 1, period_us ≥ 1 and 1 ≤ grain_us ≤ period_us are needed")

    @classmethod
    def of(cls, limit: int, period: float, *, grains: int = 20) -> Window:
        """A window of `limit` units per `period` seconds in `grains` sub-buckets (exact up to 32)."""
        period_us = round(period * 1_000_000)
        grain_us = 1 if limit <= EXACT_UP_TO else -(-period_us // grains)
        return cls(limit, period_us, grain_us)


@dataclass(frozen=True, slots=True)
class Bucket:
    """`limit` units per `period_us` microseconds, evenly paced, `burst` ≥ 1 of them at once.

    One unit takes `pace_us / pace_per` microseconds: period over limit in lowest terms, so that
    nothing is ever rounded. Where that does not fit into 2⁵³ for a whole burst, the time per unit is
    rounded up to a thousandth of a microsecond. `most` is the burst, as what can ever come at once,
    `period` the period in seconds, `mark` as of a window.
    """

    limit: int
    period_us: int
    burst: int
    pace_us: int = field(init=False, repr=False, compare=False)
    pace_per: int = field(init=False, repr=False, compare=False)
    most: int = field(init=False, repr=False, compare=False)
    period: float = field(init=False, repr=False, compare=False)
    mark: Mark = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.limit < 1 or self.period_us < 1 or self.burst < 1:
            raise ValueError(f"{self}: limit, period_us and burst must be ≥ 1")
        divisor = math.gcd(self.period_us, self.limit)
        pace, per = self.period_us // divisor, self.limit // divisor
        if self.burst * pace + per >= EXACT_INTEGERS:
            pace, per = -(-self.period_us * 1000 // self.limit), 1000
        if self.burst * pace + per >= EXACT_INTEGERS:
            raise ValueError(
                f"{self}: a burst lasting {self.burst * pace / per:.3g} µs cannot be counted"
            )
        object.__setattr__(self, "pace_us", pace)
        object.__setattr__(self, "pace_per", per)
        object.__setattr__(self, "most", self.burst)
        object.__setattr__(self, "mark", ("b", self.limit, self.period_us, self.burst))
        object.__setattr__(self, "period", self.period_us / 1_000_000)

    @classmethod
    def of(cls, limit: int, period: float, *, burst: int = 1) -> Bucket:
        """A bucket of `limit` units per `period` seconds that lets `burst` units through at once."""
        return cls(limit, round(period * 1_000_000), burst)


Shape = Window | Bucket

NEVER_US = -1
"""In place of a time: this cost never fits."""
