"""What passes beyond four fifths of a limit is counted: who will soon be refused is seen before."""

from __future__ import annotations

import pytest

from headworks.current import Criticality
from headworks.fairness.limits import Asked
from headworks.fairness.refusal import judged, kept
from headworks.limits.shapes import Bucket, Shape, Window
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Ask, Question
from headworks.telemetry import Decided, Telemetry
from headworks.testing.recording import RecordingSink
from headworks.verdict import Verdict

# The accounting of Envoy's rate limit service: limit, taken before, cost, how much of it counts. There
# a cost that does not fit is taken in part; here it takes nothing, and nothing of it counts.
ENVOY = [
    (15, 10, 1, 0),
    (15, 12, 1, 1),
    (20, 2, 3, 0),
    (8, 5, 2, 1),
    (20, 16, 3, 3),
    (20, 19, 3, 0),
    (20, 15, 7, 0),
    (10, 10, 3, 0),
]


@pytest.mark.parametrize(("limit", "before", "cost", "counted"), ENVOY)
@pytest.mark.parametrize("bucket", [False, True])
async def test_units_beyond_four_fifths_count_and_no_others(
    limit: int, before: int, cost: int, counted: int, bucket: bool
) -> None:
    shape: Shape = Bucket.of(1, 60, burst=limit) if bucket else Window.of(limit, 60)
    store = MemoryStore()
    await store.ask(Question((Ask("user", "k", shape, before),)))
    asks: tuple[Ask, ...] = (Ask("user", "k", shape, cost),)
    if not bucket:
        asks = (Ask("wide", "w", Window.of(10_000, 60), cost), *asks)
    verdict = await store.ask(Question(asks))
    told = decided(verdict, asks)
    assert told.near == counted
    assert told.rule == (verdict.tightest.name if verdict.tightest else "")
    degraded = verdict._replace(degraded=True)
    assert decided(degraded, asks).near == 0, "a share is always near its end"


def decided(verdict: Verdict, asks: tuple[Ask, ...]) -> Decided:
    """What is told of a verdict."""
    heard = RecordingSink()
    asked = Asked(asks, kept={ask.name: kept(ask.name, ask.shape) for ask in asks})
    judged(verdict, asked, Criticality.DEFAULT, Telemetry(heard))
    (event,) = heard.of(Decided)
    return event
