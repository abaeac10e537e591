"""The fleet when something goes wrong: nothing rejected, nothing lost, the quota soon used again."""

from __future__ import annotations

import pytest
from bench.contract import chaos


@pytest.mark.parametrize(
    "name",
    [
        *("two pods killed", "a fifth aborted", "rolling restart"),
        *("store away 5 s", "three pods cut off"),
    ],
)
def test_what_dies_takes_nothing_with_it(name: str) -> None:
    after = chaos.run(name, 1)
    assert (after.rejected, after.lost, after.opened) == (0, 0, 0)
    assert after.recovered <= chaos.WINDOW
    assert after.used >= 0.99


@pytest.mark.parametrize("name", ["store away 5 s, share", "three pods cut off, share"])
def test_a_pod_that_goes_on_alone_loses_nothing_but_breaks_the_contract(name: str) -> None:
    """Why a vendor's contract waits for the store unless its policy says otherwise."""
    after = chaos.run(name, 1)
    assert 0 < after.rejected < 20
    assert after.lost == 0


def test_a_failing_vendor_opens_the_breaker_once_for_the_fleet() -> None:
    after = chaos.run("vendor fails 90 %", 1)
    assert (after.rejected, after.lost, after.opened, after.closed) == (0, 0, 1, True)
    assert after.recovered <= chaos.WINDOW


def test_a_stumbling_vendor_never_opens_it() -> None:
    after = chaos.run("vendor fails 30 %", 1)
    assert (after.rejected, after.lost, after.opened) == (0, 0, 0)
    assert after.used >= 0.99
