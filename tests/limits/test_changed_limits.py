"""A limit that changes, once or back and forth between policy versions: no free burst, no lock-out."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.limits import bucket, window
from headworks.limits.bucket import IDLE
from headworks.limits.shapes import NEVER_US, Bucket, Window

SECOND = 1_000_000

buckets = st.builds(
    Bucket, limit=st.integers(1, 500), period_us=st.integers(1_000, 10_000), burst=st.integers(1, 20)
)
windows = st.builds(
    Window,
    limit=st.integers(1, 40),
    period_us=st.just(5_000),
    grain_us=st.sampled_from([1, 100, 700]),
)
steps = st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 8), st.booleans()), max_size=60)


def _ahead(shape: Bucket) -> Fraction:
    return Fraction(shape.burst * shape.pace_us, shape.pace_per)


@given(buckets, buckets, steps)
def test_two_versions_of_a_bucket_share_one_state_fairly(
    one: Bucket, other: Bucket, steps: list[tuple[int, int, bool]]
) -> None:
    """No free burst: time spent in any stretch is its length and the longer burst, each unit at its
    own version's rate. No lock-out: nobody waits for more than the longer burst's time."""
    level, t, spent = IDLE, 1_000_000, list[tuple[int, Fraction]]()
    ahead = max(_ahead(one), _ahead(other))
    for pause, cost, first in steps:
        t += pause
        shape = one if first else other
        when = bucket.earliest(level, shape, cost, t)
        if when == NEVER_US:
            continue
        assert when - t <= ahead + len(spent), "a fraction of another rate is rounded up, by 1 µs each"
        if when == t and cost:
            level = bucket.spend(level, shape, cost, t, t)
            spent.append((t, Fraction(cost * shape.pace_us, shape.pace_per)))
    for i, (start, _) in enumerate(spent):
        taken = Fraction(0)
        for at, time in spent[i:]:
            taken += time
            assert taken <= at - start + ahead
    rested = t + int(ahead) + len(spent) + 1
    for shape in (one, other):
        assert bucket.remaining(level, shape, rested) == shape.burst


@given(windows, windows, steps)
def test_two_versions_of_a_window_share_one_state_fairly(
    one: Window, other: Window, steps: list[tuple[int, int, bool]]
) -> None:
    """No free burst: each version counts what was spent under the other. No lock-out: a period and a
    sub-bucket after the last spending, everything is free."""
    log, t, spent = window.EMPTY, 1_000_000, list[tuple[int, int]]()
    for pause, cost, first in steps:
        t += pause
        shape = one if first else other
        if cost and window.earliest(log, shape, cost, t) == t:
            log = window.spend(log, shape, cost, t, t)
            spent.append((t, cost))
            assert sum(c for at, c in spent if at > t - shape.period_us) <= shape.limit
    rested = t + one.period_us + max(one.grain_us, other.grain_us)
    for shape in (one, other):
        assert window.remaining(log, shape, rested) == shape.limit


@pytest.mark.parametrize(
    ("limit", "cost", "minutes"),
    [(59, 1, 600), (119, 1, 300), (7_000_000, 70_000, 60), (40_000_000, 99_999, 60)],
)
def test_a_rate_is_delivered_exactly_over_hours(limit: int, cost: int, minutes: int) -> None:
    shape, level = Bucket.of(limit, 60, burst=cost), IDLE
    start = t = 1_764_000_000_000_000
    spent, end = 0, start + minutes * 60 * SECOND
    while (t := bucket.earliest(level, shape, cost, t)) < end:
        level = bucket.spend(level, shape, cost, t, t)
        spent += cost
    due = limit * minutes
    assert due <= spent <= due + cost
