"""The window against an exact log, on both sides; and what its times promise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headworks.limits import window
from headworks.limits.shapes import NEVER_US, Window

SECOND = 1_000_000

shapes = st.builds(
    Window,
    limit=st.integers(1, 40),
    period_us=st.integers(100, 10_000),
    grain_us=st.integers(1, 100),
)
steps = st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 12)), max_size=60)


def _spent(history: list[tuple[int, int]], t: int, period_us: int) -> int:
    return sum(units for at, units in history if at > t - period_us)


@given(shapes, steps)
def test_it_lies_between_the_exact_logs_over_w_and_over_w_plus_a_grain(
    shape: Window, steps: list[tuple[int, int]]
) -> None:
    """What a log over W refuses is never admitted, what one over W + grain admits never refused."""
    log, exact, t = window.EMPTY, [], 1_000_000
    for pause, cost in steps:
        t += pause
        admitted = window.earliest(log, shape, cost, t) == t
        if admitted:
            assert _spent(exact, t, shape.period_us) + cost <= shape.limit
            log = window.spend(log, shape, cost, t, t)
            exact.append((t, cost))
        else:
            assert _spent(exact, t, shape.period_us + shape.grain_us) + cost > shape.limit


@given(shapes, steps, st.integers(1, 40))
def test_the_earliest_time_is_exact(shape: Window, steps: list[tuple[int, int]], cost: int) -> None:
    """A microsecond before it the cost does not fit, at it and ever after it does."""
    log, t = window.EMPTY, 1_000_000
    for pause, units in steps:
        t += pause
        if window.earliest(log, shape, units, t) == t:
            log = window.spend(log, shape, units, t, t)
    when = window.earliest(log, shape, cost, t)
    if cost > shape.limit:
        assert when == NEVER_US
        return
    assert window.earliest(log, shape, cost, when) == when
    assert window.earliest(log, shape, cost, when + 1) == when + 1
    if when > t:
        assert window.earliest(log, shape, cost, when - 1) == when


@given(shapes, steps)
def test_bookings_ahead_of_time_keep_every_period_within_the_limit(
    shape: Window, steps: list[tuple[int, int]]
) -> None:
    """However early or late a booking is placed, no period of length W holds more than the limit."""
    log, booked, t = window.EMPTY, [], 1_000_000
    for pause, cost in steps:
        t += pause % 50
        when = window.earliest(log, shape, cost, t)
        if cost and when != NEVER_US:
            when += pause  # another limit may push it further out
            log = window.spend(log, shape, cost, when, t)
            booked.append((when, cost))
    for end, _ in booked:
        assert sum(c for at, c in booked if end - shape.period_us < at <= end) <= shape.limit


def test_the_eleventh_of_ten_a_minute_is_refused_until_the_first_is_a_minute_old() -> None:
    shape, log = Window.of(10, 60), window.EMPTY
    for t in range(10):
        assert window.earliest(log, shape, 1, t * SECOND) == t * SECOND
        log = window.spend(log, shape, 1, t * SECOND, t * SECOND)
    assert window.earliest(log, shape, 1, 59 * SECOND) == 60 * SECOND
    assert window.earliest(log, shape, 3, 59 * SECOND) == 62 * SECOND


def test_what_is_given_back_leaves_the_sub_bucket_it_came_from() -> None:
    shape = Window(100, 60 * SECOND, 3 * SECOND)
    log = window.spend(window.EMPTY, shape, 60, SECOND, SECOND)
    log = window.spend(log, shape, 40, 20 * SECOND, 20 * SECOND)
    log = window.correct(log, shape, -30, SECOND, 21 * SECOND)
    assert log == ((3 * SECOND - 1, 30), (21 * SECOND - 1, 40))
    assert window.remaining(log, shape, 21 * SECOND) == 30


def test_more_than_was_spent_cannot_be_given_back() -> None:
    shape = Window(100, 60 * SECOND, 3 * SECOND)
    log = window.spend(window.EMPTY, shape, 10, SECOND, SECOND)
    log = window.spend(log, shape, 50, 20 * SECOND, 20 * SECOND)
    log = window.correct(log, shape, -30, SECOND, 21 * SECOND)
    assert window.remaining(log, shape, 21 * SECOND) == 50


def test_what_has_been_freed_is_neither_given_back_nor_charged() -> None:
    shape = Window(100, 60 * SECOND, 3 * SECOND)
    log = window.spend(window.EMPTY, shape, 60, SECOND, SECOND)
    for units in (-60, 60):
        assert window.correct(log, shape, units, SECOND, 63 * SECOND) == window.EMPTY


def test_a_charge_on_top_may_pass_the_limit_and_is_waited_for() -> None:
    shape = Window(100, 60 * SECOND, SECOND)
    log = window.spend(window.EMPTY, shape, 90, 0, 0)
    log = window.spend(log, shape, 10, 30 * SECOND, 30 * SECOND)
    log = window.correct(log, shape, 500, 30 * SECOND, 40 * SECOND)
    assert window.remaining(log, shape, 40 * SECOND) == 0
    assert window.earliest(log, shape, 1, 40 * SECOND) == 91 * SECOND - 1


def test_a_lower_limit_counts_what_was_spent_under_the_higher_one() -> None:
    high, low = Window.of(100, 60), Window.of(10, 60)
    log = window.spend(window.EMPTY, high, 50, 0, 0)
    assert window.remaining(log, low, SECOND) == 0
    log = window.spend(log, high, 50, 30 * SECOND, 30 * SECOND)
    assert window.earliest(log, low, 1, 31 * SECOND) == log[1][0] + 60 * SECOND


def test_mixed_grains_keep_their_entries_in_order() -> None:
    fine, coarse = Window(10, 60 * SECOND, 1), Window(100, 60 * SECOND, 3 * SECOND)
    log = window.spend(window.EMPTY, coarse, 2, 4 * SECOND, 4 * SECOND)
    log = window.spend(log, fine, 1, 5 * SECOND, 5 * SECOND)
    assert [end for end, _ in log] == [5 * SECOND, 6 * SECOND - 1]


def test_the_number_of_entries_is_bounded() -> None:
    shape, log = Window.of(1000, 60), window.EMPTY
    for t in range(0, 300 * SECOND, 100_000):
        if window.earliest(log, shape, 1, t) == t:
            log = window.spend(log, shape, 1, t, t)
        assert len(log) <= 21
