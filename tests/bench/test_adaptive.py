"""Why admission follows no latency: limits that do refuse most of a healthy load."""

from __future__ import annotations

import pytest

from bench import adaptive


@pytest.mark.parametrize("seed", [1, 2])
def test_limits_that_follow_latency_refuse_most_of_a_healthy_load(seed: int) -> None:
    """Where latency is the length of the answer, it says nothing of overload."""
    assert adaptive.refused("vegas", seed=seed) > 0.8
    assert adaptive.refused("gradient", seed=seed) > 0.6
    assert adaptive.refused("fixed", seed=seed) < 0.02
