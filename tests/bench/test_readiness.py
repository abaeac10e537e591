"""Readiness that flips on a full pod, against ours: the cascade, in virtual time."""

from __future__ import annotations

import pytest

from bench import readiness


@pytest.mark.parametrize("pods", [3, 10])
def test_an_overloaded_fleet_serves_what_it_can_and_one_that_flips_does_not(pods: int) -> None:
    """Nobody leaves for load where everybody is full; the same seed sends the same to both."""
    ours = readiness.run(pods, "ours", seconds=10)
    flips = readiness.run(pods, "flip", seconds=10)
    assert ours.of_capacity >= 0.93
    assert flips.of_capacity < 0.9
    assert ours.nobody == 0


def test_permits_alone_keep_pods_away() -> None:
    """As soon as one returns the next one leaves, for as long as the overload lasts."""
    places = readiness.run(10, "places", seconds=60)
    assert places.away >= 1
    assert places.of_capacity < 0.9
