"""The bucket against its definition in exact fractions; rates that rounding would spoil."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headworks.limits import bucket
from headworks.limits.bucket import IDLE, Level
from headworks.limits.shapes import NEVER_US, Bucket

SECOND = 1_000_000

shapes = st.builds(
    Bucket, limit=st.integers(1, 5_000), period_us=st.integers(1, 10_000), burst=st.integers(1, 30)
)
steps = st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 35)), max_size=60)


@given(shapes, steps)
def test_it_is_the_cell_rate_algorithm_in_exact_numbers(
    shape: Bucket, steps: list[tuple[int, int]]
) -> None:
    level, tat, t = IDLE, Fraction(0), 1_000_000
    unit = Fraction(shape.period_us, shape.limit)
    for pause, cost in steps:
        t += pause
        fits = cost <= shape.burst and max(tat, t) + cost * unit <= t + shape.burst * unit
        assert (bucket.earliest(level, shape, cost, t) == t) == fits
        room = (t + shape.burst * unit - max(tat, t)) // unit
        assert bucket.remaining(level, shape, t) == max(0, room)
        if fits and cost:
            level = bucket.spend(level, shape, cost, t, t)
            tat = max(tat, Fraction(t)) + cost * unit


@given(shapes, steps, st.integers(1, 35))
def test_the_earliest_time_is_exact(shape: Bucket, steps: list[tuple[int, int]], cost: int) -> None:
    """A microsecond before it the cost does not fit, at it it does."""
    level, t = IDLE, 1_000_000
    for pause, units in steps:
        t += pause
        if bucket.earliest(level, shape, units, t) == t:
            level = bucket.spend(level, shape, units, t, t)
    when = bucket.earliest(level, shape, cost, t)
    if cost > shape.burst:
        assert when == NEVER_US
        return
    assert bucket.earliest(level, shape, cost, when) == when
    if when > t:
        assert bucket.earliest(level, shape, cost, when - 1) == when


@given(st.integers(1, 10**8), st.integers(1, 10**11), st.integers(1, 2_000))
def test_exactly_the_burst_fits_into_an_idle_bucket(limit: int, period_us: int, burst: int) -> None:
    shape, level, t = Bucket(limit, period_us, burst), IDLE, 1_764_000_000_000_000
    for _ in range(burst):
        assert bucket.earliest(level, shape, 1, t) == t
        level = bucket.spend(level, shape, 1, t, t)
    assert bucket.remaining(level, shape, t) == 0
    assert bucket.earliest(level, shape, 1, t) > t


@pytest.mark.parametrize(
    ("limit", "cost", "burst"), [(59, 1, 1), (119, 1, 1), (7_000_000, 1, 2), (40_000_000, 700, 700)]
)
def test_a_rate_is_delivered_in_full(limit: int, cost: int, burst: int) -> None:
    """Whole-second or per-unit rounding once lost half of 59/min and a quarter of 40,000,000/min."""
    shape, level = Bucket.of(limit, 60, burst=burst), IDLE
    start = t = 1_764_000_000_000_000
    spent = 0
    length = 60 * SECOND if limit < 1000 else SECOND // 5
    while (t := bucket.earliest(level, shape, cost, t)) < start + length:
        level = bucket.spend(level, shape, cost, t, t)
        spent += cost
    due = limit * length / (60 * SECOND)
    assert due <= spent <= due + burst


def test_a_change_of_rate_keeps_what_is_owed() -> None:
    """Neither a free burst nor a lock-out: TAT is a time."""
    fast, slow = Bucket.of(60, 60, burst=10), Bucket.of(6, 60, burst=10)
    level = bucket.spend(IDLE, fast, 10, 0, 0)
    assert bucket.earliest(level, fast, 1, 0) == SECOND
    assert bucket.remaining(level, slow, 0) == 9
    assert bucket.earliest(level, slow, 10, 0) == 10 * SECOND


def test_a_remainder_of_another_rate_is_rounded_up() -> None:
    level = bucket.spend(IDLE, Bucket(3, 1_000, 1), 1, 0, 0)
    assert level == Level(333, 0, 1, 3)
    assert bucket.earliest(level, Bucket(7, 1_000, 1), 1, 0) == 334


def test_numbers_that_no_double_could_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be counted"):
        Bucket.of(1, 86_400 * 366, burst=10**6)
    Bucket.of(1_234_567, 86_400, burst=1_234_567)  # a daily quota is well within


def test_what_is_given_back_at_once_is_as_if_never_spent() -> None:
    shape = Bucket.of(59, 60, burst=59)
    level = bucket.spend(IDLE, shape, 59, SECOND, SECOND)
    level = bucket.correct(level, shape, -1, SECOND, SECOND)
    assert bucket.remaining(level, shape, SECOND) == 1
    assert bucket.earliest(level, shape, 1, SECOND) == SECOND


def test_what_others_have_overtaken_is_not_given_back() -> None:
    """One at a time, sent at 0, 1 and 2: giving the first back must not let a fourth go at 2, too."""
    shape, level = Bucket.of(1, 1), IDLE
    for t in (0, 1, 2):
        assert bucket.earliest(level, shape, 1, 0) == t * SECOND
        level = bucket.spend(level, shape, 1, t * SECOND, 0)
    level = bucket.correct(level, shape, -1, 0, 0)
    assert bucket.earliest(level, shape, 1, 0) == 3 * SECOND


def test_what_was_not_yet_overtaken_comes_back() -> None:
    """Ten seconds' worth of thirty was overtaken by whoever came ten seconds later."""
    shape = Bucket.of(100, 100, burst=50)
    level = bucket.spend(IDLE, shape, 50, 0, 0)
    level = bucket.spend(level, shape, 10, 10 * SECOND, 10 * SECOND)
    level = bucket.correct(level, shape, -30, 0, 11 * SECOND)
    assert bucket.clears(level, shape, 11 * SECOND) == 40 * SECOND


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(1, 8), st.integers(0, 8)), max_size=40))
def test_giving_back_never_admits_what_the_vendor_would_refuse(
    steps: list[tuple[int, int, int]],
) -> None:
    """A vendor that had only ever seen what was kept stays within its bucket, whatever comes back."""
    shape, level, t = Bucket(10, 10_000, 8), IDLE, 1_000_000
    spent: list[list[int]] = []
    for pause, cost, back in steps:
        t += pause
        when = bucket.earliest(level, shape, cost, t)
        level = bucket.spend(level, shape, cost, when, t)
        spent.append([when, cost])
        if back and len(spent) > 1:
            entry = spent[back % len(spent)]
            units = min(back, entry[1])
            level = bucket.correct(level, shape, -units, entry[0], t)
            entry[1] -= units
    tat = 0
    for when, cost in sorted(spent):
        tat = max(tat, when) + cost * 1_000
        assert not cost or tat <= when + shape.burst * 1_000


def test_a_charge_on_top_is_paid_before_anything_else() -> None:
    shape = Bucket.of(60, 60, burst=5)
    level = bucket.spend(IDLE, shape, 5, 0, 0)
    level = bucket.correct(level, shape, 20, 0, SECOND)
    assert bucket.remaining(level, shape, SECOND) == 0
    assert bucket.earliest(level, shape, 1, SECOND) == 21 * SECOND
