"""The fleet when something goes wrong: nothing rejected, nothing lost, the quota soon used again."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from bench.contract import chaos
from bench.contract.__main__ import judged
from bench.contract.cells import Cell, cells
from bench.contract.picture import picture

from headworks.store.recall import Recall

MECHANISMS = [
    Cell("bucket 60 s", "bucket", 60.0),
    Cell("fixed 60 s", "fixed", 60.0),
    Cell("tokens", "sliding", 60.0, tokens=1_260_000),
]
"""Beside the sliding window of 10 s, on which every scene is run."""


@pytest.mark.parametrize(
    "name",
    [
        *("two pods killed", "a fifth aborted", "rolling restart"),
        *("store away 5 s", "three pods cut off", "store back empty", "store empty at once"),
    ],
)
def test_what_dies_takes_nothing_with_it(name: str) -> None:
    after = chaos.run(name, 1)
    assert (after.rejected, after.lost, after.opened) == (0, 0, 0)
    assert after.recovered <= chaos.WINDOW
    assert after.used >= 0.99


@pytest.mark.parametrize("cell", MECHANISMS, ids=lambda cell: cell.name)
@pytest.mark.parametrize("name", ["store away 5 s", "three pods cut off", "store back empty"])
def test_no_outage_of_the_store_breaks_a_contract_however_it_is_enforced(name: str, cell: Cell) -> None:
    after = chaos.run(name, 2, cell)
    assert (after.rejected, after.lost, after.opened) == (0, 0, 0)


@pytest.mark.parametrize("cell", [MECHANISMS[0], MECHANISMS[2]], ids=lambda cell: cell.name)
def test_a_store_that_has_forgotten_and_is_not_told_grants_a_quota_twice(
    monkeypatch: pytest.MonkeyPatch, cell: Cell
) -> None:
    monkeypatch.setattr(Recall, "born_anew", lambda *_: False)
    assert chaos.run("store back empty", 1, cell).rejected > 0


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


def test_a_run_whose_controls_see_nothing_is_void() -> None:
    ran = {cell.name: cell for cell in cells(quick=True)}
    beside = {"waited": [1.5, 2.5, 3.5], "jain_tenants": 0.9876}
    fine = {
        name: {"rejected": 0 if cell.limiter == "headworks" else 7, "of_bound": 0.99} | beside
        for name, cell in ran.items()
    }
    without_j = {"sliding 10 s, without J": {"rejected": 3, "of_bound": 0.9} | beside | {"waited": []}}
    assert judged(ran, fine) == 2, "the control without J is ours, and saw none"
    assert judged(ran, fine | without_j) == 0
    assert judged(ran, fine | without_j | {"uneven": {"rejected": 1}}) == 1
    assert judged(ran, fine | without_j | {"tokens, off": {"rejected": 0}}) == 2
    drawn = ElementTree.fromstring(picture(fine | without_j))
    assert len(drawn.findall("{*}rect")) == 1 + len(ran), "one bar for each cell"
    texts = list(drawn.itertext())
    assert "sliding 10 s, without J" in texts
    assert texts.count("1.50 s, 3.50 s") == len(ran) - 1, "how long the served waited"
    assert texts.count("0.988") == len(ran)
