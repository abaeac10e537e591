"""What a bucket gives back: never too much, and all of it where it stayed busy."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headworks.limits import bucket
from headworks.limits.bucket import IDLE, Level
from headworks.limits.shapes import Bucket

SECOND = 1_000_000
D = 100_000
"""One unit of `TEN` takes so long."""

pauses = st.sampled_from([0, 1, 10]) | st.integers(0, 9_000)
steps = st.lists(
    st.tuples(
        pauses,
        st.integers(0, 12),
        st.integers(0, 12),
        st.integers(0, 60),
        st.sampled_from([0, 0, 1, 5_000]),
    ),
    max_size=60,
)


@settings(max_examples=400)
@given(st.integers(1, 12), st.integers(1, 30), steps)
def test_it_never_falls_below_what_the_kept_spendings_alone_had_led_to(
    limit: int, burst: int, steps: list[tuple[int, int, int, int, int]]
) -> None:
    """By the exact log of what was kept: TAT ≥ s + the units since, for every kept spending at s;
    and no stretch of time, in whatever order it was booked, holds more than its length and a burst."""
    shape, unit = Bucket(limit, 10_000, burst), Fraction(10_000, limit)
    level, t, spent = IDLE, 1_000_000, list[list[int]]()
    for pause, cost, back, which, later in steps:
        t += pause
        if cost := min(cost, burst):
            when = bucket.earliest(level, shape, cost, t) + later  # another limit may make it wait
            level = bucket.spend(level, shape, cost, when, t)
            spent.append([when, cost])
        if back and spent:
            entry = spent[which % len(spent)]
            units = min(back, entry[1])
            entry[1] -= units
            level = bucket.correct(level, shape, -units, entry[0], t)
        if level != IDLE:
            since = Fraction(0)
            for when, cost in reversed(spent):
                since += cost * unit
                assert not cost or level.tat + Fraction(level.rem, level.per) >= when + since
    tat = Fraction(0)
    for when, cost in sorted(spent):
        tat = max(tat, Fraction(when)) + cost * unit
        assert not cost or tat <= when + burst * unit


@pytest.mark.parametrize(("burst", "kept"), [(200_000, 0.97), (40_000, 0.97), (2_000, 0.49)])
def test_overestimates_cost_a_busy_bucket_nothing(burst: int, kept: float) -> None:
    """Calls estimated at twice what they turn out to cost, four seconds later, use the whole rate
    where the burst outlasts them; with a burst of one call the time has passed unused, and is lost.

    By the rule of `last` alone each of these used half of the rate.
    """
    shape, level, t = Bucket.of(200_000, 60, burst=burst), IDLE, 1_764_000_000_000_000
    start, under_way, used = t, list[int](), 0
    while t < start + 600 * SECOND:
        t = bucket.earliest(level, shape, 2_000, t)
        while under_way and under_way[0] + 4 * SECOND <= t:
            at = under_way.pop(0)
            level = bucket.correct(level, shape, -1_000, at, at + 4 * SECOND)
        t = bucket.earliest(level, shape, 2_000, max(t, start))
        level = bucket.spend(level, shape, 2_000, t, t)
        under_way.append(t)
        used += 1_000
    assert kept * 2_000_000 <= used <= 2_000_000 + burst


def test_a_bucket_that_ran_empty_gives_nothing_back() -> None:
    shape, level = Bucket.of(10, 10, burst=10), IDLE
    level = bucket.spend(level, shape, 1, 0, 0)
    level = bucket.correct(level, shape, -1, 0, 0)  # from here on it keeps marks
    level = bucket.spend(level, shape, 5, SECOND, SECOND)
    level = bucket.spend(level, shape, 5, 20 * SECOND, 20 * SECOND)
    before = level.tat
    assert bucket.correct(level, shape, -5, SECOND, 20 * SECOND).tat == before


def test_marks_are_kept_only_where_something_was_given_back() -> None:
    shape = Bucket.of(10, 10, burst=10)
    level = bucket.spend(bucket.spend(IDLE, shape, 3, 0, 0), shape, 3, 1, 1)
    assert level.marks == ()
    assert len(bucket.correct(level, shape, -1, 0, 2).marks) == 1


# The table of reservations and cancellations of x/time/rate, in tenths of a second: ten a second,
# `burst` at once. "take": units, asked at, granted for. "back": which of the grants, at.
# Where ours differs from it, the reason stands beside.
TEN = 10
RESERVATIONS: dict[str, tuple[int, list[tuple[str, int, int, int]]]] = {
    "two at a time": (2, [("take", 2, 0, 0), ("take", 2, 0, 2), ("take", 2, 3, 4)]),
    "the last is cancelled": (
        2,
        [("take", 2, 0, 0), ("take", 2, 0, 2), ("back", 1, 1, 0), ("take", 2, 1, 2)],
    ),
    "cancelled after its time": (  # there: too late, nothing returns; here, what nobody used does
        2,
        [("take", 2, 0, 0), ("take", 2, 0, 2), ("back", 1, 3, 0), ("take", 2, 3, 3)],
    ),
    "overtaken by as much": (
        2,
        [("take", 2, 0, 0), ("take", 1, 0, 1), ("take", 1, 0, 2), ("back", 1, 0, 0), ("take", 1, 0, 3)],
    ),
    "overtaken by half": (
        2,
        [("take", 2, 0, 0), ("take", 2, 0, 2), ("take", 1, 0, 3), ("back", 1, 2, 0), ("take", 2, 2, 4)],
    ),
    "two of four are cancelled": (  # there: t5, as the last one's time is known; here its time stands
        4,
        [
            ("take", 4, 0, 0),
            ("take", 3, 0, 3),
            ("take", 1, 0, 4),
            ("take", 1, 0, 5),
            ("back", 3, 1, 0),
            ("back", 1, 1, 0),
            ("take", 3, 1, 6),
        ],
    ),
}


@pytest.mark.parametrize("case", RESERVATIONS)
def test_reservations_and_cancellations(case: str) -> None:
    burst, script = RESERVATIONS[case]
    shape, level, granted = Bucket.of(TEN, 1, burst=burst), IDLE, list[tuple[int, int]]()
    for what, first, t, due in script:
        now = SECOND + t * D
        if what == "take":
            when = bucket.earliest(level, shape, first, now)
            assert when == SECOND + due * D
            level = bucket.spend(level, shape, first, when, now)
            granted.append((when, first))
        else:
            when, cost = granted[first]
            level = bucket.correct(level, shape, -cost, when, now)


def test_what_never_fits_books_nothing_to_cancel() -> None:
    shape = Bucket.of(TEN, 1, burst=2)
    level = bucket.spend(IDLE, shape, 2, SECOND, SECOND)
    assert bucket.earliest(level, shape, 3, SECOND) == -1
    assert bucket.earliest(level, shape, 2, SECOND) == SECOND + 2 * D


# The published vectors of the cell rate algorithm: one a second, five at once.
# ms, cost, limited, remaining, reset s, retry s (-1: never, None: not limited)
VECTORS: list[tuple[int, int, bool, int, float, float | None]] = [
    (0, 6, True, 5, 0, -1),
    (0, 1, False, 4, 1, None),
    (0, 1, False, 3, 2, None),
    (0, 1, False, 2, 3, None),
    (0, 1, False, 1, 4, None),
    (0, 1, False, 0, 5, None),
    (0, 1, True, 0, 5, 1),
    (3000, 1, False, 2, 3, None),
    (3100, 1, False, 1, 3.9, None),
    (4000, 1, False, 1, 4, None),
    (8000, 1, False, 4, 1, None),
    (9500, 1, False, 4, 1, None),
    (9500, 0, False, 4, 1, None),
    (9500, 2, False, 2, 3, None),
    (9500, 5, True, 2, 3, 3),
    (9500, 6, True, 2, 3, -1),
]


def test_the_published_vectors_of_the_cell_rate_algorithm() -> None:
    shape, level = Bucket.of(1, 1, burst=5), IDLE
    for step, (ms, cost, limited, remaining, reset, retry) in enumerate(VECTORS):
        now = SECOND + ms * 1000
        when = bucket.earliest(level, shape, cost, now)
        assert (when != now) == limited, step
        if retry is not None:
            assert when == (-1 if retry == -1 else now + retry * SECOND), step
        else:
            level = bucket.spend(level, shape, cost, now, now)
        assert bucket.remaining(level, shape, now) == remaining, step
        assert bucket.clears(level, shape, now) - now == pytest.approx(reset * SECOND), step


def test_a_clock_that_jumps_back_makes_nobody_wait_longer_than_the_jump() -> None:
    shape = Bucket.of(1, 1, burst=5)
    level = bucket.spend(IDLE, shape, 1, 100 * SECOND, 100 * SECOND)
    assert bucket.earliest(level, shape, 1, 99 * SECOND) == 99 * SECOND
    level = bucket.spend(level, shape, 1, 99 * SECOND, 99 * SECOND)
    assert level == Level(102 * SECOND, 100 * SECOND)
