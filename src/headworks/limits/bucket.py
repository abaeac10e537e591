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

What may come back. Let b(i) be the backlog max(0, TAT − s) that the spending i at s found. Units u
spent at `at` may be taken off TAT as long as TAT stays ahead of what each later spending alone has led
to, s + the units since, which is the case for

    r = min(E(u), b(i) of every later i)         exact: as if the units had never been spent
    r = E(u) − (last − at)                       what is known of b without looking (x/time/rate)

so a bucket that has been busy since gives everything back, and one that ran empty in between gives
nothing back: its time has passed unused. Once something has been given back, the level keeps marks, a
lower bound of b for two spans of time; the greater r of the two rules holds.
"""

from __future__ import annotations

from typing import NamedTuple

from headworks.limits.shapes import NEVER_US, Bucket


class Mark(NamedTuple):
    """Every spending but the first of those after the time `since` found a backlog of ≥ `low` µs."""

    since: int
    low: int


class Level(NamedTuple):
    """TAT = `tat` + `rem`/`per` µs; `last` is the latest time at which anything was spent.

    marks  up to two, the newer first; none as long as nothing has ever been given back
    """

    tat: int = 0
    last: int = 0
    rem: int = 0
    per: int = 1
    marks: tuple[Mark, ...] = ()


IDLE = Level()

UNTOUCHED = 2**52
"""`low` of a mark after which nothing has been spent, or once only; more than any backlog."""


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
    marks = _marked(level, t) if level.marks else ()
    return Level(tat + more, max(t, level.last), rem, shape.pace_per if rem else 1, marks)


def _marked(level: Level, t: int) -> tuple[Mark, ...]:
    """The marks after a spending at `t`.

    An empty bucket begins them anew. Where the newer mark remembers less than half of the backlog
    that stands now, a third takes its place, and it the older one's.
    """
    backlog = level.tat - t
    if backlog <= 0:
        return (Mark(level.last, UNTOUCHED),)
    newer, *older = level.marks
    if newer.since == level.last:  # nothing later has been spent before: this is the first
        return (newer, *(Mark(since, min(low, backlog)) for since, low in older))
    if 2 * newer.low < backlog:
        return Mark(level.last, UNTOUCHED), newer
    return tuple(Mark(since, min(low, backlog)) for since, low in level.marks)


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

    More moves TAT on, from `now` at least: the rest of the bucket waits until it is paid. Less moves
    TAT back by what the module's rules leave of E(units). `shape` is the one that was spent under.
    """
    if units >= 0:
        return spend(level, shape, units, now, now)._replace(last=max(level.last, at))
    if level.tat < now:
        return IDLE
    per = shape.pace_per
    back = -units * shape.pace_us
    known = next((low for since, low in level.marks if at > since), 0)
    back = max(back - max(0, level.last - at) * per, min(back, known * per))
    less = -(-back // per)
    marks = [Mark(since, max(0, low - less)) for since, low in level.marks]
    level = level._replace(marks=tuple(marks) or (Mark(level.last, UNTOUCHED),))
    if back <= 0:
        return level
    tat, rem = _base(level, shape, now)
    whole, rem = divmod(rem - back, per)
    return level._replace(tat=tat + whole, rem=rem, per=per if rem else 1)
