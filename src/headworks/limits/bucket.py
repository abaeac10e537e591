"""L units per period W, evenly, of which `burst` may come at once: the generic cell rate algorithm.

    E(c) = c·W/L                      time that c units take at the full rate
    τ    = E(burst)                   how far ahead of time the bucket may run
    a cost c fits at t when           max(TAT, t) + E(c) ≤ t + τ
    and then moves                    TAT ← max(TAT, t) + E(c)

Units: integer microseconds on the store's clock. TAT (theoretical arrival time) is kept as a whole
number of microseconds plus `rem`/`per` of one, exactly: rounding per unit would lose 25 % of
40,000,000/min, and rounding per question would let 58 of `59/min burst 59` through at once. Source:
ITU-T I.371 annex A, virtual scheduling; state and answer as in redis-cell.

TAT is a time, so a changed limit keeps what is owed; a fraction of another rate is rounded up.
"""

from __future__ import annotations

from typing import NamedTuple

from headworks.limits.shapes import NEVER_US, Bucket


class Level(NamedTuple):
    """TAT = `tat` + `rem`/`per` µs; `last` is the latest time at which anything was spent."""

    tat: int = 0
    last: int = 0
    rem: int = 0
    per: int = 1


IDLE = Level()


def _base(level: Level, shape: Bucket, t: int) -> tuple[int, int]:
    """max(TAT, t) in whole microseconds and `shape.pace_per`ths."""
    if level.tat < t:
        return t, 0
    if level.rem and level.per != shape.pace_per:
        return level.tat + 1, 0
    return level.tat, level.rem


def earliest(level: Level, shape: Bucket, cost: int, t: int) -> int:
    """The first time ≥ `t` at which `cost` units fit; `NEVER_US` when cost > burst."""
    if cost > shape.burst:
        return NEVER_US
    tat, rem = _base(level, shape, t)
    ahead = rem - (shape.burst - cost) * shape.pace_us  # of TAT, by 1/pace_per µs: when it fits
    return max(t, tat - (-ahead // shape.pace_per))


def spend(level: Level, shape: Bucket, cost: int, t: int, now: int) -> Level:
    """The level after `cost` units at `t`. (`now` is what a window needs; here it changes nothing.)"""
    if not cost:
        return level
    tat, rem = _base(level, shape, t)
    more, rem = divmod(rem + cost * shape.pace_us, shape.pace_per)
    return Level(tat + more, max(t, level.last), rem, shape.pace_per if rem else 1)


def remaining(level: Level, shape: Bucket, t: int) -> int:
    """Whole units that fit at `t`."""
    tat, rem = _base(level, shape, t)
    room = shape.burst * shape.pace_us - rem
    if (tat - t) * shape.pace_per >= room:
        return 0
    return (room - (tat - t) * shape.pace_per) // shape.pace_us


def clears(level: Level, shape: Bucket, t: int) -> int:
    """When the bucket is entirely unused again: `t` itself when it is."""
    return max(t, level.tat + (level.rem > 0))


def correct(level: Level, shape: Bucket, units: int, at: int, now: int) -> Level:
    """The level after a spending at `at` turned out `units` higher or (negative) lower.

    More moves TAT on, from `now` at least: the rest of the bucket waits until it is paid.

    Less moves TAT back by E(units), but only as far as later spendings have not overtaken it, which
    is `last` − `at` at most. One of them that found the bucket empty has not waited for what comes
    back, and giving it back all the same would let a later burst through on top of it. One that came
    within E(units) of `at` found at least the rest of that time standing. (x/time/rate's rule, too.)
    """
    if units >= 0:
        return spend(level, shape, units, now, now)._replace(last=max(level.last, at))
    if level.tat < now:
        return IDLE
    back = -units * shape.pace_us - max(0, level.last - at) * shape.pace_per
    if back <= 0:
        return level
    tat, rem = _base(level, shape, now)
    less, rem = divmod(rem - back, shape.pace_per)
    return Level(tat + less, level.last, rem, shape.pace_per if rem else 1)
