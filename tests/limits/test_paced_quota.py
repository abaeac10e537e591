"""What is enforced here, sent over a wire that delays by up to J, against what the vendor enforces."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from headworks.limits import bucket, paced, window
from headworks.limits.shapes import NEVER_US, Bucket, Shape, Window

SECOND = 1_000_000


def _granted(shapes: tuple[Shape, ...], costs: list[int], length: int) -> list[tuple[int, int]]:
    """Send as soon as every shape allows it, until the time is over."""
    level, log, t, sent = bucket.IDLE, window.EMPTY, 0, []
    for cost in costs:
        times = [
            bucket.earliest(level, s, cost, t)
            if isinstance(s, Bucket)
            else window.earliest(log, s, cost, t)
            for s in shapes
        ]
        assert NEVER_US not in times
        t = max(times)
        if t >= length:
            break
        for shape in shapes:
            if isinstance(shape, Bucket):
                level = bucket.spend(level, shape, cost, t, t)
            else:
                log = window.spend(log, shape, cost, t, t)
        sent.append((t, cost))
    return sent


def _arrivals(sent: list[tuple[int, int]], jitter: float) -> list[tuple[int, int]]:
    rng = random.Random(7)
    spread = round(jitter * SECOND)
    return sorted((t + rng.choice((0, spread, rng.randint(0, spread))), cost) for t, cost in sent)


@pytest.mark.parametrize(("limit", "burst"), [(500, None), (600, 10), (60, 1), (5000, 50)])
def test_a_vendors_bucket_is_never_overrun_and_nearly_used_up(limit: int, burst: int | None) -> None:
    shapes = paced.enforce(limit, 60, mechanism="bucket", jitter=0.05, lumpy=False, burst=burst)
    sent = _granted(shapes, [1] * 20 * limit, 600 * SECOND)
    tat, capacity, unit = Fraction(0), burst or limit, Fraction(60 * SECOND, limit)
    for t, _ in _arrivals(sent, 0.05):
        tat = max(tat, Fraction(t)) + unit
        assert tat <= t + capacity * unit
    assert len(sent) >= 0.95 * 10 * limit


@pytest.mark.parametrize("lumpy", [False, True])
def test_a_vendors_window_is_never_overrun_and_used_up_to_its_bound(lumpy: bool) -> None:
    limit, period, jitter = 300, 60, 0.05
    shapes = paced.enforce(limit, period, mechanism="sliding", jitter=jitter, lumpy=lumpy)
    rng = random.Random(3)
    costs = [rng.randint(1, 40) if lumpy else 1 for _ in range(2000)]
    sent = _granted(shapes, costs, 300 * SECOND)
    arrivals = _arrivals(sent, jitter)
    for end, _ in arrivals:
        inside = sum(c for t, c in arrivals if end - period * SECOND < t <= end)
        assert inside <= limit
    bound = paced.utilisation(period, jitter, "sliding") * limit * 300 / period
    assert sum(cost for _, cost in sent) >= bound * (0.9 if lumpy else 0.999)


def test_tokens_against_a_bucket_keep_its_capacity_less_what_jitter_refills() -> None:
    shapes = paced.enforce(200_000, 60, mechanism="bucket", jitter=0.05, lumpy=True)
    assert shapes == (Bucket.of(200_000, 60, burst=199_833),)


def test_lumpy_costs_against_a_window_are_counted_over_the_window_and_the_jitter() -> None:
    shapes = paced.enforce(40_000, 60, mechanism="fixed", jitter=0.5, lumpy=True)
    assert shapes == (Window.of(40_000, 60.5, grains=60),)


def test_the_utilisation_bound() -> None:
    assert paced.utilisation(60, 0.05, "bucket") == 1
    assert paced.utilisation(1, 0.05, "fixed") == pytest.approx(1 / 1.05)
