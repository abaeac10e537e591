"""The goodput experiment: it tells the defences apart, its plot is sound, its claim can fail."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from bench.claims import Verdict
from bench.stage import Stage

from bench import goodput, overload


def test_a_short_run_tells_the_defences_apart() -> None:
    """Two minutes at five times the capacity."""
    ours = goodput.run("headworks", 5.0, 120.0, 1)
    assert ours.critical >= 0.99
    assert ours.goodput >= 0.95
    assert ours.at_once >= 0.97 * (ours.offered - ours.served)
    blind = goodput.run("limit_concurrency", 5.0, 120.0, 1)
    assert blind.goodput >= 0.95
    assert blind.critical < 0.5
    assert goodput.run("semaphore", 5.0, 120.0, 1).goodput < 0.3


def test_every_defence_meets_the_same_requests_and_critical_demand_stays_the_same() -> None:
    """Half of the capacity is critical, however much else there is."""
    assert list(goodput.jobs(2.0, 60.0, 1)) == list(goodput.jobs(2.0, 60.0, 1))
    for load in goodput.LOADS:
        critical = sum(job.critical for job in goodput.jobs(load, 1940.0, 1)) / 2000.0
        assert critical == pytest.approx(goodput.CRITICAL * goodput.CAPACITY, rel=0.05)


def cells(**changes: Any) -> list[dict[str, Any]]:
    def cell(defence: str, **figures: Any) -> dict[str, Any]:
        fine = {"offered": 100, "served": 50, "critical": 1.0, "goodput": 1.0, "at_once": 50}
        return {"defence": defence, "load": 10.0, **fine, **figures}

    return [
        cell("headworks", **changes),
        cell("semaphore", served=0, goodput=0.0, at_once=0),
        cell("limit_concurrency", critical=0.1),
    ]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, Verdict.HOLDS),
        ({"critical": 0.98}, Verdict.FAILS),
        ({"goodput": 0.94}, Verdict.FAILS),
        ({"at_once": 40}, Verdict.FAILS),
    ],
)
async def test_the_claim_fails_with_any_of_its_figures(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], verdict: Verdict
) -> None:
    async def experiment(stage: Stage) -> list[dict[str, Any]]:
        return cells(**changes)

    answers = iter([1.0, 1000.0])

    async def median(*app: object) -> float:
        return next(answers)

    monkeypatch.setattr(overload, "_cells", experiment)
    monkeypatch.setattr(overload, "_median", median)
    claim = await overload.overload(Stage(seed=1, quick=True, say=lambda text: None))
    assert claim.verdict is verdict


def test_the_plot_is_well_formed_and_shows_every_series() -> None:
    some = [
        goodput.Cell(defence, load, 10, 5, 5, 0.5, 0.9, 5)
        for defence in goodput.DEFENCES
        for load in goodput.LOADS
    ]
    drawn = ET.fromstring(goodput.plot(some))
    circles = drawn.findall(".//{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * len(goodput.DEFENCES) * len(goodput.LOADS)
