"""Caution: raised by who waited in vain, bounded, and forgotten."""

from __future__ import annotations

import pytest

from headworks.limits.arrivals import HALF_LIFE, Arrivals
from headworks.limits.caution import CAUTION, FORGET, MOST_CAUTION, Caution


def test_waits_in_vain_lengthen_what_is_foreseen_up_to_a_bound_and_for_a_while() -> None:
    caution = Caution()
    assert caution.now(5.0) == 1.0
    caution.in_vain(0.0, 10.0)
    assert caution.now(10.0) == CAUTION
    assert caution.now(10.0 + FORGET) == pytest.approx(1.0 + (CAUTION - 1.0) / 2)
    for at in range(20, 40):
        caution.in_vain(at, at)
    assert caution.now(39.0) == pytest.approx(MOST_CAUTION)


def test_those_who_had_joined_before_the_last_lesson_teach_nothing() -> None:
    """A line that stands still for a while is one lesson, not one for each who stood in it."""
    caution = Caution()
    for joined_at in range(10):
        caution.in_vain(joined_at, 10.0)
    assert caution.now(10.0) == CAUTION


def test_arrivals_are_counted_per_second_and_forgotten() -> None:
    arrivals = Arrivals()
    for tick in range(1000):
        arrivals.arrived(tick * 0.1)
    assert arrivals.now(100.0) == pytest.approx(10.0, rel=0.05)
    assert arrivals.now(100.0 + HALF_LIFE) == pytest.approx(arrivals.now(100.0) / 2)
