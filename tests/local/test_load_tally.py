"""Counting and percentiles."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from rich.console import Console

from headworks.local.load.outcome import Kind, Outcome, broken
from headworks.local.load.profiles import CHAT, Crowd, Profile
from headworks.local.load.report import Report
from headworks.local.load.show import closing, line, live
from headworks.local.load.tally import Latency, Tally
from headworks.local.load.vendors import VendorCount

SERVED = Outcome(Kind.SERVED, status=200)
GATEWAY = Outcome(Kind.REFUSED, "gateway", "per-ip-rate", 429)
VENDOR = Outcome(Kind.REFUSED, "vendor", "vendor-quota", 429)


def test_percentiles_are_nearest_rank() -> None:
    sample = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(sample)
    assert Latency.of(sample) == Latency(100, 50.0, 95.0, 99.0, 100.0)
    assert Latency.of([3.0]) == Latency(1, 3.0, 3.0, 3.0, 3.0)
    assert Latency.of([1.0, 2.0]) == Latency(2, 1.0, 2.0, 2.0, 2.0)
    assert Latency.of([]).count == 0


def _report() -> Report:
    tally = Tally()
    ends = [("a", SERVED)] * 3 + [("a", GATEWAY), ("b", VENDOR), ("b", VENDOR), ("b", broken("cut off"))]
    for crowd, outcome in ends:
        tally.sent[crowd] += 1
        tally.end(crowd, outcome, 0.25)
    tally.sent["b"] += 1
    crowds = tuple(Crowd(name, "", 1.0, ("",), ("127.0.0.1",), (CHAT,)) for name in ("a", "b"))
    return Report.of(Profile("p", "", crowds), tally, url="u", seed=1, seconds=2.0)


def test_every_request_sent_stands_in_one_column_of_its_crowd() -> None:
    a, b = _report().crowds
    assert (a.sent, a.served, a.refused, a.share) == (4, 3, 1, 0.75)
    assert (b.sent, b.served, b.refused, b.broken, b.waiting) == (4, 0, 2, 1, 1)


def test_decisions_stand_in_the_order_of_the_layers() -> None:
    rows = [(row.layer, row.reason, row.count, row.crowds) for row in _report().decisions]
    assert rows == [
        ("", "", 3, {"a": 3}),
        ("gateway", "per-ip-rate", 1, {"a": 1}),
        ("vendor", "vendor-quota", 2, {"b": 2}),
        ("connection", "cut off", 1, {"b": 1}),
    ]


def test_the_json_form_holds_totals_and_shares() -> None:
    data = _report().as_json()
    assert data["sent"] == 8
    assert [crowd["share"] for crowd in data["crowds"]] == [0.75, 0.0]
    assert [row["count"] for row in data["decisions"]] == [3, 1, 2, 1]
    assert data["served"]["p99"] == 0.25


@pytest.mark.parametrize("width", [100, 200])
def test_the_display_shows_every_crowd_decision_and_vendor(width: int) -> None:
    vendor = VendorCount("llm", True, 290, {"requests": 2}, 0, 15, 0, {"requests": 0.987}, 1)
    away = VendorCount("search", False, 0, {}, 0, 0, 0, {}, 0)
    report = replace(_report(), vendors=(vendor, away), unsent=5, late=0.9)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(live(report, 30.0), closing(report))
    text = console.export_text()
    for words in ("per-ip-rate", "vendor-quota", "cut off", "98.7% requests", "unknown"):
        assert words in text
    assert "restarted 1×" in text
    assert "5 requests were due but not sent" in text
    assert "0.9 s late" in text
    assert "llm: 290 accepted, 2 rejected" in line(report)
