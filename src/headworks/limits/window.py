"""At most L units in any period W: a log, coarsened into sub-buckets that err only to the safe side.

    a unit spent at t is remembered at    e(t) = ⌊t/g⌋·g + g − 1      the last µs of its sub-bucket
    it counts at time t as long as        e > t − W                   so it is freed exactly at e + W
    a cost c fits at t when               c + Σ counting units ≤ L

Units: t, W and the grain g in integer microseconds on the store's clock. Source: the exact sliding
log (g = 1 is the log itself); t ≤ e(t) < t + g gives the two bounds: it never admits what a log over
W refuses, and never refuses what a log over W + g admits.

Units booked for a later time count at every earlier one, too: whoever fits under them fits in every
period that contains both. The state holds times and units only, no rate, so a changed limit meets
what was really spent, and policies that differ in limit or grain may share it.
"""

from __future__ import annotations

from headworks.limits.shapes import NEVER_US, Window

Entry = tuple[int, int]
"""(last microsecond of the sub-bucket, units spent in it)"""

Log = tuple[Entry, ...]
"""Entries by rising time, one per sub-bucket."""

EMPTY: Log = ()


def _end(shape: Window, at: int) -> int:
    return at - at % shape.grain_us + shape.grain_us - 1


def live(log: Log, shape: Window, t: int) -> Log:
    """The entries that still count at `t`."""
    gone, horizon = 0, t - shape.period_us
    while gone < len(log) and log[gone][0] <= horizon:
        gone += 1
    return log[gone:] if gone else log


def earliest(log: Log, shape: Window, cost: int, t: int) -> int:
    """The first time ≥ `t` at which `cost` units fit; `NEVER_US` when cost > limit."""
    if cost > shape.limit:
        return NEVER_US
    counting = live(log, shape, t)
    excess = cost - shape.limit + sum(units for _, units in counting)
    if excess <= 0:
        return t
    oldest = 0
    while excess > counting[oldest][1]:  # all together free `limit` at least, and excess is no more
        excess -= counting[oldest][1]
        oldest += 1
    return counting[oldest][0] + shape.period_us


def spend(log: Log, shape: Window, cost: int, t: int, now: int) -> Log:
    """The log after `cost` units at `t` ≥ `now`; what no longer counts at `now` is dropped."""
    return _add(live(log, shape, now), _end(shape, t), cost)


def _add(log: Log, end: int, units: int) -> Log:
    if not units:
        return log
    place = len(log)
    while place and log[place - 1][0] >= end:
        place -= 1
    if place < len(log) and log[place][0] == end:
        return (*log[:place], (end, log[place][1] + units), *log[place + 1 :])
    return (*log[:place], (end, units), *log[place:])


def remaining(log: Log, shape: Window, t: int) -> int:
    """Whole units that fit at `t`."""
    return max(0, shape.limit - sum(units for _, units in live(log, shape, t)))


def clears(log: Log, shape: Window, t: int) -> int:
    """When everything spent so far has been freed: `t` itself when nothing counts."""
    return max(t, log[-1][0] + shape.period_us) if log else t


def correct(log: Log, shape: Window, units: int, at: int, now: int) -> Log:
    """The log after a spending at `at` turned out `units` higher or (negative) lower.

    More is added to the sub-bucket of `at`, even past the limit, unless that has been freed: then a
    log over W would not count it either. Less comes out of that sub-bucket as far as it has units.
    """
    end = _end(shape, at)
    log = live(log, shape, now)
    if end <= now - shape.period_us:
        return log
    if units >= 0:
        return _add(log, end, units)
    kept = ((e, u + units if e == end else u) for e, u in log)
    return tuple((e, u) for e, u in kept if u > 0)
