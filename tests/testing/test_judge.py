"""The judge is exact: held against a plain log, a plain bucket in fractions, and by hand."""

from __future__ import annotations

import copy
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headworks.testing.fake_vendor.judge import MECHANISMS, REQUESTS, TOKENS, Judge, Limit, meter

S = 1_000_000
calls = st.lists(st.tuples(st.integers(0, 400_000), st.integers(1, 4)), max_size=80)


@settings(max_examples=60)
@given(calls, st.integers(1, 8), st.integers(1, 3 * S))
def test_sliding_never_holds_more_than_its_amount_in_any_window(
    steps: list[tuple[int, int]], amount: int, window: int
) -> None:
    """Refused exactly when the costs of the last window and this one exceed the amount."""
    own, log, now = meter(Limit(REQUESTS, amount, window, "sliding")), list[tuple[int, int]](), 0
    for step, cost in steps:
        now += step
        used = sum(c for at, c in log if now - at < window)
        fits = own.wait_us(cost, now) == 0
        assert fits == (used + cost <= amount)
        assert own.remaining(now) == amount - used
        if fits:
            own.take(cost, now)
            log.append((now, cost))


@settings(max_examples=60)
@given(calls, st.integers(1, 50), st.integers(1, 3 * S), st.integers(1, 60))
def test_a_bucket_refills_exactly(
    steps: list[tuple[int, int]], amount: int, window: int, burst: int
) -> None:
    """The same decisions as a bucket kept in fractions, however odd rate and window are."""
    own, now, at = meter(Limit(REQUESTS, amount, window, "bucket", burst)), 0, 0
    level = Fraction(burst)
    for step, cost in steps:
        now += step
        level = min(Fraction(burst), level + Fraction((now - at) * amount, window))
        at = now
        fits = own.wait_us(cost, now) == 0
        assert fits == (cost <= level)
        assert own.remaining(now) == int(level)
        if fits:
            own.take(cost, now)
            level -= cost


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_the_wait_it_names_is_the_first_moment_that_fits(mechanism: str) -> None:
    """One microsecond earlier still refuses; and the reset is the first moment of an unused limit."""
    rng = random.Random(7)
    own, now = meter(Limit(REQUESTS, 7, 3 * S + 1, mechanism, 5)), 0
    for _ in range(300):
        now += rng.randrange(300_000)
        cost = rng.randint(1, 5)
        wait = own.wait_us(cost, now)
        assert wait is not None
        if wait:
            assert own.wait_us(cost, now + wait - 1) != 0
            now += wait
        assert own.wait_us(cost, now) == 0
        own.take(cost, now)
        reset, later = own.reset_us(now), copy.deepcopy(own)
        assert later.remaining(now + reset - 1) < own.capacity
        assert later.remaining(now + reset) == own.capacity


def test_fixed_windows_stand_on_the_calendar() -> None:
    """Ten before the edge and ten after it: twenty within a second, as such vendors let through."""
    own = Judge([Limit(REQUESTS, 10, 60 * S, "fixed")])
    before = [own.decide({REQUESTS: 1}, 59_500_000).accepted for _ in range(11)]
    after = [own.decide({REQUESTS: 1}, 60_000_000).accepted for _ in range(11)]
    assert before == after == [True] * 10 + [False]


def test_a_full_bucket_lets_twice_its_amount_through_in_the_first_period() -> None:
    own = Judge([Limit(REQUESTS, 100, 60 * S, "bucket")])
    taken = sum(own.decide({REQUESTS: 1}, ms * 1000).accepted for ms in range(60_000))
    assert taken == 199


def test_a_bucket_rounds_against_the_caller() -> None:
    """Seven in ten seconds: one more after 1,428,571.43 µs, not a microsecond too early."""
    own = Judge([Limit(REQUESTS, 7, 10 * S, "bucket", 1)])
    assert own.decide({REQUESTS: 1}, 0).accepted
    early = own.decide({REQUESTS: 1}, 1_428_571)
    assert (early.accepted, early.retry_us) == (False, 1)
    assert own.decide({REQUESTS: 1}, 1_428_572).accepted


def test_limits_are_taken_together_or_not_at_all() -> None:
    """A call refused for its tokens costs no request."""
    own = Judge([Limit(REQUESTS, 10, 60 * S), Limit(TOKENS, 100, 60 * S)])
    assert own.decide({REQUESTS: 1, TOKENS: 90}, 0).accepted
    refused = own.decide({REQUESTS: 1, TOKENS: 20}, 0)
    assert refused.refused_by is not None
    assert refused.refused_by.unit == TOKENS
    assert refused.retry_us == 6 * S
    assert {s.limit.unit: s.remaining for s in refused.standings} == {REQUESTS: 9, TOKENS: 10}


def test_the_longest_wait_decides_and_never_is_the_longest() -> None:
    own = Judge([Limit(REQUESTS, 1, 60 * S), Limit(TOKENS, 100, 60 * S)])
    own.decide({REQUESTS: 1, TOKENS: 100}, 0)
    assert own.decide({REQUESTS: 1, TOKENS: 10}, 0).retry_us == 60 * S
    never = own.decide({REQUESTS: 1, TOKENS: 101}, 0)
    assert never.retry_us is None
    assert never.refused_by is not None
    assert never.refused_by.unit == TOKENS


def test_a_models_limit_concerns_its_model_only() -> None:
    """And comes on top of the limits of every call."""
    own = Judge([Limit(REQUESTS, 3, 60 * S), Limit(REQUESTS, 1, 60 * S, model="large")])
    assert own.decide({REQUESTS: 1}, 0, model="large").accepted
    refused = own.decide({REQUESTS: 1}, 0, model="large").refused_by
    assert refused is not None
    assert refused.name == "large requests"
    assert own.decide({REQUESTS: 1}, 0, model="small").accepted
    assert own.decide({REQUESTS: 1}, 0, model="small").accepted
    assert not own.decide({REQUESTS: 1}, 0, model="small").accepted


@pytest.mark.parametrize(
    ("mechanism", "seconds", "most"),
    [
        ("bucket", 0, 10),
        ("bucket", 60, 20),
        ("bucket", 61.5, 20),
        ("sliding", 59, 10),
        ("sliding", 60, 20),
        ("fixed", 29, 10),
        ("fixed", 31, 20),
    ],
)
def test_the_most_a_mechanism_allows(mechanism: str, seconds: float, most: int) -> None:
    """From the half of a minute on."""
    begin = 30 * S
    assert meter(Limit(REQUESTS, 10, 60 * S, mechanism)).most(begin, begin + round(seconds * S)) == most


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"unit": "cows"}, "unit"),
        ({"mechanism": "magic"}, "mechanism"),
        ({"amount": 0}, "amount"),
        ({"window_us": 0}, "window"),
        ({"burst": 0}, "burst"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(change: dict[str, object], named: str) -> None:
    fields: dict[str, object] = {"unit": REQUESTS, "amount": 1, "window_us": 1} | change
    with pytest.raises(ValueError, match=named):
        Limit(**fields)  # type: ignore[arg-type]  # wrong on purpose
